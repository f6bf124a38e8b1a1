//! From floats to NF4: a scale per block, then the nearest level for each element.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::codes::{self, RUN};
use super::threads::for_each;
use super::{Absmax, Invalid, Nf4Data, Result, check_block_size, checked_count};

/// The smallest scale that is divided by, so that a block of zeros does not divide by zero.
const TINY: f32 = 1e-38;
/// The code of 0.
const ZERO_CODE: u8 = 7;
/// The bits of infinity; those of NaN are more, without the sign.
const INFINITE: u32 = 0x7f80_0000;
/// Blocks that a thread takes at a time.
const GROUP: usize = 256;

/// What weights may be given in. 16 bits are widened a few at a time, so that a weight never exists whole in f32.
pub trait Float: Copy + Send + Sync {
    /// The same number.
    fn to_f32(self) -> f32;

    /// The same numbers.
    #[inline(always)]
    fn widen<const N: usize>(values: &[Self; N]) -> [f32; N] {
        values.map(Self::to_f32)
    }
}

impl Float for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Float for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn widen<const N: usize>(values: &[Self; N]) -> [f32; N] {
        let mut wide = [0.0; N];
        values.convert_to_f32_slice(&mut wide);
        wide
    }
}

/// Quantizes a row-major weight of `shape` `[out, in]` in blocks of `block_size` flattened elements.
///
/// bitsandbytes, `quantize_4bit`: a whole block is multiplied by the reciprocal of its scale, a short last block is
/// divided by it; what lies beyond an odd last element is the code of zero.
///
/// # Errors
/// When the length does not fit the shape, the block size is out of range, or a weight is NaN or infinite.
pub fn quantize<T: Float>(weights: &[T], shape: [usize; 2], block_size: usize, double_quant: bool) -> Result<Nf4Data> {
    check_block_size(block_size)?;
    if weights.len() != checked_count(shape)? {
        return Err(Invalid(format!("{} weights do not fill the shape {shape:?}", weights.len())));
    }
    let (packed, absmax) = quantize_blocks(weights, block_size);
    if absmax.iter().any(|scale| !scale.is_finite()) {
        let mut widened = weights.iter().map(|w| w.to_f32()).enumerate();
        let (index, value) = widened.find(|(_, w)| !w.is_finite()).unwrap_or((0, f32::NAN));
        let [row, column] = [index / shape[1].max(1), index % shape[1].max(1)];
        let reason = format!("weight [{row}, {column}] is {value}: only finite weights can be quantized");
        return Err(Invalid(reason));
    }
    let absmax = if double_quant { Absmax::double(&absmax) } else { Absmax::Plain(absmax) };
    Ok(Nf4Data { shape, block_size, packed: packed.into(), absmax })
}

/// The packed codes and the scale of every block; NaN or infinite for a block with such a weight, whose codes are 0.
pub fn quantize_blocks<T: Float>(weights: &[T], block_size: usize) -> (Vec<u8>, Vec<f32>) {
    let mut packed = vec![0u8; weights.len().div_ceil(2)];
    let mut absmax = vec![0.0f32; weights.len().div_ceil(block_size)];
    quantize_blocks_into(weights, block_size, &mut packed, &mut absmax);
    (packed, absmax)
}

/// [`quantize_blocks`] to where `ceil(n / 2)` bytes of zeros and `ceil(n / block_size)` scales are.
///
/// # Panics
/// When they are not as many.
pub fn quantize_blocks_into<T: Float>(weights: &[T], block_size: usize, packed: &mut [u8], absmax: &mut [f32]) {
    let count = weights.len();
    assert_eq!((packed.len(), absmax.len()), (count.div_ceil(2), count.div_ceil(block_size)), "{count} weights");
    let at_once = GROUP * block_size;
    let pieces = weights.chunks(at_once).zip(packed.chunks_mut(at_once / 2)).zip(absmax.chunks_mut(GROUP));
    for_each(pieces, |((weights, packed), absmax)| group(weights, packed, absmax, block_size));
}

/// Blocks that follow each other. Which instructions there are is asked once for all of them.
fn group<T: Float>(weights: &[T], packed: &mut [u8], absmax: &mut [f32], block_size: usize) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn avx2<T: Float>(weights: &[T], packed: &mut [u8], absmax: &mut [f32], block_size: usize) {
            blocks(weights, packed, absmax, block_size, |scaled| codes::avx2(scaled));
        }
        // SAFETY: the processor has the instructions.
        return unsafe { avx2(weights, packed, absmax, block_size) };
    }
    blocks(weights, packed, absmax, block_size, codes::portable);
}

/// The same with whatever instructions the caller has, and its way to find codes.
#[inline(always)]
fn blocks<T: Float>(
    weights: &[T],
    packed: &mut [u8],
    absmax: &mut [f32],
    block_size: usize,
    codes: impl Fn(&[f32; RUN]) -> [u8; RUN / 2],
) {
    let blocks = weights.chunks(block_size).zip(packed.chunks_mut(block_size / 2));
    for ((weights, packed), absmax) in blocks.zip(absmax) {
        *absmax = block(weights, packed, weights.len() == block_size, &codes);
    }
}

/// One block, whole or the short last one; its scale.
#[inline(always)]
fn block<T: Float>(weights: &[T], packed: &mut [u8], whole: bool, codes: impl Fn(&[f32; RUN]) -> [u8; RUN / 2]) -> f32 {
    let (runs, rest) = weights.as_chunks::<RUN>();
    // A short run is filled up with its first element, which changes no maximum; the codes of it are not kept.
    let filled = rest.first().map(|first| {
        let mut run = [*first; RUN];
        run[..rest.len()].copy_from_slice(rest);
        run
    });
    let runs = runs.iter().chain(&filled);
    // Of numbers without a sign the bits are in the same order, and NaN comes out on top.
    let mut largest = [0u32; RUN];
    for run in runs.clone() {
        for (largest, value) in largest.iter_mut().zip(T::widen(run)) {
            *largest = (*largest).max(value.to_bits() & 0x7fff_ffff);
        }
    }
    let bits = largest.into_iter().fold(0, u32::max);
    let max = f32::from_bits(bits);
    if bits >= INFINITE {
        return max;
    }
    let divisor = max.max(TINY);
    let reciprocal = 1.0 / divisor;
    for (run, packed) in runs.zip(packed.chunks_mut(RUN / 2)) {
        // bitsandbytes clamps what comes of it to [-1, 1]; all bounds lie within, so that never changes a code.
        let scaled = match whole {
            true => T::widen(run).map(|weight| weight * reciprocal),
            false => T::widen(run).map(|weight| weight / divisor),
        };
        let bytes = packed.len();
        packed.copy_from_slice(&codes(&scaled)[..bytes]);
    }
    if let (Some(last), false) = (packed.last_mut(), weights.len().is_multiple_of(2)) {
        *last = *last & 0xf0 | ZERO_CODE;
    }
    if whole { max } else { divisor }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all sizes, in 16 bits as well.
    fn weights(count: usize) -> Vec<u16> {
        (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u16).collect()
    }

    fn same<T: Float>(weights: &[T]) {
        let wide: Vec<f32> = weights.iter().map(|w| w.to_f32()).collect();
        for block_size in [32, 64, 4096] {
            let (packed, absmax) = quantize_blocks(weights, block_size);
            let expected = quantize_blocks(&wide, block_size);
            assert_eq!((&packed, bits(&absmax)), (&expected.0, bits(&expected.1)), "blocks of {block_size}");
            let mut of_plain_code = (vec![0; packed.len()], vec![0.0; absmax.len()]);
            blocks(weights, &mut of_plain_code.0, &mut of_plain_code.1, block_size, codes::portable);
            assert_eq!((packed, bits(&absmax)), (of_plain_code.0, bits(&of_plain_code.1)), "blocks of {block_size}");
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn sixteen_bits_are_quantized_as_what_they_are_in_f32() {
        for count in [1, 31, 64, 5001, 300_000] {
            let raw = weights(count);
            let finite = |w: &f32| w.is_finite();
            same(&raw.iter().map(|w| bf16::from_bits(*w)).filter(|w| finite(&w.to_f32())).collect::<Vec<_>>());
            same(&raw.iter().map(|w| f16::from_bits(*w)).filter(|w| finite(&w.to_f32())).collect::<Vec<_>>());
        }
        // Where one is not finite the scale says so, and the error where it is.
        let mut bad = vec![bf16::ONE; 100];
        bad[70] = bf16::NEG_INFINITY;
        let finite: Vec<bool> = quantize_blocks(&bad, 32).1.iter().map(|scale| scale.is_finite()).collect();
        assert_eq!(finite, [true, true, false, true]);
        let error = quantize(&bad, [10, 10], 32, true).expect_err("it is infinite").to_string();
        assert_eq!(error, "weight [7, 0] is -inf: only finite weights can be quantized");
    }
}
