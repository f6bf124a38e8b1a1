//! Cross entropy of logits and its gradient, `softmax - onehot`: each row is read twice and written once, over the logits.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::CubeDim;
use cubecl::prelude::*;

use super::{
    contiguous, converted, elements, empty, lanes, max_of_cube, row, rowwise, sum_of_cube, sum_of_lanes, sum_of_list,
};
use crate::{SourceRuntime, view};

/// Below all logits, and finite: WGSL knows no infinity.
const LEAST: f32 = -3.0e38;

/// The sum of a row's exponentials is kept relative to the largest logit so far (arXiv:1805.02867): one read finds both. The gradient takes
/// the place of the logits, each element of which is then read by the thread alone that writes there.
#[cube(launch)]
fn of_rows<N: Size>(
    logits: &mut Array<Vector<f32, N>>,
    targets: &Array<i32>,
    losses: &mut Array<f32>,
    vectors: u32,
    #[comptime] threads: usize,
) {
    let (first, end) = row(logits.len(), vectors as usize);
    let start = first + UNIT_POS as usize;
    let mut largest = LEAST.runtime();
    let mut sum = 0.0f32;
    let mut i = start;
    while i < end {
        let values = logits[i];
        let before = largest;
        #[unroll]
        for lane in 0..N::value() {
            largest = max(largest, values[lane]);
        }
        sum = sum * (before - largest).exp() + sum_of_lanes((values - Vector::new(largest)).exp());
        i += threads;
    }
    let peak = max_of_cube(largest, threads);
    let sum = sum_of_cube(sum * (largest - peak).exp(), threads);
    let log = sum.ln();
    let mut i = start;
    while i < end {
        let shifted = logits[i] - Vector::new(peak);
        let mut share = shifted.exp() / Vector::new(sum);
        #[unroll]
        for lane in 0..N::value() {
            if (i - first) * N::value() + lane == targets[CUBE_POS] as usize {
                share[lane] -= 1.0;
                losses[CUBE_POS] = log - shifted[lane];
            }
        }
        logits[i] = share;
        i += threads;
    }
}

/// Cross entropy of f32 `logits` `[n, vocab]` against the integers `targets` `[n, 1]`, each below `vocab`: the sum of the losses
/// `[1]`, and its gradient for the logits, in their memory where nobody else has them.
pub fn cross_entropy<R: SourceRuntime>(logits: CubeTensor<R>, targets: CubeTensor<R>) -> [CubeTensor<R>; 2] {
    let (logits, targets) = (contiguous(logits), converted(targets, DType::I32));
    let [rows, vocab] = [logits.meta.shape()[0], logits.meta.shape()[1]];
    if rows * vocab == 0 {
        return [view::zeros(&logits, [1].into(), DType::F32), logits];
    }
    let logits = if logits.can_mut() { logits } else { logits.copy() };
    let losses = empty(&logits, [rows], DType::F32);
    let (client, lanes) = (&logits.client, lanes(vocab));
    let vectors = vocab / lanes;
    let (cubes, threads) = rowwise(rows, vectors);
    let dim = CubeDim::new_1d(threads as u32);
    let [of_logits, of_targets, of_losses] = [&logits, &targets, &losses].map(elements);
    of_rows::launch::<R>(client, cubes, dim, lanes, of_logits, of_targets, of_losses, vectors as u32, threads);
    [sum_of_list(&losses), logits]
}
