//! A linear layer `y = x Wᵀ + b`, its weight dense or in 4 bits, with an optional LoRA branch beside it.

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};

use super::parameter::{Parameter, Shares, join};
use super::pass::Pass;
use crate::lora::LoraBranch;
use crate::ops::{Frozen, Nf4Weight, Ops, cast, primitive, tensor};

/// Activations in another type; themselves where they have it.
pub(crate) fn in_type<B: Ops>(x: Tensor<B, 2>, dtype: FloatDType) -> Tensor<B, 2> {
    tensor(cast::<B>(primitive(x), dtype))
}

/// A weight of shape `[out, in]`.
#[derive(Clone, Debug)]
pub enum Weight<B: Backend> {
    /// Every element in f32.
    Dense(Parameter<B>),
    /// Frozen in 4-bit NormalFloat.
    Nf4(Nf4Weight<B>),
}

impl<B: Ops> Weight<B> {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.value.dims(),
            Self::Nf4(weight) => weight.shape(),
        }
    }

    /// Where it is.
    pub fn device(&self) -> B::Device {
        match self {
            Self::Dense(weight) => weight.value.device(),
            Self::Nf4(weight) => weight.device(),
        }
    }

    /// The weight as what multiplies with it sees it.
    fn frozen(&self) -> Frozen<B> {
        match self {
            Self::Dense(weight) => Frozen::dense(weight.value.clone()),
            Self::Nf4(weight) => Frozen::nf4(weight),
        }
    }

    /// `[tokens, in] -> [tokens, out]`, in the type `into`.
    pub fn forward(&self, x: Tensor<B, 2>, into: FloatDType) -> Tensor<B, 2> {
        self.frozen().forward(x, into)
    }
}

/// A linear layer.
#[derive(Clone, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Weight<B>,
    /// `[1, out]`.
    pub bias: Option<Parameter<B>>,
    /// The adapter, where this layer is a target.
    pub lora: Option<LoraBranch<B>>,
}

impl<B: Ops> Linear<B> {
    /// `[tokens, in] -> [tokens, out]`, in the type `into`.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>, into: FloatDType) -> Tensor<B, 2> {
        let product = |into| match &self.lora {
            Some(lora) => lora.forward(x, &self.weight.frozen(), pass.dropout.as_ref(), into),
            None => self.weight.forward(x, into),
        };
        match &self.bias {
            Some(bias) => in_type(product(FloatDType::F32) + bias.value.clone(), into),
            None => product(into),
        }
    }

    /// [`forward`](Self::forward) in f32 for the gradients that go through it alone: where no one sees the result, an adapted layer leaves
    /// out the product that costs the most.
    pub fn unseen(&self, x: Tensor<B, 2>, pass: &Pass<B>) -> Tensor<B, 2> {
        match (&self.lora, &self.bias) {
            (Some(lora), None) => lora.unseen(x, &self.weight.frozen(), pass.dropout.as_ref()),
            _ => self.forward(x, pass, FloatDType::F32),
        }
    }

    /// Rebuilds the layer with `f(path, parameter)` in place of every parameter.
    pub fn map<C: Shares<B>>(&self, path: &str, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> Linear<C> {
        Linear {
            weight: match &self.weight {
                Weight::Dense(weight) => Weight::Dense(f(&join(path, "weight"), weight)),
                Weight::Nf4(weight) => Weight::Nf4(weight.cast()),
            },
            bias: self.bias.as_ref().map(|bias| f(&join(path, "bias"), bias)),
            lora: self.lora.as_ref().map(|lora| lora.map(path, f)),
        }
    }
}
