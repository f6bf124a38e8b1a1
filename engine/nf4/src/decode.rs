//! From NF4 to f32, for any range of a flattened weight: the hot path of the CPU's matmul.

use super::{NF4_TABLE, simd};

/// Decodes elements `start..start + out.len()` of the flattened weight; `absmax` holds one decoded scale per block.
///
/// Each value is `level * absmax` in f32, whichever instructions do it.
pub fn decode(packed: &[u8], absmax: &[f32], block_size: usize, start: usize, out: &mut [f32]) {
    // A range may begin and end inside a block; what lies between is whole blocks, which begin at a whole byte.
    let (head, rest) = out.split_at_mut((start.next_multiple_of(block_size) - start).min(out.len()));
    if !head.is_empty() {
        decode_piece(packed, absmax[start / block_size], start, head);
    }
    let position = start + head.len();
    let (blocks, tail) = rest.split_at_mut(rest.len() / block_size * block_size);
    let first = position / block_size;
    let count = blocks.len() / block_size;
    let bytes = &packed[position / 2..][..blocks.len() / 2];
    simd::decode_blocks(bytes, &absmax[first..first + count], block_size, blocks);
    if !tail.is_empty() {
        decode_piece(packed, absmax[first + count], position + blocks.len(), tail);
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
    simd::decode_blocks(&packed[from..from + pairs.len() / 2], &[scale], pairs.len().max(2), pairs);
    if let [last] = tail {
        *last = value(packed[from + pairs.len() / 2] >> 4);
    }
}
