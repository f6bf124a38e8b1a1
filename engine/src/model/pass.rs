//! What one pass through the decoder layers needs beside the hidden states: sequences, positions, masks, dropout.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_autodiff::Autodiff;

use super::rope::Rope;
use crate::lora::Dropout;
use crate::ops::{Masking, Ops, Sequences};

/// A pass over sequences that lie one after another in the rows of the hidden states.
#[derive(Clone, Debug)]
pub struct Pass<B: Backend> {
    /// Where they begin and end.
    pub sequences: Sequences,
    /// cos and signed sin of the positions' angles, each `[tokens, 1, 2, head_dim / 2]`.
    pub rotation: [Tensor<B, 4>; 2],
    /// For backends whose attention is composed.
    pub masking: Masking<B>,
    /// LoRA dropout; training only.
    pub dropout: Option<Dropout>,
}

impl<B: Ops> Pass<B> {
    /// A pass without dropout.
    pub fn new(rope: &Rope, sequences: Sequences, device: &B::Device) -> Self {
        let rotation = rope.rotation(&sequences, device);
        let masking = if B::MASKED_ATTENTION { Masking::new(&sequences, device) } else { Masking::none() };
        Self { sequences, rotation, masking, dropout: None }
    }

    /// The same pass on the autodiff decoration of `B`.
    pub fn lift(&self) -> Pass<Autodiff<B>> {
        Pass {
            sequences: self.sequences.clone(),
            rotation: self.rotation.clone().map(Tensor::from_inner),
            masking: self.masking.lift(),
            dropout: self.dropout.clone(),
        }
    }
}
