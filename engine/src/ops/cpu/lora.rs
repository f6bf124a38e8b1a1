//! A frozen linear layer with a low-rank branch beside it. Every product adds into the result of the one before, so that
//! nothing but the results and two tensors of width `r` is written.

use burn::tensor::FloatDType;
use burn_flex::Flex;
use rayon::prelude::*;

use super::matrix::{Threads, View, matmul, product};
use super::rows::vectorized;
use super::{floats, nf4, write};
use crate::ops::dropout::GROUP;
use crate::ops::{Dropped, Frozen, Product};

/// Floats that one task of an elementwise product handles, whole groups of dropout.
const TASK: usize = 1 << 14;

/// The operands of the branch on the host.
pub(super) struct Branch<'a> {
    /// `[r, in]`.
    pub a: &'a [f32],
    /// `[out, r]`.
    pub b: &'a [f32],
    /// What is dropped of the input.
    pub dropped: Option<Dropped>,
    pub scaling: f32,
    pub rank: usize,
}

/// `[rows, width]`, row-major.
fn rows_of(x: &[f32], width: usize) -> View<'_> {
    View::new(x, 0, [x.len() / width, width], [width, 1])
}

/// Either product of rows with a frozen weight.
fn frozen(x: &[f32], weight: &Frozen<Flex>, [out, input]: [usize; 2], side: Product) -> Vec<f32> {
    match weight {
        Frozen::Nf4(weight) => {
            let mut parts = weight.parts();
            match (parts.next(), parts.next()) {
                (Some((whole, _)), None) => nf4::matmul(x, whole, side, None),
                _ => {
                    let (width, _) = side.widths(weight.shape());
                    let x = write(x.to_vec(), [x.len() / width, width]);
                    let y = weight.product(x, side, None, FloatDType::F32);
                    floats(&y.to_contiguous()).to_vec()
                }
            }
        }
        Frozen::Dense(weight) => {
            let weight = weight.to_contiguous();
            let dense = View::new(floats(&weight), 0, [out, input], [input, 1]);
            match side {
                Product::Forward => product(rows_of(x, input), dense.t(), 1.0, Threads::All),
                Product::InputGradient => product(rows_of(x, out), dense, 1.0, Threads::All),
            }
        }
    }
}

/// Dropout of a group of elements, which may be cut off.
#[inline(always)]
fn drop_group(x: &mut [f32], group: usize, dropped: Dropped) {
    x.iter_mut().zip(dropped.factors(group)).for_each(|(x, factor)| *x *= factor);
}

/// What dropout leaves of `x`.
pub(super) fn dropout(mut x: Vec<f32>, dropped: Dropped) -> Vec<f32> {
    x.par_chunks_mut(TASK).enumerate().for_each(|(task, x)| {
        vectorized(
            #[inline(always)]
            || {
                let mut group = task * (TASK / GROUP);
                let mut whole = x.chunks_exact_mut(GROUP);
                for x in &mut whole {
                    drop_group(x, group, dropped);
                    group += 1;
                }
                drop_group(whole.into_remainder(), group, dropped);
            },
        );
    });
    x
}

/// The layer's output, and the branch's inner activations `[tokens, r]`.
pub(super) fn forward(x: &[f32], weight: &Frozen<Flex>, branch: &Branch) -> [Vec<f32>; 2] {
    let Branch { a, b, dropped, scaling, rank } = *branch;
    let (out, input) = (b.len() / rank, a.len() / rank);
    let kept = dropped.map(|dropped| dropout(x.to_vec(), dropped));
    let low = product(rows_of(kept.as_deref().unwrap_or(x), input), rows_of(a, input).t(), 1.0, Threads::All);
    let mut y = frozen(x, weight, [out, input], Product::Forward);
    matmul(rows_of(&low, rank), rows_of(b, rank).t(), (&mut y, out), scaling, true, Threads::All);
    [y, low]
}

/// The gradients for `x`, where it is asked for, `a` and `b`.
pub(super) fn backward(
    [x, low]: [&[f32]; 2],
    weight: &Frozen<Flex>,
    branch: &Branch,
    grad: &[f32],
    for_x: bool,
) -> (Option<Vec<f32>>, Vec<f32>, Vec<f32>) {
    let Branch { a, b, dropped, scaling, rank } = *branch;
    let (out, input) = (b.len() / rank, a.len() / rank);
    let dy = rows_of(grad, out);
    let d_low = product(dy, rows_of(b, rank), scaling, Threads::All);
    let d_b = product(dy.t(), rows_of(low, rank), scaling, Threads::All);
    let kept = dropped.map(|dropped| dropout(x.to_vec(), dropped));
    let d_a = product(rows_of(&d_low, rank).t(), rows_of(kept.as_deref().unwrap_or(x), input), 1.0, Threads::All);
    let d_x = for_x.then(|| {
        let mut d_x = frozen(grad, weight, [out, input], Product::InputGradient);
        let (d_low, a) = (rows_of(&d_low, rank), rows_of(a, input));
        match dropped {
            None => matmul(d_low, a, (&mut d_x, input), 1.0, true, Threads::All),
            Some(dropped) => {
                let of_branch = dropout(product(d_low, a, 1.0, Threads::All), dropped);
                let terms = d_x.par_chunks_mut(TASK).zip(of_branch.par_chunks(TASK));
                terms.for_each(|(d_x, branch)| d_x.iter_mut().zip(branch).for_each(|(d, b)| *d += b));
            }
        }
        d_x
    });
    (d_x, d_a, d_b)
}
