//! Attention composed of Burn's operations, for backends without code of their own and for a few queries.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::masking::Composed;
use super::{Attended, AttentionShape};
use crate::ops::fused::{cast, dtype, primitive, tensor, wide};
use crate::ops::{Ops, matmul};

/// Queries, keys or values as `[rows, heads, tokens, head_dim]`.
fn split<B: Backend>(x: Tensor<B, 2>, rows: usize, heads: usize, head_dim: usize) -> Tensor<B, 4> {
    let tokens = x.dims()[0] / rows;
    x.reshape([rows, tokens, heads, head_dim]).swap_dims(1, 2)
}

/// The inverse of [`split`].
fn join<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 2> {
    let [rows, heads, tokens, head_dim] = x.dims();
    x.swap_dims(1, 2).reshape([rows * tokens, heads * head_dim])
}

/// Queries, keys, values and the attention weights `[rows, kv_heads, group * length, total]`: query heads that share a
/// key head are more rows of one product, so that keys are never repeated.
struct Weights<B: Backend> {
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    weights: Tensor<B, 4>,
    /// `tanh(score / cap)` where scores are capped.
    tanh: Option<Tensor<B, 4>>,
}

fn grouped<B: Backend>(x: Tensor<B, 2>, shape: &AttentionShape) -> Tensor<B, 4> {
    let AttentionShape { sequences, heads, kv_heads, head_dim, .. } = shape;
    let (rows, longest) = (sequences.lengths.len(), sequences.longest());
    split(x, rows, *heads, *head_dim).reshape([rows, *kv_heads, shape.group() * longest, *head_dim])
}

fn ungrouped<B: Backend>(x: Tensor<B, 4>, shape: &AttentionShape) -> Tensor<B, 2> {
    let sequences = &shape.sequences;
    join(x.reshape([sequences.lengths.len(), shape.heads, sequences.longest(), shape.head_dim]))
}

fn weights<B: Ops>([q, k, v]: [FloatTensor<B>; 3], masking: &Composed<B>, shape: &AttentionShape) -> Weights<B> {
    let AttentionShape { sequences, heads, kv_heads, head_dim, .. } = shape;
    let (rows, longest) = (sequences.lengths.len(), sequences.longest());
    let total = sequences.cached + longest;
    let [q, k, v] = [q, k, v].map(|x| tensor(wide::<B>(x)));
    let q = grouped(masking.pad(q), shape);
    let k = split(masking.pad(k), rows, *kv_heads, *head_dim);
    let v = split(masking.pad(v), rows, *kv_heads, *head_dim);
    let mut scores = matmul(q.clone(), k.clone().swap_dims(2, 3)) * shape.scale;
    let tanh = shape.softcap.map(|cap| (scores.clone() / cap).tanh());
    if let (Some(cap), Some(tanh)) = (shape.softcap, &tanh) {
        scores = tanh.clone() * cap;
    }
    let mut scores = scores.reshape([rows, *heads, longest, total]);
    if let Some(hidden) = &masking.hidden {
        scores = scores + hidden.clone();
    }
    let weights = softmax(scores, 3).reshape([rows, *kv_heads, shape.group() * longest, total]);
    Weights { q, k, v, weights, tanh }
}

/// Causal attention: `q` `[tokens, heads * head_dim]`, `k` and `v` `[cached and new tokens, kv_heads * head_dim]`; the
/// result is shaped like `q` and of its type.
pub(in crate::ops) fn forward<B: Ops>(
    qkv: [FloatTensor<B>; 3],
    masking: &Composed<B>,
    shape: &AttentionShape,
) -> Attended<B> {
    let of_q = dtype::<B>(&qkv[0]);
    let Weights { v, weights, .. } = weights::<B>(qkv, masking, shape);
    let y = primitive(masking.unpad(ungrouped(matmul(weights, v), shape)));
    Attended { y: cast::<B>(y, of_q), lse: None }
}

/// The gradients of [`forward`] for `q`, `k` and `v`, each in its tensor's type; the weights are computed again.
pub(in crate::ops) fn backward<B: Ops>(
    qkv: [FloatTensor<B>; 3],
    masking: &Composed<B>,
    grad: FloatTensor<B>,
    shape: &AttentionShape,
) -> [FloatTensor<B>; 3] {
    let [of_q, of_k, of_v] = qkv.each_ref().map(dtype::<B>);
    let Weights { q, k, v, weights, tanh } = weights::<B>(qkv, masking, shape);
    let grad = grouped(masking.pad_with_zeros(tensor(wide::<B>(grad))), shape);
    let d_v = matmul(weights.clone().swap_dims(2, 3), grad.clone());
    let d_weights = matmul(grad, v.swap_dims(2, 3));
    let along = (d_weights.clone() * weights.clone()).sum_dim(3);
    let mut d_scores = weights * (d_weights - along) * shape.scale;
    if let Some(tanh) = tanh {
        d_scores = d_scores * (tanh.powi_scalar(2).neg() + 1.0);
    }
    let d_k = matmul(d_scores.clone().swap_dims(2, 3), q);
    let d_q = matmul(d_scores, k);
    [(ungrouped(d_q, shape), of_q), (join(d_k), of_k), (join(d_v), of_v)]
        .map(|(gradient, dtype)| cast::<B>(primitive(masking.unpad(gradient)), dtype))
}
