//! A matrix whose path through the device is compared with the plain code's: what a lesson asks for.

use serde::{Deserialize, Serialize};

use crate::request::Part;

/// A matrix to quantize, decode and multiply on the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Matrix {
    /// Its elements, row by row, as f32 with the lowest byte first.
    pub values: Part,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Weights of a block.
    pub block_size: usize,
    /// Whether the scales are quantized as well.
    pub double_quant: bool,
    /// An adapter beside it, whose share of the product is then compared too.
    pub adapter: Option<LowRank>,
}

/// A low-rank update `scaling · B · A` beside a matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LowRank {
    /// `A`, `[rank, in]`, as f32 with the lowest byte first.
    pub a: Part,
    /// `B`, `[out, rank]`, likewise.
    pub b: Part,
    /// Its rank.
    pub rank: usize,
    /// What its product is multiplied by.
    pub scaling: f64,
}

/// The device's results beside those of the plain code. An error is none where a result is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// 4-bit codes, and those of the device that differ.
    pub codes: (usize, usize),
    /// Scales of blocks, and those of the device whose bits differ.
    pub scales: (usize, usize),
    /// Largest difference of a scale that was decoded by the device, over the largest scale.
    pub scale_error: Option<f64>,
    /// Largest difference of a decoded weight.
    pub weight_error: Option<f64>,
    /// Rows of activations that were multiplied.
    pub rows: usize,
    /// Norm of the product's difference over the norm of the product in f64.
    pub product_error: Option<f64>,
    /// The same with the adapter's share added.
    pub adapter_error: Option<f64>,
}
