//! From NF4 to f32, for any range of a flattened weight: the hot path of the CPU's matmul.

use super::{NF4_TABLE, simd};

/// Decodes elements `start..start + out.len()` of the flattened weight; `absmax` holds one decoded scale per block.
///
/// Each value is `level * absmax` in f32, whichever instructions do it.
pub fn decode(packed: &[u8], absmax: &[f32], block_size: usize, start: usize, out: &mut [f32]) {
    let mut position = start;
    let mut rest = out;
    while !rest.is_empty() {
        let block = position / block_size;
        let length = rest.len().min((block + 1) * block_size - position);
        let (piece, after) = rest.split_at_mut(length);
        decode_piece(packed, absmax[block], position, piece);
        position += length;
        rest = after;
    }
}

/// Decodes a range inside one block.
fn decode_piece(packed: &[u8], scale: f32, start: usize, out: &mut [f32]) {
    let value = |nibble: u8| NF4_TABLE[nibble as usize] * scale;
    let (head, body) = out.split_at_mut((start % 2).min(out.len()));
    if let [first] = head {
        *first = value(packed[start / 2] & 15);
    }
    let from = start.div_ceil(2);
    let (pairs, tail) = body.split_at_mut(body.len() / 2 * 2);
    simd::decode_pairs(&packed[from..from + pairs.len() / 2], scale, pairs);
    if let [last] = tail {
        *last = value(packed[from + pairs.len() / 2] >> 4);
    }
}
