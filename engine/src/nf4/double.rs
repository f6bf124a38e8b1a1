//! Double quantization: the blocks' scales, their mean subtracted, quantized to 8 bits in blocks of 256.

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
        codes.extend(block.iter().map(|value| nearest(value / scale)));
    }
    Absmax::Double { codes, nested, offset }
}

/// The scales, decoded: `map[code] * nested + offset`, rounded after the product and after the sum.
pub(super) fn decode(codes: &[u8], nested: &[f32], offset: f32) -> Vec<f32> {
    let map = dynamic_map();
    codes.iter().enumerate().map(|(i, code)| map[*code as usize] * nested[i / NESTED_BLOCK_SIZE] + offset).collect()
}

/// The nearest level, the lower one of two that are as near; 0/0, in a block of zeros, falls to code 0 as it does in the
/// reference.
fn nearest(value: f32) -> u8 {
    let map = dynamic_map();
    let above = map.partition_point(|level| *level <= value);
    let left = above.saturating_sub(1).min(255);
    let level = |i: usize| if i == 0 { -1.0 } else { map[i] };
    let closer = left < 255 && (level(left + 1) - value).abs() < (value - level(left)).abs();
    (left + usize::from(closer)) as u8
}
