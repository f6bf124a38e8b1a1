//! What one pass through the decoder layers needs beside the hidden states: sequences, positions, masks, dropout.

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};
use burn_autodiff::Autodiff;

use super::rope::Rope;
use crate::lora::Dropout;
use crate::ops::{ComputeDtype, Masking, Ops, Sequences};

/// How the layers of one kind see sequences.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Tokens that a query sees, its own among them; all of its sequence where absent.
    pub window: Option<usize>,
    /// Positions.
    pub rope: Rope,
}

/// A pass over sequences that lie one after another in the rows of the hidden states.
#[derive(Clone, Debug)]
pub struct Pass<B: Backend> {
    /// The pass as each kind of layer sees it.
    pub views: Vec<View<B>>,
    /// The type of the activations between the products of a layer.
    pub activations: FloatDType,
    /// LoRA dropout; training only.
    pub dropout: Option<Dropout>,
}

/// A pass as the layers of one kind see it.
#[derive(Clone, Debug)]
pub struct View<B: Backend> {
    /// Where sequences begin and end, and how many tokens before them these layers still hold.
    pub sequences: Sequences,
    /// Tokens that a query sees.
    pub window: Option<usize>,
    /// cos and signed sin of the positions' angles, each `[tokens, 1, 2, rotary_dim / 2]`.
    pub rotation: [Tensor<B, 4>; 2],
    /// What attention needs on the device.
    pub masking: Masking<B>,
}

impl<B: Ops> Pass<B> {
    /// A pass in f32 without dropout through layers of this many query heads.
    pub fn new(kinds: &[Kind], heads: usize, sequences: Sequences, compute: ComputeDtype, device: &B::Device) -> Self {
        let views = kinds.iter().map(|kind| {
            let rotation = kind.rope.rotation(&sequences, device);
            let held = Sequences { cached: kept(sequences.cached, kind.window), ..sequences.clone() };
            let masking = Masking::new(&held, kind.window, heads, compute, device);
            View { sequences: held, window: kind.window, rotation, masking }
        });
        Self { views: views.collect(), activations: FloatDType::F32, dropout: None }
    }

    /// The same pass on the autodiff decoration of `B`.
    pub fn lift(&self) -> Pass<Autodiff<B>> {
        let views = self.views.iter().map(|view| View {
            sequences: view.sequences.clone(),
            window: view.window,
            rotation: view.rotation.clone().map(Tensor::from_inner),
            masking: view.masking.lift(),
        });
        Pass { views: views.collect(), activations: self.activations, dropout: self.dropout.clone() }
    }
}

/// How many of the last tokens a cache holds after `seen`: those that the next token sees beside itself.
pub(super) fn kept(seen: usize, window: Option<usize>) -> usize {
    window.map_or(seen, |window| seen.min(window - 1))
}
