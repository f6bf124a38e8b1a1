//! Double quantization: the blocks' scales, their mean subtracted, quantized to 8 bits in blocks of 256.

use super::sum::mean;
use super::threads::for_each;
use super::{Absmax, DynamicCode, NESTED_BLOCK_SIZE, dynamic_map};

/// Blocks that a thread takes at a time.
const GROUP: usize = 64;

/// Quantizes the scales of all blocks.
pub(super) fn encode(absmax: &[f32]) -> Absmax {
    let offset = mean(absmax);
    let mut codes = vec![0; absmax.len()];
    let mut nested = vec![0.0; absmax.len().div_ceil(NESTED_BLOCK_SIZE)];
    let at_once = GROUP * NESTED_BLOCK_SIZE;
    let pieces = absmax.chunks(at_once).zip(codes.chunks_mut(at_once)).zip(nested.chunks_mut(GROUP));
    for_each(pieces, |((absmax, codes), nested)| group(absmax, offset, codes, nested));
    Absmax::Double { codes, nested, offset }
}

/// Blocks that follow each other. Which instructions there are is asked once for all of them.
fn group(absmax: &[f32], offset: f32, codes: &mut [u8], nested: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        #[target_feature(enable = "avx2,fma")]
        fn fused(absmax: &[f32], offset: f32, codes: &mut [u8], nested: &mut [f32]) {
            blocks(absmax, offset, codes, nested);
        }
        // SAFETY: the processor has the instructions.
        return unsafe { fused(absmax, offset, codes, nested) };
    }
    blocks(absmax, offset, codes, nested);
}

/// The same with whatever instructions the caller has. Without one that multiplies and adds, each scale is a call.
#[inline(always)]
fn blocks(absmax: &[f32], offset: f32, codes: &mut [u8], nested: &mut [f32]) {
    let mut centred = [0.0; NESTED_BLOCK_SIZE];
    let blocks = absmax.chunks(NESTED_BLOCK_SIZE).zip(codes.chunks_mut(NESTED_BLOCK_SIZE));
    for ((absmax, codes), nested) in blocks.zip(nested) {
        let centred = &mut centred[..absmax.len()];
        centred.iter_mut().zip(absmax).for_each(|(centred, absmax)| *centred = absmax - offset);
        *nested = DynamicCode::signed().encode(centred, codes);
    }
}

/// The scales, decoded: `map[code] * nested + offset`, rounded after the product and after the sum.
pub(super) fn decode(codes: &[u8], nested: &[f32], offset: f32) -> Vec<f32> {
    let map = dynamic_map();
    codes.iter().enumerate().map(|(i, code)| map[*code as usize] * nested[i / NESTED_BLOCK_SIZE] + offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_instructions_there_are_the_codes_are_the_same() {
        for count in [1, 255, 257, 40_000] {
            let absmax: Vec<f32> =
                (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-9).collect();
            let Absmax::Double { codes, nested, offset } = encode(&absmax) else { panic!("quantized twice") };
            let mut of_plain_code = (vec![0; codes.len()], vec![0.0; nested.len()]);
            blocks(&absmax, offset, &mut of_plain_code.0, &mut of_plain_code.1);
            assert_eq!((codes, nested), of_plain_code, "{count} scales");
        }
    }
}
