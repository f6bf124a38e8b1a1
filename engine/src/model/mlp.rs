//! The gated MLP of a decoder layer (SwiGLU and GeGLU, arXiv:2002.05202).

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};

use super::linear::Linear;
use super::parameter::{Parameter, Shares, join};
use super::pass::Pass;
use super::projections::Projections;
use crate::ops::{Activation, Ops, gated};

/// `down(activation(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub struct Mlp<B: Backend> {
    /// `gate_proj` and `up_proj`, each `[intermediate, hidden]`, or `gate_up_proj`.
    pub gate_up: Projections<B, 2>,
    /// `[hidden, intermediate]`.
    pub down_proj: Linear<B>,
    /// The function on the gate.
    pub activation: Activation,
}

impl<B: Ops> Mlp<B> {
    /// `[tokens, hidden] -> [tokens, hidden]`, the result in f32.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>) -> Tensor<B, 2> {
        self.down_proj.forward(self.inner(x, pass), pass, FloatDType::F32)
    }

    /// [`forward`](Self::forward) for the gradients that go through it alone.
    pub fn unseen(&self, x: Tensor<B, 2>, pass: &Pass<B>) -> Tensor<B, 2> {
        self.down_proj.unseen(self.inner(x, pass), pass)
    }

    /// `[tokens, hidden] -> [tokens, intermediate]`.
    fn inner(&self, x: Tensor<B, 2>, pass: &Pass<B>) -> Tensor<B, 2> {
        let [gate, up] = self.gate_up.forward(x, pass);
        gated(gate, up, self.activation)
    }

    /// Rebuilds the block with `f(path, parameter)` in place of every parameter.
    pub fn map<C: Shares<B>>(&self, path: &str, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> Mlp<C> {
        Mlp {
            gate_up: self.gate_up.map(path, f),
            down_proj: self.down_proj.map(&join(path, "down_proj"), f),
            activation: self.activation,
        }
    }

    /// Every linear layer with its name.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear<B>)> {
        self.gate_up.linears_mut().chain([("down_proj", &mut self.down_proj)])
    }
}
