//! Whole bytes to pairs of f32, with the widest instructions that the processor has.

use super::NF4_TABLE;

/// Decodes blocks of `block_size` elements, an even number, two to a byte, each with its scale:
/// `out.len() == 2 * packed.len()`. Which instructions there are is asked once, not for every block.
pub(super) fn decode_blocks(packed: &[u8], scales: &[f32], block_size: usize, out: &mut [f32]) {
    assert_eq!(out.len(), 2 * packed.len());
    assert!(block_size.is_multiple_of(2), "a block of whole bytes");
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions, and the sizes were compared above.
            return unsafe { x86::blocks_avx512(packed, scales, block_size, out) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { x86::blocks_avx2(packed, scales, block_size, out) };
        }
    }
    for ((packed, scale), out) in blocks(packed, scales, block_size, out) {
        portable(packed, *scale, out);
    }
}

/// Each block's bytes, scale and elements.
#[inline(always)]
fn blocks<'a>(
    packed: &'a [u8],
    scales: &'a [f32],
    block_size: usize,
    out: &'a mut [f32],
) -> impl Iterator<Item = ((&'a [u8], &'a f32), &'a mut [f32])> {
    packed.chunks(block_size / 2).zip(scales).zip(out.chunks_mut(block_size))
}

/// The same without special instructions.
fn portable(packed: &[u8], scale: f32, out: &mut [f32]) {
    let levels = NF4_TABLE.map(|level| level * scale);
    for (byte, pair) in packed.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = levels[(byte >> 4) as usize];
        pair[1] = levels[(byte & 15) as usize];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{NF4_TABLE, blocks, portable};

    /// # Safety
    /// Needs AVX-512F, an even `block_size`, and `out.len() == 2 * packed.len()`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn blocks_avx512(packed: &[u8], scales: &[f32], block_size: usize, out: &mut [f32]) {
        for ((packed, scale), out) in blocks(packed, scales, block_size, out) {
            // SAFETY: a block has two elements for each of its bytes.
            unsafe { avx512(packed, *scale, out) };
        }
    }

    /// # Safety
    /// Needs AVX2, an even `block_size`, and `out.len() == 2 * packed.len()`.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn blocks_avx2(packed: &[u8], scales: &[f32], block_size: usize, out: &mut [f32]) {
        for ((packed, scale), out) in blocks(packed, scales, block_size, out) {
            // SAFETY: as above.
            unsafe { avx2(packed, *scale, out) };
        }
    }

    /// Spreads eight bytes over sixteen nibbles in element order: the low half of each byte pair holds the high nibble.
    #[target_feature(enable = "sse2")]
    fn nibbles(bytes: __m128i) -> __m128i {
        let mask = _mm_set1_epi8(15);
        let high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
        let low = _mm_and_si128(bytes, mask);
        _mm_unpacklo_epi8(high, low)
    }

    /// # Safety
    /// Needs AVX-512F, and `out.len() == 2 * packed.len()`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512(packed: &[u8], scale: f32, out: &mut [f32]) {
        let vectors = packed.len() / 8;
        // SAFETY: reads 8 bytes and writes 16 floats per step, `vectors` times, inside the slices; the table has 16 floats.
        unsafe {
            let levels = _mm512_mul_ps(_mm512_loadu_ps(NF4_TABLE.as_ptr()), _mm512_set1_ps(scale));
            for i in 0..vectors {
                let bytes = _mm_loadl_epi64(packed.as_ptr().add(8 * i).cast());
                let codes = _mm512_cvtepu8_epi32(nibbles(bytes));
                _mm512_storeu_ps(out.as_mut_ptr().add(16 * i), _mm512_permutexvar_ps(codes, levels));
            }
        }
        portable(&packed[8 * vectors..], scale, &mut out[16 * vectors..]);
    }

    /// # Safety
    /// Needs AVX2, and `out.len() == 2 * packed.len()`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(packed: &[u8], scale: f32, out: &mut [f32]) {
        let vectors = packed.len() / 8;
        // SAFETY: reads 8 bytes and writes 16 floats per step, `vectors` times, inside the slices; the table has 16 floats.
        unsafe {
            let scale8 = _mm256_set1_ps(scale);
            let lower = _mm256_mul_ps(_mm256_loadu_ps(NF4_TABLE.as_ptr()), scale8);
            let upper = _mm256_mul_ps(_mm256_loadu_ps(NF4_TABLE.as_ptr().add(8)), scale8);
            let seven = _mm256_set1_epi32(7);
            for i in 0..vectors {
                let codes = nibbles(_mm_loadl_epi64(packed.as_ptr().add(8 * i).cast()));
                for (half, codes) in [codes, _mm_srli_si128(codes, 8)].into_iter().enumerate() {
                    let codes = _mm256_cvtepu8_epi32(codes);
                    let from_lower = _mm256_permutevar8x32_ps(lower, codes);
                    let from_upper = _mm256_permutevar8x32_ps(upper, codes);
                    let is_upper = _mm256_castsi256_ps(_mm256_cmpgt_epi32(codes, seven));
                    let values = _mm256_blendv_ps(from_lower, from_upper, is_upper);
                    _mm256_storeu_ps(out.as_mut_ptr().add(16 * i + 8 * half), values);
                }
            }
        }
        portable(&packed[8 * vectors..], scale, &mut out[16 * vectors..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_gives_the_same_bits() {
        let packed: Vec<u8> = (0..1021u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let scales: Vec<f32> = [0.0, 1e-40, 0.37, -2.5, 1e38].into_iter().cycle().take(64).collect();
        for block_size in [32, 64, 2042] {
            let (mut expected, mut found) = (vec![0.0; 2042], vec![1.0; 2042]);
            for ((packed, scale), out) in blocks(&packed, &scales, block_size, &mut expected) {
                portable(packed, *scale, out);
            }
            let same = |found: &[f32]| expected.iter().zip(found).all(|(a, b)| a.to_bits() == b.to_bits());
            decode_blocks(&packed, &scales, block_size, &mut found);
            assert!(same(&found), "blocks of {block_size}");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                found.fill(1.0);
                // SAFETY: the processor has the instructions, and the sizes fit.
                unsafe { x86::blocks_avx2(&packed, &scales, block_size, &mut found) };
                assert!(same(&found), "blocks of {block_size} with AVX2");
            }
        }
    }
}
