//! Block-wise quantization to 8 bits with a dynamic map (8-bit optimizers, arXiv:2110.02861, sections 1.2 and 1.3), as
//! bitsandbytes' CPU build does it: the scales of NF4 blocks and the state of 8-bit optimizers are held so.

use std::sync::LazyLock;

use super::table::{dynamic_map, unsigned_dynamic_map};

/// Equal steps from -1 to 1 that codes are looked up by.
const STEPS: f32 = 65535.0;
/// Values whose steps are computed at a time.
const RUN: usize = 64;

/// An 8-bit data type: 256 levels from -1 or 0 to 1 in rising order, and the code of every step between them.
#[derive(Debug)]
pub struct DynamicCode {
    levels: &'static [f32; 256],
    codes: Box<[u8; 1 << 16]>,
}

impl DynamicCode {
    /// For values of both signs.
    pub fn signed() -> &'static Self {
        static CODE: LazyLock<DynamicCode> = LazyLock::new(|| DynamicCode::new(dynamic_map()));
        &CODE
    }

    /// For values that are never negative, with twice the levels for them.
    pub fn unsigned() -> &'static Self {
        static CODE: LazyLock<DynamicCode> = LazyLock::new(|| DynamicCode::new(unsigned_dynamic_map()));
        &CODE
    }

    /// Each of the 65,536 steps belongs to the nearest level by midpoints, the lower one of two that are as near.
    fn new(levels: &'static [f32; 256]) -> Self {
        let midpoints: [f32; 255] = std::array::from_fn(|i| (levels[i] + levels[i + 1]) * 0.5);
        let code = |step: u16| {
            let rounded = 2.0 * f32::from(step) / STEPS - 1.0;
            midpoints.partition_point(|midpoint| *midpoint < rounded) as u8
        };
        Self { levels, codes: Box::new(std::array::from_fn(|step| code(step as u16))) }
    }

    /// The value of each code.
    pub fn levels(&self) -> &'static [f32; 256] {
        self.levels
    }

    /// The code of each of the 65,536 steps from -1 to 1.
    pub fn codes(&self) -> &[u8; 1 << 16] {
        &self.codes
    }

    /// Quantizes a block into `codes` of the same length and returns its scale, the largest magnitude.
    #[inline(always)]
    pub fn encode(&self, block: &[f32], codes: &mut [u8]) -> f32 {
        let scale = largest(block);
        if scale == 0.0 {
            codes.fill(0);
            return scale;
        }
        let reciprocal = 1.0 / scale;
        // Arithmetic in one loop and look-ups in another: the first becomes vector code.
        let mut steps = [0u16; RUN];
        for (codes, values) in codes.chunks_mut(RUN).zip(block.chunks(RUN)) {
            for (step, value) in steps.iter_mut().zip(values) {
                *step = self::step(value * reciprocal);
            }
            for (code, step) in codes.iter_mut().zip(&steps) {
                *code = self.codes[usize::from(*step)];
            }
        }
        scale
    }
}

/// The step that a value from -1 to 1 is rounded to, before it is given the nearest level.
///
/// The steps are what bitsandbytes' CPU build looks codes up by (`cpu_ops.cpp`, `quantize_cpu_impl`); around zero, where
/// levels are closer than steps, they make a few codes differ from those of its CUDA build. NaN is step 0, there as
/// here: a scale so small that its reciprocal is infinite makes it of zero.
#[inline(always)]
fn step(value: f32) -> u16 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 0.5).mul_add(STEPS, 0.5) as u16
}

/// The largest magnitude, in sixteen lanes.
#[inline(always)]
fn largest(block: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = block.chunks_exact(16);
    let tail = chunks.remainder().iter().fold(0.0f32, |max, v| max.max(v.abs()));
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if value.abs() > *lane { value.abs() } else { *lane };
        }
    }
    lanes.iter().fold(tail, |max, lane| max.max(*lane))
}
