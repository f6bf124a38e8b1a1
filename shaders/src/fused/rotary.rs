//! Rotary position embedding (arXiv:2104.09864) of halves of heads.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{contiguous, elements, elementwise, empty, lanes};
use crate::SourceRuntime;

/// A thread for each pair of vectors, one in either half of a head; a token has `pairs` of them, a half of a head `half`.
#[cube(launch)]
fn turn<X: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    cos: &Array<Vector<f32, N>>,
    sin: &Array<Vector<f32, N>>,
    y: &mut Array<Vector<X, N>>,
    pairs: u32,
    half: u32,
    sign: f32,
    #[define(X)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < y.len() / 2 {
        let (pairs, half) = (pairs as usize, half as usize);
        let token = ABSOLUTE_POS / pairs;
        let head = (ABSOLUTE_POS % pairs) / half;
        let within = ABSOLUTE_POS % half;
        let at = token * 2 * pairs + head * 2 * half + within;
        let angle = token * 2 * half + within;
        let (first, second) = (Vector::<f32, N>::cast_from(x[at]), Vector::<f32, N>::cast_from(x[at + half]));
        let sign = Vector::<f32, N>::new(sign);
        y[at] = Vector::cast_from(first * cos[angle] + second * sin[angle] * sign);
        y[at + half] = Vector::cast_from(second * cos[angle + half] + first * sin[angle + half] * sign);
    }
}

/// Turns the halves of every head by the angles of its token, or `back`: `x` `[tokens, heads * head_dim]` of any float type, which the
/// result has too; f32 `cos` and signed `sin` `[tokens, 1, 2, head_dim / 2]`.
pub fn rotate<R: SourceRuntime>(x: CubeTensor<R>, cos: CubeTensor<R>, sin: CubeTensor<R>, back: bool) -> CubeTensor<R> {
    let [x, cos, sin] = [x, cos, sin].map(contiguous);
    let (width, half) = (x.meta.shape()[1], cos.meta.shape()[3]);
    let y = empty(&x, x.meta.shape().clone(), x.dtype);
    let pairs = y.meta.shape().num_elements() / 2;
    if pairs > 0 {
        let lanes = lanes(half);
        let (cubes, dim) = elementwise(&y, pairs / lanes);
        let [x, cos, sin, of_y] = [&x, &cos, &sin, &y].map(elements);
        let [pairs, half] = [width / 2, half].map(|size| (size / lanes) as u32);
        let (sign, dtype) = (if back { -1.0 } else { 1.0 }, y.dtype.into());
        turn::launch::<R>(&y.client, cubes, dim, lanes, x, cos, sin, of_y, pairs, half, sign, dtype);
    }
    y
}
