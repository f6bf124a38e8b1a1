//! Root-mean-square layer normalisation (arXiv:1910.07467).

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};

use super::parameter::{Parameter, Shares, join};
use crate::ops::{Ops, rms_norm};

/// `y = x / sqrt(mean(x²) + eps) * (offset + weight)`, over the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[1, hidden]`, as the model's files store it.
    pub weight: Parameter<B>,
    /// 1 where a family stores the weight's distance from one (Gemma), else 0.
    pub offset: f64,
    /// Keeps the root away from zero.
    pub eps: f64,
}

impl<B: Ops> RmsNorm<B> {
    /// `[tokens, hidden] -> [tokens, hidden]`, in the type `into`.
    pub fn forward(&self, x: Tensor<B, 2>, into: FloatDType) -> Tensor<B, 2> {
        let weight = self.weight.value.clone();
        rms_norm(x, if self.offset == 0.0 { weight } else { weight + self.offset }, self.eps, into)
    }

    /// The norm of every head alone, the weight as wide as one: `[tokens, heads * head_dim]`, shape and type kept.
    pub fn forward_heads(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let ([tokens, width], [_, head_dim], dtype) = (x.dims(), self.weight.value.dims(), x.dtype());
        self.forward(x.reshape([tokens * (width / head_dim), head_dim]), dtype.into()).reshape([tokens, width])
    }

    /// Rebuilds the norm with `f(path, parameter)` in place of its weight.
    pub fn map<C: Shares<B>>(&self, path: &str, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> RmsNorm<C> {
        RmsNorm { weight: f(&join(path, "weight"), &self.weight), offset: self.offset, eps: self.eps }
    }
}
