//! Double quantization: the blocks' scales, their mean subtracted, quantized to 8 bits in blocks of 256.

use std::sync::OnceLock;

use super::sum::mean;
use super::{Absmax, NESTED_BLOCK_SIZE, dynamic_map};

/// Quantizes the scales of all blocks.
pub(super) fn encode(absmax: &[f32]) -> Absmax {
    let offset = mean(absmax);
    let centred: Vec<f32> = absmax.iter().map(|v| v - offset).collect();
    let mut codes = Vec::with_capacity(absmax.len());
    let mut nested = Vec::with_capacity(absmax.len().div_ceil(NESTED_BLOCK_SIZE));
    for block in centred.chunks(NESTED_BLOCK_SIZE) {
        let scale = block.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        nested.push(scale);
        let reciprocal = 1.0 / scale;
        codes.extend(block.iter().map(|value| if scale == 0.0 { 0 } else { level(value * reciprocal) }));
    }
    Absmax::Double { codes, nested, offset }
}

/// The scales, decoded: `map[code] * nested + offset`, rounded after the product and after the sum.
pub(super) fn decode(codes: &[u8], nested: &[f32], offset: f32) -> Vec<f32> {
    let map = dynamic_map();
    codes.iter().enumerate().map(|(i, code)| map[*code as usize] * nested[i / NESTED_BLOCK_SIZE] + offset).collect()
}

/// The level of a scaled value: rounded to one of 65,536 equal steps from -1 to 1 and then to the nearest level by
/// midpoints, the lower one of two that are as near.
///
/// The steps are what bitsandbytes' CPU build looks codes up by (`cpu_ops.cpp`, `quantize_cpu_impl`); around zero, where
/// levels are closer than steps, it makes a few codes differ from those of its CUDA build. A scale so small that its
/// reciprocal is infinite turns zero into NaN, and that into code 0, there as here.
fn level(value: f32) -> u8 {
    const STEPS: f32 = 65535.0;
    let index = ((value.clamp(-1.0, 1.0) + 1.0) * 0.5).mul_add(STEPS, 0.5) as u16;
    let rounded = 2.0 * f32::from(index) / STEPS - 1.0;
    midpoints().partition_point(|midpoint| *midpoint < rounded) as u8
}

/// The midpoints between neighbouring levels of the dynamic map.
fn midpoints() -> &'static [f32; 255] {
    static MIDPOINTS: OnceLock<[f32; 255]> = OnceLock::new();
    let map = dynamic_map();
    MIDPOINTS.get_or_init(|| std::array::from_fn(|i| (map[i] + map[i + 1]) * 0.5))
}
