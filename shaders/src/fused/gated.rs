//! SwiGLU and GeGLU (arXiv:2002.05202): a function of one tensor times another. What is read and written may be of any float type; all
//! that is computed in between is f32.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{contiguous, converted, elements, elementwise, empty, lanes};
use crate::SourceRuntime;

/// The largest exponent that is taken: far beyond it f32 has no number, of which shading languages say nothing.
const LARGEST: f32 = 80.0;

#[cube]
fn sigmoid<N: Size>(z: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    // Not its negative: of a vector CubeCL's CUDA C++ has none.
    let negative = Vector::new(0.0) - z;
    one / (one + min(negative, Vector::new(LARGEST)).exp())
}

#[cube(launch)]
fn forward<X: Float, N: Size>(
    gate: &Array<Vector<X, N>>,
    up: &Array<Vector<X, N>>,
    y: &mut Array<Vector<X, N>>,
    linear: f32,
    cubic: f32,
    #[define(X)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < y.len() {
        let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
        let z = x * (Vector::new(linear) + Vector::new(cubic) * x * x);
        y[ABSOLUTE_POS] = Vector::cast_from(x * sigmoid(z) * Vector::cast_from(up[ABSOLUTE_POS]));
    }
}

#[cube(launch)]
fn backward<X: Float, N: Size>(
    gate: &Array<Vector<X, N>>,
    up: &Array<Vector<X, N>>,
    grad: &Array<Vector<X, N>>,
    d_gate: &mut Array<Vector<X, N>>,
    d_up: &mut Array<Vector<X, N>>,
    linear: f32,
    cubic: f32,
    #[define(X)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < d_up.len() {
        let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
        let dy = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
        let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
        let one = Vector::<f32, N>::new(1.0);
        let square = x * x;
        let sigma = sigmoid(x * (Vector::new(linear) + Vector::new(cubic) * square));
        let slope = Vector::new(linear) + Vector::new(3.0 * cubic) * square;
        d_gate[ABSOLUTE_POS] = Vector::cast_from(dy * up * sigma * (one + x * (one - sigma) * slope));
        d_up[ABSOLUTE_POS] = Vector::cast_from(dy * x * sigma);
    }
}

/// `gate · sigmoid(gate · (a + b · gate²)) · up`, elementwise, for coefficients `[a, b]`: tensors of one shape, the result in the type of
/// `gate`.
pub fn gated<R: SourceRuntime>(gate: CubeTensor<R>, up: CubeTensor<R>, [a, b]: [f32; 2]) -> CubeTensor<R> {
    let (up, gate) = (converted(up, gate.dtype), contiguous(gate));
    let y = empty(&gate, gate.meta.shape().clone(), gate.dtype);
    let count = y.meta.shape().num_elements();
    if count > 0 {
        let lanes = lanes(count);
        let (cubes, dim) = elementwise(&y, count / lanes);
        let [gate, up, of_y] = [&gate, &up, &y].map(elements);
        forward::launch::<R>(&y.client, cubes, dim, lanes, gate, up, of_y, a, b, y.dtype.into());
    }
    y
}

/// The gradients of `gate` and `up` of [`gated`] from that of its result, all of one type.
pub fn gated_backward<R: SourceRuntime>(
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
    grad: CubeTensor<R>,
    [a, b]: [f32; 2],
) -> [CubeTensor<R>; 2] {
    let [up, grad] = [up, grad].map(|x| converted(x, gate.dtype));
    let gate = contiguous(gate);
    let [d_gate, d_up] = [&gate, &up].map(|x| empty(x, x.meta.shape().clone(), gate.dtype));
    let count = d_gate.meta.shape().num_elements();
    if count > 0 {
        let lanes = lanes(count);
        let (cubes, dim) = elementwise(&d_gate, count / lanes);
        let [gate, up, grad, of_gate, of_up] = [&gate, &up, &grad, &d_gate, &d_up].map(elements);
        let dtype = d_gate.dtype.into();
        backward::launch::<R>(&d_gate.client, cubes, dim, lanes, gate, up, grad, of_gate, of_up, a, b, dtype);
    }
    [d_gate, d_up]
}
