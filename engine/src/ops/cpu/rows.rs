//! Operations that go row by row: norm, gate, rotation, cross entropy. Rows are shared out over the cores, and each
//! loop is compiled for the widest vectors that the processor has.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::ops::Activation;

/// Floats that one task handles.
const TASK: usize = 1 << 14;

fn rows_of(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// `e^x` without a branch or a call, so that loops over it become vector code: `2^k · e^r` with `|r| <= ln 2 / 2` and a
/// polynomial of degree 6; the relative error is below 2e-7. Below -87 the result is zero.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let k = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = clamped - k * LN2_HIGH - k * LN2_LOW;
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let poly = series.iter().fold(0.0, |sum, c| sum * r + c);
    let power = f32::from_bits((((k as i32) + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { poly * power }
}

/// The sum of `f` over two rows, in sixteen lanes.
#[inline(always)]
fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| f(*a, *b)).sum();
    for (a, b) in a16.zip(b16) {
        for i in 0..16 {
            lanes[i] += f(a[i], b[i]);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Calls `f` in a function that has the machine's widest vectors, into which it is inlined if it is `#[inline(always)]`.
///
/// A closure that pulp's `dispatch` takes, as one that is called once, is called by a shim where it could be called again, and what
/// the shim calls has the vectors of the oldest machine.
#[inline(always)]
pub(super) fn vectorized<R>(f: impl FnMut() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnMut() -> R> WithSimd for Call<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Call(f))
}

/// The inner product.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    vectorized(
        #[inline(always)]
        || sum2(a, b, |a, b| a * b),
    )
}

/// The largest of a row, in sixteen lanes.
#[inline(always)]
pub(super) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().fold(tail, |a, b| a.max(*b))
}

/// The exponentials of a row minus its largest, in place, and their sum.
#[inline(always)]
pub(super) fn exponentials(row: &mut [f32], largest: f32) -> f32 {
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    sum2(row, row, |a, _| a)
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    let mean = f64::from(sum2(x, x, |a, b| a * b)) / x.len() as f64;
    (1.0 / (mean + eps).sqrt()) as f32
}

pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let width = weight.len();
    let mut y = vec![0.0; x.len()];
    let task = rows_of(width) * width;
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
                    let inverse = inverse_rms(x, eps);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = x * inverse * w;
                    }
                }
            },
        );
    });
    y
}

pub(super) fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    eps: f64,
    for_weight: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let width = weight.len();
    let mut d_x = vec![0.0; x.len()];
    let task = rows_of(width) * width;
    let chunks = d_x.par_chunks_mut(task).zip(x.par_chunks(task)).zip(grad.par_chunks(task));
    let parts: Vec<Vec<f32>> = chunks
        .map(|((d_x, x), grad)| {
            let mut d_weight = vec![0.0; if for_weight { width } else { 0 }];
            vectorized(
                #[inline(always)]
                || {
                    for ((d_x, x), grad) in d_x.chunks_mut(width).zip(x.chunks(width)).zip(grad.chunks(width)) {
                        let inverse = inverse_rms(x, eps);
                        for ((d, g), w) in d_x.iter_mut().zip(grad).zip(weight) {
                            *d = g * w;
                        }
                        let along = sum2(d_x, x, |d, x| d * x) * inverse * inverse / width as f32;
                        for (d, x) in d_x.iter_mut().zip(x) {
                            *d = (*d - x * along) * inverse;
                        }
                        for ((d, g), x) in d_weight.iter_mut().zip(grad).zip(x) {
                            *d += g * x * inverse;
                        }
                    }
                },
            );
            d_weight
        })
        .collect();
    let d_weight = for_weight.then(|| {
        let mut sum = vec![0.0; width];
        for part in parts {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        sum
    });
    (d_x, d_weight)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent: a quotient of polynomials, the seventh convergent of Lambert's continued fraction, up to 1, and
/// by `e^2x` beyond; the relative error is below 3e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let above = ((square + 378.0) * square + 17_325.0) * square + 135_135.0;
    let below = ((28.0 * square + 3_150.0) * square + 62_370.0) * square + 135_135.0;
    let size = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    if size < 1.0 { x * above / below } else { far.copysign(x) }
}

pub(super) fn gated(gate: &[f32], up: &[f32], activation: Activation) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    let (linear, cubic) = activation.coefficients();
    y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK)).zip(up.par_chunks(TASK)).for_each(|((y, gate), up)| {
        vectorized(
            #[inline(always)]
            || {
                for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                    *y = g * sigmoid(g * (linear + cubic * g * g)) * u;
                }
            },
        );
    });
    y
}

pub(super) fn gated_backward(gate: &[f32], up: &[f32], grad: &[f32], activation: Activation) -> (Vec<f32>, Vec<f32>) {
    let (mut d_gate, mut d_up) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    let (linear, cubic) = activation.coefficients();
    let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(grad.par_chunks(TASK));
    d_gate.par_chunks_mut(TASK).zip(d_up.par_chunks_mut(TASK)).zip(inputs).for_each(
        |((d_gate, d_up), ((gate, up), grad))| {
            vectorized(
                #[inline(always)]
                || {
                    let inputs = gate.iter().zip(up).zip(grad);
                    for ((d_gate, d_up), ((g, u), grad)) in d_gate.iter_mut().zip(d_up.iter_mut()).zip(inputs) {
                        let sigma = sigmoid(g * (linear + cubic * g * g));
                        let of_z = linear + 3.0 * cubic * g * g;
                        *d_up = grad * g * sigma;
                        *d_gate = grad * u * sigma * (1.0 + g * (1.0 - sigma) * of_z);
                    }
                },
            );
        },
    );
    (d_gate, d_up)
}

/// `x` has rows of `width`, heads of `head_dim` in them; `cos` and `sin` have rows of `head_dim`.
pub(super) fn rotate(x: &[f32], cos: &[f32], sin: &[f32], width: usize, head_dim: usize, back: bool) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let half = head_dim / 2;
    let direction = if back { -1.0 } else { 1.0 };
    let rows = rows_of(width);
    let chunks = y.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width));
    let tables = cos.par_chunks(rows * head_dim).zip(sin.par_chunks(rows * head_dim));
    chunks.zip(tables).for_each(|((y, x), (cos, sin))| {
        vectorized(
            #[inline(always)]
            || {
                let tables = cos.chunks(head_dim).zip(sin.chunks(head_dim));
                for ((y, x), (cos, sin)) in y.chunks_mut(width).zip(x.chunks(width)).zip(tables) {
                    for (y, x) in y.chunks_mut(head_dim).zip(x.chunks(head_dim)) {
                        for i in 0..half {
                            y[i] = x[i] * cos[i] + direction * x[i + half] * sin[i];
                            y[i + half] = x[i + half] * cos[i + half] + direction * x[i] * sin[i + half];
                        }
                    }
                }
            },
        );
    });
    y
}

pub(super) fn cross_entropy(logits: &[f32], targets: &[i32], vocab: usize) -> (f32, Vec<f32>) {
    let mut gradient = logits.to_vec();
    let losses: Vec<f64> = gradient
        .par_chunks_mut(vocab)
        .zip(targets)
        .map(|(row, target)| {
            let target = *target as usize;
            vectorized(
                #[inline(always)]
                || {
                    let (largest, of_target) = (max(row), row[target]);
                    let sum = exponentials(row, largest);
                    let inverse = 1.0 / sum;
                    for x in row.iter_mut() {
                        *x *= inverse;
                    }
                    row[target] -= 1.0;
                    f64::from(sum).ln() - f64::from(of_target - largest)
                },
            )
        })
        .collect();
    (losses.iter().sum::<f64>() as f32, gradient)
}

#[cfg(test)]
mod tests {
    use super::{exp, tanh};

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8_700..=8_800 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 3e-7, "exp({x})");
        }
        assert_eq!((exp(-1e30), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
    }

    #[test]
    fn tanh_is_close_everywhere() {
        for i in -2_000..=2_000 {
            let x = i as f32 / 100.0;
            let (found, expected) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!((found - expected).abs() <= 3e-7 * expected.abs(), "tanh({x}) = {found}, not {expected}");
        }
        assert_eq!((tanh(1e30), tanh(-1e30), tanh(f32::INFINITY)), (1.0, -1.0, 1.0));
    }
}
