//! Weights in bf16 and f16 on the host.

use burn::tensor::{bf16, f16};

use super::encoded::Encoded;

/// A float of 16 bits.
pub(super) trait Half: Copy + Sync {
    /// In f32, exactly.
    fn widen(self) -> f32;
}

impl Half for bf16 {
    // `to_f32` makes every NaN a quiet one, which costs as much as the rest of a product of one row.
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Half for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
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
        for (wide, half) in out.iter_mut().zip(&self.elements[start..]) {
            *wide = half.widen();
        }
    }
}
