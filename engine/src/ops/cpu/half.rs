//! Weights in bf16 and f16 on the host, and in f32 where they come the same way.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::encoded::Encoded;
use super::rows::vectorized;

/// A float of 16 bits, or of 32.
pub(super) trait Half: Copy + Sync {
    /// All of these in f32, exactly.
    fn widen(from: &[Self], into: &mut [f32]);
}

impl Half for bf16 {
    // `to_f32` looks at each whether it is a NaN.
    fn widen(from: &[Self], into: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || {
                for (wide, half) in into.iter_mut().zip(from) {
                    *wide = f32::from_bits(u32::from(half.to_bits()) << 16);
                }
            },
        );
    }
}

impl Half for f16 {
    fn widen(from: &[Self], into: &mut [f32]) {
        from.convert_to_f32_slice(into);
    }
}

impl Half for f32 {
    fn widen(from: &[Self], into: &mut [f32]) {
        into.copy_from_slice(from);
    }
}

/// A weight `[out, in]`.
pub(super) struct Halves<'a, E> {
    pub(super) elements: &'a [E],
    pub(super) shape: [usize; 2],
}

impl<E: Half> Encoded for Halves<'_, E> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, start: usize, out: &mut [f32]) {
        E::widen(&self.elements[start..start + out.len()], out);
    }
}
