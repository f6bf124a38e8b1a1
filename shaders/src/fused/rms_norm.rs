//! Root-mean-square layer normalisation (arXiv:1910.07467). What is read and written may be of any float type; all that is computed in
//! between is f32.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::CubeDim;
use cubecl::prelude::*;

use super::{contiguous, elements, empty, lanes, row, rowwise, sum_of_cube, sum_of_lanes};
use crate::SourceRuntime;

#[cube(launch)]
fn forward<X: Float, Y: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    weight: &Array<Vector<f32, N>>,
    y: &mut Array<Vector<Y, N>>,
    eps: f32,
    #[comptime] threads: usize,
    #[define(X, Y)] _dtypes: [StorageType; 2],
) {
    let (first, end) = row(x.len(), weight.len());
    let width = (weight.len() * N::value()) as f32;
    let start = first + UNIT_POS as usize;
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut i = start;
    while i < end {
        let x = Vector::<f32, N>::cast_from(x[i]);
        squares += x * x;
        i += threads;
    }
    let mean = sum_of_cube(sum_of_lanes(squares), threads) / width;
    let inverse = Vector::new(1.0 / (mean + eps).sqrt());
    let mut i = start;
    while i < end {
        y[i] = Vector::cast_from(Vector::<f32, N>::cast_from(x[i]) * inverse * weight[i - first]);
        i += threads;
    }
}

/// With `r` the inverse root, `n = x · r` and `s = grad · weight`, the gradient is `(s - n · mean(s · n)) · r`.
#[cube(launch)]
fn backward<X: Float, G: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    weight: &Array<Vector<f32, N>>,
    grad: &Array<Vector<G, N>>,
    d_x: &mut Array<Vector<X, N>>,
    eps: f32,
    #[comptime] threads: usize,
    #[define(X, G)] _dtypes: [StorageType; 2],
) {
    let (first, end) = row(x.len(), weight.len());
    let width = (weight.len() * N::value()) as f32;
    let start = first + UNIT_POS as usize;
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut products = Vector::<f32, N>::new(0.0);
    let mut i = start;
    while i < end {
        let x = Vector::<f32, N>::cast_from(x[i]);
        squares += x * x;
        products += x * Vector::cast_from(grad[i]) * weight[i - first];
        i += threads;
    }
    let mean = sum_of_cube(sum_of_lanes(squares), threads) / width;
    let inverse = 1.0 / (mean + eps).sqrt();
    let along = Vector::new(sum_of_cube(sum_of_lanes(products), threads) / width * inverse * inverse);
    let inverse = Vector::new(inverse);
    let mut i = start;
    while i < end {
        let grad = Vector::<f32, N>::cast_from(grad[i]);
        d_x[i] = Vector::cast_from((grad * weight[i - first] - Vector::cast_from(x[i]) * along) * inverse);
        i += threads;
    }
}

/// `x / sqrt(mean(x²) + eps) * weight`: `x` `[rows, width]` of any float type, `weight` `[1, width]` in f32, the result in the type `into`.
pub fn rms_norm<R: SourceRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>, eps: f32, into: DType) -> CubeTensor<R> {
    let [x, weight] = [x, weight].map(contiguous);
    let y = empty(&x, x.meta.shape().clone(), into);
    let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1]];
    if rows * width > 0 {
        let lanes = lanes(width);
        let (cubes, threads) = rowwise(rows, width / lanes);
        let dim = CubeDim::new_1d(threads as u32);
        let dtypes = [x.dtype, into].map(Into::into);
        let [x, weight, of_y] = [&x, &weight, &y].map(elements);
        forward::launch::<R>(&y.client, cubes, dim, lanes, x, weight, of_y, eps, threads, dtypes);
    }
    y
}

/// The gradient of `x` of [`rms_norm`] from that of its result, in the type of `x`.
pub fn rms_norm_backward<R: SourceRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    grad: CubeTensor<R>,
    eps: f32,
) -> CubeTensor<R> {
    let [x, weight, grad] = [x, weight, grad].map(contiguous);
    let d_x = empty(&x, x.meta.shape().clone(), x.dtype);
    let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1]];
    if rows * width > 0 {
        let lanes = lanes(width);
        let (cubes, threads) = rowwise(rows, width / lanes);
        let dim = CubeDim::new_1d(threads as u32);
        let dtypes = [x.dtype, grad.dtype].map(Into::into);
        let [x, weight, grad, of_x] = [&x, &weight, &grad, &d_x].map(elements);
        backward::launch::<R>(&d_x.client, cubes, dim, lanes, x, weight, grad, of_x, eps, threads, dtypes);
    }
    d_x
}
