//! A weight in parts of whole output features, for devices that hold no more than so many bytes in one piece.

use std::ops::Range;

use super::{Absmax, NESTED_BLOCK_SIZE, Nf4Data};

/// Parts begin at a multiple of so many features: kernels want the rows of a part, and of what is multiplied with it, aligned.
const ALIGNMENT: usize = 64;

impl Nf4Data {
    /// How many output features a part has so that its codes are at most `most` bytes: all, where they are. A part begins
    /// where a block does, and under double quantization a block of scales; where that leaves no part that is small enough, the
    /// smallest there is.
    pub fn features_within(&self, most: u64) -> usize {
        let [out, input] = self.shape;
        if self.packed.len() as u64 <= most {
            return out;
        }
        let unit = match self.absmax {
            Absmax::Plain(_) => self.block_size,
            Absmax::Double { .. } => self.block_size * NESTED_BLOCK_SIZE,
        };
        // Both are powers of two, as the block size is: the larger is a multiple of the other.
        let step = (unit >> input.trailing_zeros().min(unit.trailing_zeros())).max(ALIGNMENT);
        let fitting = usize::try_from(2 * most / input as u64).unwrap_or(usize::MAX);
        (fitting / step * step).clamp(step, out.max(step))
    }

    /// Some of the output features as a weight of their own; the range begins at a multiple of
    /// [`features_within`](Self::features_within).
    pub fn features(&self, features: Range<usize>) -> Self {
        let input = self.shape[1];
        let (first, count) = (features.start * input, features.len() * input);
        let (block, blocks) = (first / self.block_size, count.div_ceil(self.block_size));
        let absmax = match &self.absmax {
            Absmax::Plain(values) => Absmax::Plain(values[block..block + blocks].to_vec()),
            Absmax::Double { codes, nested, offset } => {
                let first = block / NESTED_BLOCK_SIZE;
                Absmax::Double {
                    codes: codes[block..block + blocks].to_vec(),
                    nested: nested[first..first + blocks.div_ceil(NESTED_BLOCK_SIZE)].to_vec(),
                    offset: *offset,
                }
            }
        };
        let packed = self.packed.slice(first / 2..(first + count).div_ceil(2));
        Self { shape: [features.len(), input], block_size: self.block_size, packed, absmax }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::{Nf4Data, quantize};

    #[test]
    fn parts_decode_to_the_whole() {
        let value = |i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0;
        for (shape, block_size, double, most, expected) in [
            ([200, 1024], 64, true, 40_000, 64),
            ([200, 1024], 64, true, 1, 64),
            ([130, 1024], 64, true, 66_560, 130),
            ([300, 96], 128, false, 4608, 64),
            // Blocks of scales end with every 512th row.
            ([1100, 32], 64, true, 16_384, 1024),
            ([1100, 32], 64, true, 16_383, 512),
            ([2049, 15], 32, true, 15_000, 8192),
        ] {
            let weights: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
            let whole = quantize(&weights, shape, block_size, double).unwrap();
            let at_once = whole.features_within(most);
            assert_eq!(at_once, expected, "{shape:?} within {most} bytes");
            let part = |first: usize| whole.features(first..(first + at_once).min(shape[0]));
            let parts: Vec<Nf4Data> = (0..shape[0]).step_by(at_once).map(part).collect();
            parts.iter().for_each(|part| part.validate().unwrap());
            assert_eq!(parts.iter().flat_map(Nf4Data::dequantize).collect::<Vec<_>>(), whole.dequantize());
        }
    }
}
