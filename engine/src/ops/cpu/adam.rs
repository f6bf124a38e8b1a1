//! Adam on the CPU: one pass over the elements, all cores, each loop compiled for the widest vectors of the processor.
//!
//! Products and sums are fused where PyTorch's vector code fuses them, so that 8-bit moments are bitsandbytes' to the bit.

use pulp::Arch;
use rayon::prelude::*;

use crate::nf4::DynamicCode;
use crate::ops::{AdamStep, MOMENT_BLOCK};

/// Elements that one task handles, a multiple of a block.
const TASK: usize = 1 << 14;

/// Both moments of a run of elements, 8 bits each: codes and scales.
pub(super) struct EightBit<'a> {
    pub(super) codes: [&'a [u8]; 2],
    pub(super) absmax: [&'a [f32]; 2],
}

/// The constants of the moments' decay in f32.
#[derive(Clone, Copy)]
struct Mix {
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
}

impl Mix {
    fn new([beta1, beta2]: [f64; 2]) -> Self {
        let [rest1, rest2] = [1.0 - beta1, 1.0 - beta2].map(|x| x as f32);
        Self { beta1: beta1 as f32, beta2: beta2 as f32, rest1, rest2 }
    }

    #[inline(always)]
    fn first(self, moment: f32, gradient: f32) -> f32 {
        gradient.mul_add(self.rest1, moment * self.beta1)
    }

    #[inline(always)]
    fn second(self, moment: f32, gradient: f32) -> f32 {
        (self.rest2 * gradient).mul_add(gradient, moment * self.beta2)
    }
}

/// The constants of an update in f32.
#[derive(Clone, Copy)]
struct Update {
    mix: Mix,
    keep: f32,
    rate: f32,
    correction: f32,
    eps: f32,
}

impl Update {
    fn new(step: AdamStep) -> Self {
        let [correction1, correction2] = step.corrections();
        Self {
            mix: Mix::new(step.betas),
            keep: (1.0 - step.rate * step.decay) as f32,
            rate: (-step.rate / correction1) as f32,
            correction: correction2 as f32,
            eps: step.eps as f32,
        }
    }

    #[inline(always)]
    fn value(self, [first, second]: [f32; 2], gradient: f32, value: f32) -> f32 {
        let denominator = self.mix.second(second, gradient).sqrt() / self.correction + self.eps;
        value * self.keep + self.rate * self.mix.first(first, gradient) / denominator
    }
}

/// f32 moments after one more gradient, in place.
pub(super) fn advance([first, second]: [&mut [f32]; 2], gradient: &[f32], betas: [f64; 2]) {
    let mix = Mix::new(betas);
    let tasks = first.par_chunks_mut(TASK).zip(second.par_chunks_mut(TASK)).zip(gradient.par_chunks(TASK));
    tasks.for_each(|((first, second), gradient)| {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for ((first, second), gradient) in first.iter_mut().zip(second).zip(gradient) {
                    *first = mix.first(*first, *gradient);
                    *second = mix.second(*second, *gradient);
                }
            },
        );
    });
}

/// Values after a step, from f32 moments before it.
pub(super) fn apply([first, second]: [&[f32]; 2], gradient: &[f32], value: &[f32], step: AdamStep) -> Vec<f32> {
    let update = Update::new(step);
    let mut out = vec![0.0; value.len()];
    let moments = first.par_chunks(TASK).zip(second.par_chunks(TASK));
    let inputs = gradient.par_chunks(TASK).zip(value.par_chunks(TASK));
    out.par_chunks_mut(TASK).zip(moments).zip(inputs).for_each(|((out, (first, second)), (gradient, value))| {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                let inputs = first.iter().zip(second).zip(gradient.iter().zip(value));
                for (out, ((first, second), (gradient, value))) in out.iter_mut().zip(inputs) {
                    *out = update.value([*first, *second], *gradient, *value);
                }
            },
        );
    });
    out
}

/// 8-bit moments after one more gradient, in place.
pub(super) fn advance_8bit(codes: [&mut [u8]; 2], absmax: [&mut [f32]; 2], gradient: &[f32], betas: [f64; 2]) {
    let mix = Mix::new(betas);
    let ([codes1, codes2], [absmax1, absmax2]) = (codes, absmax);
    const SCALES: usize = TASK / MOMENT_BLOCK;
    let codes = codes1.par_chunks_mut(TASK).zip(codes2.par_chunks_mut(TASK));
    let absmax = absmax1.par_chunks_mut(SCALES).zip(absmax2.par_chunks_mut(SCALES));
    let tasks = codes.zip(absmax).zip(gradient.par_chunks(TASK));
    tasks.for_each(|(((codes1, codes2), (absmax1, absmax2)), gradient)| {
        let (signed, unsigned) = (DynamicCode::signed(), DynamicCode::unsigned());
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for (i, gradient) in gradient.chunks(MOMENT_BLOCK).enumerate() {
                    let range = i * MOMENT_BLOCK..i * MOMENT_BLOCK + gradient.len();
                    let (codes1, codes2) = (&mut codes1[range.clone()], &mut codes2[range]);
                    let mut first = decode(signed, codes1, absmax1[i]);
                    let mut second = decode(unsigned, codes2, absmax2[i]);
                    for ((first, second), gradient) in first.iter_mut().zip(&mut second).zip(gradient) {
                        *first = mix.first(*first, *gradient);
                        *second = mix.second(*second, *gradient);
                    }
                    absmax1[i] = signed.encode(&first[..gradient.len()], codes1);
                    absmax2[i] = unsigned.encode(&second[..gradient.len()], codes2);
                }
            },
        );
    });
}

/// Values after a step, from 8-bit moments before it.
pub(super) fn apply_8bit(moments: &EightBit, gradient: &[f32], value: &[f32], step: AdamStep) -> Vec<f32> {
    let update = Update::new(step);
    let mut out = vec![0.0; value.len()];
    let inputs = gradient.par_chunks(TASK).zip(value.par_chunks(TASK));
    out.par_chunks_mut(TASK).zip(inputs).enumerate().for_each(|(task, (out, (gradient, value)))| {
        let (signed, unsigned) = (DynamicCode::signed(), DynamicCode::unsigned());
        Arch::new().dispatch(
            #[inline(always)]
            || {
                let blocks =
                    out.chunks_mut(MOMENT_BLOCK).zip(gradient.chunks(MOMENT_BLOCK).zip(value.chunks(MOMENT_BLOCK)));
                for (i, (out, (gradient, value))) in blocks.enumerate() {
                    let block = task * (TASK / MOMENT_BLOCK) + i;
                    let start = block * MOMENT_BLOCK;
                    let [codes1, codes2] = moments.codes.map(|codes| &codes[start..start + out.len()]);
                    let first = decode(signed, codes1, moments.absmax[0][block]);
                    let second = decode(unsigned, codes2, moments.absmax[1][block]);
                    let inputs = first.iter().zip(&second).zip(gradient.iter().zip(value));
                    for (out, ((first, second), (gradient, value))) in out.iter_mut().zip(inputs) {
                        *out = update.value([*first, *second], *gradient, *value);
                    }
                }
            },
        );
    });
    out
}

/// A block in f32; beyond its codes, zeros.
#[inline(always)]
fn decode(code: &DynamicCode, codes: &[u8], absmax: f32) -> [f32; MOMENT_BLOCK] {
    let mut out = [0.0; MOMENT_BLOCK];
    for (out, byte) in out.iter_mut().zip(codes) {
        *out = code.levels()[usize::from(*byte)] * absmax;
    }
    out
}
