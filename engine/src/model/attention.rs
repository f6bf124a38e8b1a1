//! Causal self-attention with grouped key and value heads and rotary positions.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::linear::Linear;
use super::parameter::{Parameter, Shares, join};
use super::pass::Pass;
use crate::ops::{AttentionShape, Ops, causal_attention, rotate};

/// The keys and values of the tokens that one layer has seen of one sequence, each `[tokens, kv_heads * head_dim]`.
#[derive(Clone, Debug)]
pub struct LayerCache<B: Backend> {
    keys: Tensor<B, 2>,
    values: Tensor<B, 2>,
}

/// The attention block of a decoder layer.
#[derive(Clone, Debug)]
pub struct Attention<B: Backend> {
    /// `[heads * head_dim, hidden]`.
    pub q_proj: Linear<B>,
    /// `[kv_heads * head_dim, hidden]`.
    pub k_proj: Linear<B>,
    /// `[kv_heads * head_dim, hidden]`.
    pub v_proj: Linear<B>,
    /// `[hidden, heads * head_dim]`.
    pub o_proj: Linear<B>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl<B: Ops> Attention<B> {
    /// `[tokens, hidden] -> [tokens, hidden]`; with a cache, the pass's keys and values are appended to it.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>, cache: Option<&mut Option<LayerCache<B>>>) -> Tensor<B, 2> {
        let q = rotate(self.q_proj.forward(x.clone(), pass), &pass.rotation);
        let k = rotate(self.k_proj.forward(x.clone(), pass), &pass.rotation);
        let v = self.v_proj.forward(x, pass);
        let (k, v) = match cache {
            Some(cache) => append(cache, k, v),
            None => (k, v),
        };
        let shape = AttentionShape {
            sequences: pass.sequences.clone(),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        self.o_proj.forward(causal_attention(q, k, v, &pass.masking, &shape), pass)
    }

    /// Rebuilds the block with `f(path, parameter)` in place of every parameter.
    pub fn map<C: Shares<B>>(
        &self,
        path: &str,
        f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>,
    ) -> Attention<C> {
        Attention {
            q_proj: self.q_proj.map(&join(path, "q_proj"), f),
            k_proj: self.k_proj.map(&join(path, "k_proj"), f),
            v_proj: self.v_proj.map(&join(path, "v_proj"), f),
            o_proj: self.o_proj.map(&join(path, "o_proj"), f),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }
}

/// Appends the keys and values of a pass over one sequence to its cache, and returns all of them.
fn append<B: Ops>(cache: &mut Option<LayerCache<B>>, k: Tensor<B, 2>, v: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let (keys, values) = match cache.take() {
        Some(seen) => (Tensor::cat(vec![seen.keys, k], 0), Tensor::cat(vec![seen.values, v], 0)),
        None => (k, v),
    };
    *cache = Some(LayerCache { keys: keys.clone(), values: values.clone() });
    (keys, values)
}
