//! The type in which products are computed.

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

use super::{Ops, Product, Variant};
use crate::{Error, Result};

/// What the operands of large products are rounded to: those with 4-bit weights of more than a few rows, in bf16 of a few too, those of
/// low-rank branches beside them, those of attention, and those with a head that is held in the same type. Sums are f32, and so is all that is
/// not a product: norms, softmax, loss, adapters and their gradients (as under `torch.autocast`; bitsandbytes, `bnb_4bit_compute_dtype`). How
/// activations are held is what [`activations`](Self::activations) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// As they are.
    #[default]
    F32,
    /// bf16, on CUDA's tensor cores.
    Bf16,
    /// f16, on a GPU through wgpu that has it; gradients of activations stay in f32, whose range they need.
    F16,
}

impl ComputeDtype {
    /// The variants that round to it, of 4-bit weights; by none of these for the fastest way in f32.
    fn rounding(self) -> &'static [Variant] {
        match self {
            Self::F32 => &[],
            Self::Bf16 => &[Variant::SkinnyBf16, Variant::DecodedBf16, Variant::WarpgroupBf16, Variant::TiledBf16],
            Self::F16 => &[Variant::TiledF16],
        }
    }

    /// The type that a variant rounds its operands to.
    pub(crate) fn of(variant: Option<Variant>) -> Self {
        let rounds = |compute: &Self| variant.is_some_and(|variant| compute.rounding().contains(&variant));
        [Self::Bf16, Self::F16].into_iter().find(rounds).unwrap_or_default()
    }

    /// The variant of a product of `rows` rows with a weight of this shape; `None` for the fastest in f32. A few rows wait for the
    /// weight to be read, and gain little by rounding: where no variant for them rounds, the one that does not is taken.
    pub(super) fn variant<B: Ops>(
        self,
        device: &B::Device,
        shape: [usize; 2],
        rows: usize,
        product: Product,
    ) -> Option<Variant> {
        // A gradient is a small number, which f16 holds with few bits or not at all; bf16 has the range of f32.
        if self == Self::F32 || self == Self::F16 && product == Product::InputGradient {
            return None;
        }
        let can = B::nf4_variants(device, shape, rows, product);
        can.into_iter().find(|variant| *variant == Variant::Skinny || self.rounding().contains(variant))
    }

    /// The type in which the activations of many rows are held between the products of a layer, and their gradients. The hidden states from
    /// layer to layer are always f32.
    pub fn activations(self) -> FloatDType {
        match self {
            Self::Bf16 => FloatDType::BF16,
            // A gradient is too small for f16.
            Self::F32 | Self::F16 => FloatDType::F32,
        }
    }

    /// Whether a device computes products in this type.
    ///
    /// # Errors
    /// When it does not.
    pub fn check<B: Ops>(self, device: &B::Device) -> Result<()> {
        const ROWS: usize = 512;
        let can = || B::nf4_variants(device, [64, 64], ROWS, Product::Forward);
        match self == Self::F32 || can().iter().any(|variant| self.rounding().contains(variant)) {
            true => Ok(()),
            false => Err(Error::Device {
                device: format!("{device:?}"),
                reason: format!(
                    "it computes no products in {self:?}; CUDA does in bf16, other GPUs may in f16, and every device does in f32 \
                     (quantization.compute_dtype)"
                ),
            }),
        }
    }
}
