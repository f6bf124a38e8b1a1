//! 4-bit NormalFloat storage with double quantization (QLoRA, arXiv:2305.14314), as plain bytes in bitsandbytes' layout.
//!
//! No tensor library here: this crate is the reference that every kernel is tested against, and what it writes is
//! bit-identical to what bitsandbytes 0.50.2 writes on the CPU. It stands apart from the engine, which re-exports it as
//! `halfbyte::nf4`, so that a page can show it without downloading the engine.
//!
//! ```
//! # fn main() -> Result<(), halfbyte_nf4::Invalid> {
//! let weights: Vec<f32> = (0..4096).map(|i| (i as f32).sin()).collect();
//! let quantized = halfbyte_nf4::quantize(&weights, [64, 64], 64, true)?;
//! // 4 bits a weight, 8 for the scale of 64, and two f32 for the scales of scales: 0.16 where a large weight has 0.127.
//! assert!(quantized.bits_per_parameter() < 4.2);
//! let error = weights.iter().zip(quantized.dequantize()).map(|(w, q)| (w - q).abs()).fold(0.0, f32::max);
//! // Half of the widest gap between two levels, from -1 to -0.696.
//! assert!(error < 0.16);
//! # Ok(())
//! # }
//! ```

mod codes;
mod decode;
mod double;
mod dynamic;
mod quantize;
mod simd;
mod split;
mod sum;
mod table;
mod teach;
mod threads;

pub use bytes::Bytes;
pub use decode::decode;
pub use dynamic::DynamicCode;
pub use quantize::{Float, quantize, quantize_blocks, quantize_blocks_into};
pub use table::{NF4_TABLE, dynamic_map, unsigned_dynamic_map};
pub use teach::{naive_quantile_table, rmse, uniform_table};

/// A weight or a size that cannot be held in NF4, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// This crate's result.
pub type Result<T, E = Invalid> = std::result::Result<T, E>;

/// Elements that share a scale, by default.
pub const BLOCK_SIZE: usize = 64;
/// Scales that share a scale of their own under double quantization.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// The scale of every block.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// One f32 per block.
    Plain(Vec<f32>),
    /// One byte per block, an index into [`dynamic_map`]; one f32 per 256 blocks; and the mean that was subtracted.
    Double {
        /// One code per block.
        codes: Vec<u8>,
        /// One scale per 256 codes.
        nested: Vec<f32>,
        /// Added to every decoded scale.
        offset: f32,
    },
}

impl Absmax {
    /// The scales of all blocks, quantized to 8 bits themselves: each 256 share a scale, and all an offset.
    pub fn double(scales: &[f32]) -> Self {
        double::encode(scales)
    }
}

/// A weight in NF4.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Data {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Elements per block of the flattened weight; blocks may straddle rows.
    pub block_size: usize,
    /// `ceil(out * in / 2)` bytes; element `2i` in the high nibble of byte `i`, `2i + 1` in the low one.
    /// Those of a weight that was stored may lie in a mapped file.
    pub packed: Bytes,
    /// The scales.
    pub absmax: Absmax,
}

impl Nf4Data {
    fn count(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Checks that the parts fit the shape.
    ///
    /// # Errors
    /// [`Invalid`] that names the part.
    pub fn validate(&self) -> Result<()> {
        check_block_size(self.block_size)?;
        let count = checked_count(self.shape)?;
        let blocks = count.div_ceil(self.block_size);
        let fits = |what: &str, found: usize, expected: usize| {
            if found == expected {
                return Ok(());
            }
            let shape = self.shape;
            Err(Invalid(format!("NF4 weight {shape:?}: {what} has {found} elements; expected {expected}")))
        };
        fits("packed", self.packed.len(), count.div_ceil(2))?;
        let (scales, offset) = match &self.absmax {
            Absmax::Plain(values) => {
                fits("absmax", values.len(), blocks)?;
                (values, 0.0)
            }
            Absmax::Double { codes, nested, offset } => {
                fits("absmax", codes.len(), blocks)?;
                fits("nested_absmax", nested.len(), blocks.div_ceil(NESTED_BLOCK_SIZE))?;
                (nested, *offset)
            }
        };
        match scales.iter().all(|scale| scale.is_finite()) && offset.is_finite() {
            true => Ok(()),
            false => Err(Invalid(format!("NF4 weight {:?}: a scale is NaN or infinite", self.shape))),
        }
    }

    /// One scale per block, decoded.
    pub fn decoded_absmax(&self) -> Vec<f32> {
        match &self.absmax {
            Absmax::Plain(values) => values.clone(),
            Absmax::Double { codes, nested, offset } => double::decode(codes, nested, *offset),
        }
    }

    /// The weight in f32, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.count()];
        decode(&self.packed, &self.decoded_absmax(), self.block_size, 0, &mut out);
        out
    }

    /// Bytes that the weight takes in a checkpoint, its two constant tables and the JSON state left out.
    pub fn byte_size(&self) -> usize {
        self.packed.len()
            + match &self.absmax {
                Absmax::Plain(values) => 4 * values.len(),
                Absmax::Double { codes, nested, .. } => codes.len() + 4 * nested.len() + 4,
            }
    }

    /// Bits per element, scales included: 4.5 plain and 4.127 with double quantization, for a large weight and blocks
    /// of 64.
    pub fn bits_per_parameter(&self) -> f64 {
        8.0 * self.byte_size() as f64 / self.count().max(1) as f64
    }
}

/// Checks that blocks can have this size.
///
/// # Errors
/// [`Invalid`] unless it is a power of two from 32 to 4096.
pub fn check_block_size(block_size: usize) -> Result<()> {
    if block_size.is_power_of_two() && (32..=4096).contains(&block_size) {
        return Ok(());
    }
    Err(Invalid(format!("block size {block_size} is not a power of two from 32 to 4096")))
}

/// The elements of a weight of shape `[out, in]`.
///
/// # Errors
/// [`Invalid`] where they are too many to be counted in 32 bits.
pub fn checked_count([out, input]: [usize; 2]) -> Result<usize> {
    let count = out.checked_mul(input).filter(|n| *n <= u32::MAX as usize);
    count.ok_or_else(|| Invalid(format!("a weight of shape [{out}, {input}] has more than 2^32 elements")))
}
