//! Root-mean-square layer normalisation (arXiv:1910.07467).

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::parameter::{Parameter, Shares, join};
use crate::ops::{Ops, rms_norm};

/// `y = x / sqrt(mean(x²) + eps) * weight`, over the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[1, hidden]`.
    pub weight: Parameter<B>,
    /// Keeps the root away from zero.
    pub eps: f64,
}

impl<B: Ops> RmsNorm<B> {
    /// `[tokens, hidden] -> [tokens, hidden]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        rms_norm(x, self.weight.value.clone(), self.eps)
    }

    /// Rebuilds the norm with `f(path, parameter)` in place of its weight.
    pub fn map<C: Shares<B>>(&self, path: &str, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> RmsNorm<C> {
        RmsNorm { weight: f(&join(path, "weight"), &self.weight), eps: self.eps }
    }
}
