//! From f32 to NF4: a scale per block, then the nearest level for each element.

use super::{Absmax, Invalid, NF4_TABLE, Nf4Data, Result, check_block_size, checked_count};

/// The smallest scale that is divided by, so that a block of zeros does not divide by zero.
const TINY: f32 = 1e-38;

/// Quantizes a row-major weight of `shape` `[out, in]` in blocks of `block_size` flattened elements.
///
/// bitsandbytes, `quantize_4bit`: a whole block is multiplied by the reciprocal of its scale, a short last block is
/// divided by it; what lies beyond an odd last element is the code of zero.
///
/// # Errors
/// When the length does not fit the shape, the block size is out of range, or a weight is NaN or infinite.
pub fn quantize(weights: &[f32], shape: [usize; 2], block_size: usize, double_quant: bool) -> Result<Nf4Data> {
    check_block_size(block_size)?;
    if weights.len() != checked_count(shape)? {
        return Err(Invalid(format!("{} weights do not fill the shape {shape:?}", weights.len())));
    }
    let (packed, absmax) = quantize_blocks(weights, block_size);
    if absmax.iter().any(|scale| !scale.is_finite()) {
        let (index, value) = weights.iter().enumerate().find(|(_, w)| !w.is_finite()).unwrap_or((0, &f32::NAN));
        let [row, column] = [index / shape[1].max(1), index % shape[1].max(1)];
        let reason = format!("weight [{row}, {column}] is {value}: only finite weights can be quantized");
        return Err(Invalid(reason));
    }
    let absmax = if double_quant { Absmax::double(&absmax) } else { Absmax::Plain(absmax) };
    Ok(Nf4Data { shape, block_size, packed, absmax })
}

/// The packed codes and the scale of every block; NaN for a block with a weight that is NaN or infinite.
pub fn quantize_blocks(weights: &[f32], block_size: usize) -> (Vec<u8>, Vec<f32>) {
    let count = weights.len();
    let mut packed = vec![0u8; count.div_ceil(2)];
    let mut absmax = vec![0.0f32; count.div_ceil(block_size)];
    let bounds = midpoints();
    let block = |((weights, packed), absmax): ((&[f32], &mut [u8]), &mut f32)| {
        // Infinity survives the maximum and NaN does not, so each element is asked.
        let finite = weights.iter().all(|w| w.is_finite());
        let max = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
        let whole = weights.len() == block_size;
        *absmax = match (finite, whole) {
            (false, _) => f32::NAN,
            (true, true) => max,
            (true, false) => max.max(TINY),
        };
        let code = |weight: f32| {
            let scaled = if whole { weight * (1.0 / max.max(TINY)) } else { weight / max.max(TINY) };
            let scaled = scaled.clamp(-1.0, 1.0);
            bounds.iter().map(|bound| u8::from(*bound < scaled)).sum::<u8>()
        };
        for (byte, pair) in packed.iter_mut().zip(weights.chunks(2)) {
            *byte = code(pair[0]) << 4 | pair.get(1).map_or(ZERO_CODE, |w| code(*w));
        }
    };
    for_each_block(weights, &mut packed, &mut absmax, block_size, block);
    (packed, absmax)
}

/// The code of 0.
const ZERO_CODE: u8 = 7;

/// The midpoints between neighbouring levels.
fn midpoints() -> [f32; 15] {
    std::array::from_fn(|i| (NF4_TABLE[i] + NF4_TABLE[i + 1]) / 2.0)
}

/// Runs `block` on every block, on all cores where there are threads.
fn for_each_block<F>(weights: &[f32], packed: &mut [u8], absmax: &mut [f32], block_size: usize, block: F)
where
    F: Fn(((&[f32], &mut [u8]), &mut f32)) + Sync + Send,
{
    #[cfg(feature = "threads")]
    {
        use rayon::prelude::*;
        let blocks = weights.par_chunks(block_size).zip(packed.par_chunks_mut(block_size / 2));
        blocks.zip(absmax.par_iter_mut()).with_min_len(256).for_each(block);
    }
    #[cfg(not(feature = "threads"))]
    {
        let blocks = weights.chunks(block_size).zip(packed.chunks_mut(block_size / 2));
        blocks.zip(absmax).for_each(block);
    }
}
