//! Causal self-attention with grouped key and value heads and rotary positions.

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};

use super::config::AttentionConfig;
use super::linear::{Linear, in_type};
use super::norm::RmsNorm;
use super::parameter::{Parameter, Shares, join};
use super::pass::Pass;
use super::projections::Projections;
use crate::ops::{AttentionShape, Ops, causal_attention, rotate};

/// The keys and values of the tokens that one layer still sees of one sequence, each `[tokens, kv_heads * head_dim]`.
#[derive(Clone, Debug)]
pub struct LayerCache<B: Backend> {
    keys: Tensor<B, 2>,
    values: Tensor<B, 2>,
}

/// The attention block of a decoder layer.
#[derive(Clone, Debug)]
pub struct Attention<B: Backend> {
    /// `q_proj` `[heads * head_dim, hidden]`, `k_proj` and `v_proj` `[kv_heads * head_dim, hidden]`, or `qkv_proj`.
    pub qkv: Projections<B, 3>,
    /// `[hidden, heads * head_dim]`.
    pub o_proj: Linear<B>,
    /// `q_norm` and `k_norm`, of every head of the queries and keys, each `[1, head_dim]`.
    pub qk_norm: Option<[RmsNorm<B>; 2]>,
    /// Heads, and what becomes of the scores.
    pub config: AttentionConfig,
    /// Which of the model's kinds of layer this is.
    pub kind: usize,
}

impl<B: Ops> Attention<B> {
    /// `[tokens, hidden] -> [tokens, hidden]`, the result in f32; with a cache, the pass's keys and values are appended to it.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>, cache: Option<&mut Option<LayerCache<B>>>) -> Tensor<B, 2> {
        let AttentionConfig { heads, kv_heads, head_dim, scale, softcap } = self.config;
        let view = &pass.views[self.kind];
        let [q, k, v] = self.qkv.forward(x, pass);
        let (q, k) = match &self.qk_norm {
            Some([of_q, of_k]) => (of_q.forward_heads(q), of_k.forward_heads(k)),
            None => (q, k),
        };
        let [q, k] = [q, k].map(|x| turn(x, &view.rotation, head_dim));
        let (k, v) = match cache {
            Some(cache) => append(cache, k, v, view.window),
            None => (k, v),
        };
        let sequences = view.sequences.clone();
        let shape = AttentionShape { sequences, window: view.window, heads, kv_heads, head_dim, scale, softcap };
        self.o_proj.forward(causal_attention(q, k, v, &view.masking, &shape), pass, FloatDType::F32)
    }

    /// Rebuilds the block with `f(path, parameter)` in place of every parameter.
    pub fn map<C: Shares<B>>(
        &self,
        path: &str,
        f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>,
    ) -> Attention<C> {
        Attention {
            qkv: self.qkv.map(path, f),
            o_proj: self.o_proj.map(&join(path, "o_proj"), f),
            qk_norm: self.qk_norm.as_ref().map(|[q, k]| {
                let q = q.map(&join(path, "q_norm"), f);
                [q, k.map(&join(path, "k_norm"), f)]
            }),
            config: self.config,
            kind: self.kind,
        }
    }

    /// Every linear layer with its name.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear<B>)> {
        self.qkv.linears_mut().chain([("o_proj", &mut self.o_proj)])
    }
}

/// Rotates every head, or its first dimensions where the angles are of fewer than it has (partial rotary embedding).
fn turn<B: Ops>(x: Tensor<B, 2>, rotation: &[Tensor<B, 4>; 2], head_dim: usize) -> Tensor<B, 2> {
    let ([tokens, width], turned) = (x.dims(), 2 * rotation[0].dims()[3]);
    if turned == head_dim {
        return rotate(x, rotation);
    }
    let heads = width / head_dim;
    let x = x.reshape([tokens * heads, head_dim]);
    let rest = x.clone().narrow(1, turned, head_dim - turned);
    let first = rotate(x.narrow(1, 0, turned).reshape([tokens, heads * turned]), rotation);
    Tensor::cat(vec![first.reshape([tokens * heads, turned]), rest], 1).reshape([tokens, width])
}

/// Appends the keys and values of a pass over one sequence to its cache, in the type of those in it, and returns all of them. What no
/// later token sees through the window is dropped from the cache.
fn append<B: Ops>(
    cache: &mut Option<LayerCache<B>>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    window: Option<usize>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let (keys, values) = match cache.take() {
        Some(seen) => {
            let with = |seen: Tensor<B, 2>, x| {
                let dtype = seen.dtype().into();
                Tensor::cat(vec![seen, in_type(x, dtype)], 0)
            };
            (with(seen.keys, k), with(seen.values, v))
        }
        None => (k, v),
    };
    let total = keys.dims()[0];
    let kept = super::pass::kept(total, window);
    let last = |x: &Tensor<B, 2>| if kept < total { x.clone().narrow(0, total - kept, kept) } else { x.clone() };
    *cache = (kept > 0).then(|| LayerCache { keys: last(&keys), values: last(&values) });
    (keys, values)
}
