//! The nearest levels of elements that were divided by their block's scale, in pairs to a byte.

use super::NF4_TABLE;

/// Elements whose codes are found at a time, side by side.
pub(super) const RUN: usize = 16;

/// The midpoints between neighbouring levels: an element's code is the number of them that are below it.
const BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        bounds[i] = (NF4_TABLE[i] + NF4_TABLE[i + 1]) / 2.0;
        i += 1;
    }
    bounds
};

/// The codes, the first of each pair in the high half of the byte.
pub(super) fn portable(scaled: &[f32; RUN]) -> [u8; RUN / 2] {
    let code = |value: f32| BOUNDS.iter().map(|bound| u8::from(*bound < value)).sum::<u8>();
    std::array::from_fn(|i| code(scaled[2 * i]) << 4 | code(scaled[2 * i + 1]))
}

/// The same. Without being told, the compiler puts bounds side by side in place of elements.
///
/// # Safety
/// Needs AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn avx2(scaled: &[f32; RUN]) -> [u8; RUN / 2] {
    use std::arch::x86_64::*;

    // SAFETY: each reads eight floats of the sixteen.
    let [low, high] = unsafe { [_mm256_loadu_ps(scaled.as_ptr()), _mm256_loadu_ps(scaled.as_ptr().add(8))] };
    let mut codes = [_mm256_setzero_si256(); 2];
    for bound in BOUNDS {
        let bound = _mm256_set1_ps(bound);
        // What is true is -1.
        let below = [low, high].map(|values| _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(bound, values)));
        codes = [_mm256_sub_epi32(codes[0], below[0]), _mm256_sub_epi32(codes[1], below[1])];
    }
    // The packing goes by halves of the registers, which are put in order.
    let codes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(codes[0], codes[1]));
    let pairs = _mm256_madd_epi16(codes, _mm256_set1_epi32(1 << 16 | 16));
    let pairs = _mm_packs_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
    _mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs)).to_le_bytes()
}
