//! Double quantization: the blocks' scales, their mean subtracted, quantized to 8 bits in blocks of 256.

use super::sum::mean;
use super::{Absmax, DynamicCode, NESTED_BLOCK_SIZE, dynamic_map};

/// Quantizes the scales of all blocks.
pub(super) fn encode(absmax: &[f32]) -> Absmax {
    let offset = mean(absmax);
    let centred: Vec<f32> = absmax.iter().map(|v| v - offset).collect();
    let mut codes = vec![0; absmax.len()];
    let blocks = centred.chunks(NESTED_BLOCK_SIZE).zip(codes.chunks_mut(NESTED_BLOCK_SIZE));
    let nested = blocks.map(|(block, codes)| DynamicCode::signed().encode(block, codes)).collect();
    Absmax::Double { codes, nested, offset }
}

/// The scales, decoded: `map[code] * nested + offset`, rounded after the product and after the sum.
pub(super) fn decode(codes: &[u8], nested: &[f32], offset: f32) -> Vec<f32> {
    let map = dynamic_map();
    codes.iter().enumerate().map(|(i, code)| map[*code as usize] * nested[i / NESTED_BLOCK_SIZE] + offset).collect()
}
