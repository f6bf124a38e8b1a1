//! What one pass through the decoder layers needs beside the hidden states: positions, the causal mask, dropout.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

use super::rope::Rope;
use crate::lora::Dropout;

/// Stands in for minus infinity in the mask: its exponential is zero in f32, and it stays finite in every shader.
const MASKED: f32 = -1e30;

/// A pass over `rows` sequences of `length` tokens, the first of them at position `offset`.
#[derive(Clone, Debug)]
pub struct Pass<B: Backend> {
    /// Sequences in the batch.
    pub rows: usize,
    /// Tokens of each.
    pub length: usize,
    /// cos and signed sin of the positions' angles, each `[rows * length, 1, 2, head_dim / 2]`.
    pub rotation: [Tensor<B, 4>; 2],
    /// Added to the attention scores: `[1, 1, length, offset + length]`; absent for a single token, which sees all.
    pub mask: Option<Tensor<B, 4>>,
    /// LoRA dropout; training only.
    pub dropout: Option<Dropout>,
}

impl<B: Backend> Pass<B> {
    /// A pass that starts at position `offset`, after as many cached tokens.
    pub fn new(rope: &Rope, rows: usize, length: usize, offset: usize, device: &B::Device) -> Self {
        let total = offset + length;
        let mask = (length > 1).then(|| {
            let visible = |i: usize| i % total <= offset + i / total;
            let values: Vec<f32> = (0..length * total).map(|i| if visible(i) { 0.0 } else { MASKED }).collect();
            Tensor::from_data(TensorData::new(values, [1, 1, length, total]), device)
        });
        Self { rows, length, rotation: rope.rotation(rows, length, offset, device), mask, dropout: None }
    }

    /// The same pass on the autodiff decoration of `B`.
    pub fn lift<A: AutodiffBackend<InnerBackend = B>>(&self) -> Pass<A> {
        Pass {
            rows: self.rows,
            length: self.length,
            rotation: self.rotation.clone().map(Tensor::from_inner),
            mask: self.mask.clone().map(Tensor::from_inner),
            dropout: self.dropout.clone(),
        }
    }
}
