//! Adam's two operations on moments in f32, each in one pass (arXiv:1412.6980; decoupled decay, arXiv:1711.05101), and what gradients
//! are clipped by.
//!
//! By what factor is known to the device before it is to the host, and whether a step is applied at all: it is not where the factor is 0.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{CubeCount, CubeDim};

use super::{contiguous, elements, elementwise, empty, lanes, sum_of_cube, sum_of_lanes, sum_of_list};
use crate::{SourceRuntime, view};

/// Cubes that sum the squares of one tensor up, and their threads.
const CUBES: usize = 16;
const THREADS: usize = 256;

#[cube]
fn mixed<N: Size>(moment: Vector<f32, N>, new: Vector<f32, N>, beta: f32, rest: f32) -> Vector<f32, N> {
    moment * Vector::new(beta) + new * Vector::new(rest)
}

#[cube(launch)]
fn advance<N: Size>(
    first: &mut Array<Vector<f32, N>>,
    second: &mut Array<Vector<f32, N>>,
    gradient: &Array<Vector<f32, N>>,
    next: &Array<f32>,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
) {
    if ABSOLUTE_POS < first.len() && next[0] != 0.0 {
        let new = gradient[ABSOLUTE_POS];
        first[ABSOLUTE_POS] = mixed(first[ABSOLUTE_POS], new, beta1, rest1);
        second[ABSOLUTE_POS] = mixed(second[ABSOLUTE_POS], new * new, beta2, rest2);
    }
}

#[cube(launch)]
fn apply<N: Size>(
    value: &Array<Vector<f32, N>>,
    first: &Array<Vector<f32, N>>,
    second: &Array<Vector<f32, N>>,
    gradient: &Array<Vector<f32, N>>,
    factor: &Array<f32>,
    result: &mut Array<Vector<f32, N>>,
    clipped: &mut Array<Vector<f32, N>>,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    kept: f32,
    rate: f32,
    correction: f32,
    eps: f32,
) {
    if ABSOLUTE_POS < result.len() && factor[0] != 0.0 {
        let new = gradient[ABSOLUTE_POS] * Vector::new(factor[0]);
        let mean = mixed(first[ABSOLUTE_POS], new, beta1, rest1);
        let root = mixed(second[ABSOLUTE_POS], new * new, beta2, rest2).sqrt();
        let denominator = root / Vector::new(correction) + Vector::new(eps);
        clipped[ABSOLUTE_POS] = new;
        result[ABSOLUTE_POS] = value[ABSOLUTE_POS] * Vector::new(kept) - mean * Vector::new(rate) / denominator;
    }
}

#[cube(launch)]
fn squares<N: Size>(x: &Array<Vector<f32, N>>, sums: &mut Array<f32>, first: u32, #[comptime] threads: usize) {
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut i = ABSOLUTE_POS;
    while i < x.len() {
        sum += x[i] * x[i];
        i += CUBE_COUNT * threads;
    }
    let sum = sum_of_cube(sum_of_lanes(sum), threads);
    if UNIT_POS == 0 {
        sums[first as usize + CUBE_POS] = sum;
    }
}

/// The shares of both moments and of what is new.
fn shares(betas: [f64; 2]) -> [f32; 4] {
    let [beta1, beta2] = betas;
    [beta1, 1.0 - beta1, beta2, 1.0 - beta2].map(|factor| factor as f32)
}

/// A tensor that nothing else refers to.
fn own<R: SourceRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    contiguous(if tensor.can_mut() { tensor } else { tensor.copy() })
}

/// The first and second moment after one more gradient, f32 tensors of one shape, in their own memory where nothing else refers to it; as they
/// were where `next`, `[1]`, is 0.
pub fn adam_advance<R: SourceRuntime>(
    moments: [CubeTensor<R>; 2],
    gradient: CubeTensor<R>,
    next: &CubeTensor<R>,
    betas: [f64; 2],
) -> [CubeTensor<R>; 2] {
    let [first, second] = moments.map(own);
    let gradient = contiguous(gradient);
    let count = first.meta.shape().num_elements();
    if count > 0 {
        let lanes = lanes(count);
        let (cubes, dim) = elementwise(&first, count / lanes);
        let [of_first, of_second, of_gradient, next] = [&first, &second, &gradient, next].map(elements);
        let [beta1, rest1, beta2, rest2] = shares(betas);
        advance::launch::<R>(
            &first.client,
            cubes,
            dim,
            lanes,
            of_first,
            of_second,
            of_gradient,
            next,
            beta1,
            rest1,
            beta2,
            rest2,
        );
    }
    [first, second]
}

/// How a parameter moves, beside its moments.
#[derive(Clone, Copy, Debug)]
pub struct AdamRates {
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// What is left of the value: one less the decay.
    pub kept: f64,
    /// The learning rate over the first moment's correction.
    pub rate: f64,
    /// Correction of the second moment's root.
    pub correction: f64,
    /// Keeps the denominator from zero.
    pub eps: f64,
}

/// A parameter's value after a step with this gradient times a factor, `[1]`, from its moments before it, and that product, f32 tensors of
/// one shape; in the memory of the two that are `spare`, if nothing else refers to that. Where the factor is 0, what these hold, and
/// anything without them.
pub fn adam_apply<R: SourceRuntime>(
    value: CubeTensor<R>,
    moments: [CubeTensor<R>; 2],
    gradient: CubeTensor<R>,
    factor: &CubeTensor<R>,
    spare: [Option<CubeTensor<R>>; 2],
    rates: AdamRates,
) -> [CubeTensor<R>; 2] {
    let [first, second] = moments.map(contiguous);
    let [value, gradient] = [value, gradient].map(contiguous);
    let [result, clipped] =
        spare.map(|spare| spare.map_or_else(|| empty(&value, value.meta.shape().clone(), DType::F32), own));
    let count = result.meta.shape().num_elements();
    if count > 0 {
        let lanes = lanes(count);
        let (cubes, dim) = elementwise(&result, count / lanes);
        let [of_value, of_first, of_second, of_gradient, of_factor, of_result, of_clipped] =
            [&value, &first, &second, &gradient, factor, &result, &clipped].map(elements);
        let [beta1, rest1, beta2, rest2] = shares(rates.betas);
        let [kept, rate, correction, eps] =
            [rates.kept, rates.rate, rates.correction, rates.eps].map(|factor| factor as f32);
        apply::launch::<R>(
            &result.client,
            cubes,
            dim,
            lanes,
            of_value,
            of_first,
            of_second,
            of_gradient,
            of_factor,
            of_result,
            of_clipped,
            beta1,
            rest1,
            beta2,
            rest2,
            kept,
            rate,
            correction,
            eps,
        );
    }
    [result, clipped]
}

/// The sum of the squares of all elements of f32 tensors, at least one, on one device: `[1]`.
pub fn sum_of_squares<R: SourceRuntime>(tensors: Vec<CubeTensor<R>>) -> CubeTensor<R> {
    let like = tensors[0].clone();
    let tensors: Vec<_> = tensors.into_iter().filter(|tensor| tensor.meta.shape().num_elements() > 0).collect();
    if tensors.is_empty() {
        return view::zeros(&like, [1].into(), like.dtype);
    }
    let sums = empty(&like, [tensors.len() * CUBES], DType::F32);
    for (i, tensor) in tensors.into_iter().map(contiguous).enumerate() {
        let lanes = lanes(tensor.meta.shape().num_elements());
        let (cubes, dim) = (CubeCount::Static(CUBES as u32, 1, 1), CubeDim::new_1d(THREADS as u32));
        let (of_tensor, of_sums) = (elements(&tensor), elements(&sums));
        squares::launch::<R>(&like.client, cubes, dim, lanes, of_tensor, of_sums, (i * CUBES) as u32, THREADS);
    }
    sum_of_list(&sums)
}
