//! The gated MLP of a decoder layer (SwiGLU, arXiv:2002.05202).

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::linear::Linear;
use super::parameter::{Parameter, Shares, join};
use super::pass::Pass;
use crate::ops::{Ops, swiglu};

/// `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub struct Mlp<B: Backend> {
    /// `[intermediate, hidden]`.
    pub gate_proj: Linear<B>,
    /// `[intermediate, hidden]`.
    pub up_proj: Linear<B>,
    /// `[hidden, intermediate]`.
    pub down_proj: Linear<B>,
}

impl<B: Ops> Mlp<B> {
    /// `[tokens, hidden] -> [tokens, hidden]`.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>) -> Tensor<B, 2> {
        let gate = self.gate_proj.forward(x.clone(), pass);
        let up = self.up_proj.forward(x, pass);
        self.down_proj.forward(swiglu(gate, up), pass)
    }

    /// Rebuilds the block with `f(path, parameter)` in place of every parameter.
    pub fn map<C: Shares<B>>(&self, path: &str, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> Mlp<C> {
        Mlp {
            gate_proj: self.gate_proj.map(&join(path, "gate_proj"), f),
            up_proj: self.up_proj.map(&join(path, "up_proj"), f),
            down_proj: self.down_proj.map(&join(path, "down_proj"), f),
        }
    }
}
