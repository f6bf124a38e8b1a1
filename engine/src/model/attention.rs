//! Causal self-attention with grouped key and value heads and rotary positions.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;

use super::linear::Linear;
use super::parameter::{Parameter, Shares, join};
use super::pass::Pass;
use super::rope::rotate;
use crate::ops::Ops;

/// The keys and values of the tokens that one layer has seen, each `[rows, kv_heads, tokens, head_dim]`.
#[derive(Clone, Debug)]
pub struct LayerCache<B: Backend> {
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
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
        let (rows, length, head_dim) = (pass.rows, pass.length, self.head_dim);
        let split = |y: Tensor<B, 2>, heads: usize| y.reshape([rows, length, heads, head_dim]);
        let q = rotate(split(self.q_proj.forward(x.clone(), pass), self.heads), &pass.rotation).swap_dims(1, 2);
        let k = rotate(split(self.k_proj.forward(x.clone(), pass), self.kv_heads), &pass.rotation).swap_dims(1, 2);
        let v = split(self.v_proj.forward(x, pass), self.kv_heads).swap_dims(1, 2);
        let (k, v) = match cache {
            Some(cache) => append(cache, k, v),
            None => (k, v),
        };
        let total = k.dims()[2];
        // Query heads that share a key head become more rows of one product, so that keys are never repeated.
        let shared = self.heads / self.kv_heads * length;
        let q = q.reshape([rows, self.kv_heads, shared, head_dim]) * (head_dim as f64).powf(-0.5);
        let mut scores = q.matmul(k.swap_dims(2, 3)).reshape([rows, self.heads, length, total]);
        if let Some(mask) = &pass.mask {
            scores = scores + mask.clone();
        }
        let weights = softmax(scores, 3).reshape([rows, self.kv_heads, shared, total]);
        let mixed = weights.matmul(v).reshape([rows, self.heads, length, head_dim]).swap_dims(1, 2);
        self.o_proj.forward(mixed.reshape([rows * length, self.heads * head_dim]), pass)
    }

    /// Rebuilds the block with `f(path, parameter)` in place of every parameter.
    pub fn map<C: Shares<B>>(&self, path: &str, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> Attention<C> {
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

/// Appends keys and values to the cache and returns all of them.
fn append<B: Ops>(
    cache: &mut Option<LayerCache<B>>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let (keys, values) = match cache.take() {
        Some(seen) => (Tensor::cat(vec![seen.keys, k], 2), Tensor::cat(vec![seen.values, v], 2)),
        None => (k, v),
    };
    *cache = Some(LayerCache { keys: keys.clone(), values: values.clone() });
    (keys, values)
}
