//! Causal attention over sequences of differing lengths: who sees whom, and the form composed of Burn's operations for
//! backends without a kernel of their own.

use std::sync::Arc;

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;

use super::fused::{primitive, tensor};
use super::{Ops, matmul};

/// Stands in for minus infinity in the mask: its exponential is zero in f32, and it stays finite in every shader.
const MASKED: f32 = -1e30;

/// Sequences one after another in the rows of a `[tokens, ..]` tensor, with no padding between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// New tokens of each.
    pub lengths: Arc<[usize]>,
    /// Tokens of each that came before and lie in a cache.
    pub cached: usize,
}

/// Where one sequence lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first row among the queries.
    pub first: usize,
    /// Query rows, the last of its keys.
    pub length: usize,
    /// Its first row among the keys and values.
    pub first_key: usize,
    /// Key and value rows.
    pub total: usize,
}

impl Sequences {
    /// Whole sequences.
    pub fn new(lengths: &[usize]) -> Self {
        Self { lengths: lengths.into(), cached: 0 }
    }

    /// One sequence that goes on after `cached` tokens.
    pub fn after(cached: usize, length: usize) -> Self {
        Self { lengths: [length].into(), cached }
    }

    /// New tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// New tokens of the longest.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Each sequence in turn.
    pub fn spans(&self) -> impl Iterator<Item = Span> {
        let (mut first, mut first_key) = (0, 0);
        self.lengths.iter().map(move |length| {
            let span = Span { first, length: *length, first_key, total: self.cached + length };
            first += span.length;
            first_key += span.total;
            span
        })
    }
}

/// The geometry of an attention: who attends to whom, and what becomes of the scores.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionShape {
    /// Where sequences begin and end; a query sees its own sequence up to itself.
    pub sequences: Sequences,
    /// How many tokens a query sees, its own among them; all of its sequence where absent.
    pub window: Option<usize>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores are then bounded to this much by `cap · tanh(score / cap)` (Gemma 2, arXiv:2408.00118, section 2).
    pub softcap: Option<f32>,
}

impl AttentionShape {
    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// What the composed attention needs of a pass, on its device. A backend with a kernel of its own leaves it empty.
#[derive(Clone, Debug)]
pub struct Masking<B: Backend> {
    /// Added to the scores: `[1, 1, longest, cached + longest]`; absent for a single token that sees all.
    hidden: Option<Tensor<B, 4>>,
    /// Present where lengths differ.
    padding: Option<Padding<B>>,
}

/// How tokens go into `rows * longest` places and back.
#[derive(Clone, Debug)]
struct Padding<B: Backend> {
    /// `[rows * longest]`: the token of each place; the first token stands in where there is none.
    tokens: Tensor<B, 1, Int>,
    /// `[tokens]`: the place of each token.
    places: Tensor<B, 1, Int>,
    /// `[rows * longest, 1]`: 1 where there is a token, else 0.
    real: Tensor<B, 2>,
}

impl<B: Backend> Masking<B> {
    /// Nothing.
    pub fn none() -> Self {
        Self { hidden: None, padding: None }
    }

    /// For the composed attention over these sequences, each query seeing at most `window` tokens.
    pub fn new(sequences: &Sequences, window: Option<usize>, device: &B::Device) -> Self {
        let (longest, cached) = (sequences.longest(), sequences.cached);
        let total = cached + longest;
        let window = window.filter(|window| *window < total);
        let hidden = (longest > 1 || window.is_some()).then(|| {
            let visible = |i: usize| {
                let (key, own) = (i % total, cached + i / total);
                key <= own && window.is_none_or(|window| own - key < window)
            };
            let values: Vec<f32> = (0..longest * total).map(|i| if visible(i) { 0.0 } else { MASKED }).collect();
            Tensor::from_data(TensorData::new(values, [1, 1, longest, total]), device)
        });
        let ragged = sequences.lengths.iter().any(|length| *length != longest);
        Self { hidden, padding: ragged.then(|| Padding::new(sequences, device)) }
    }

    /// The same on the autodiff decoration of `B`.
    pub fn lift(&self) -> Masking<Autodiff<B>> {
        Masking {
            hidden: self.hidden.clone().map(Tensor::from_inner),
            padding: self.padding.clone().map(|p| Padding {
                tokens: Tensor::from_inner(p.tokens),
                places: Tensor::from_inner(p.places),
                real: Tensor::from_inner(p.real),
            }),
        }
    }
}

impl<B: Backend, C: burn_autodiff::checkpoint::strategy::CheckpointStrategy> Masking<Autodiff<B, C>> {
    /// The same on the backend beneath.
    pub(super) fn inner(&self) -> Masking<B> {
        Masking {
            hidden: self.hidden.clone().map(Tensor::inner),
            padding: self.padding.clone().map(|p| Padding {
                tokens: p.tokens.inner(),
                places: p.places.inner(),
                real: p.real.inner(),
            }),
        }
    }
}

impl<B: Backend> Padding<B> {
    fn new(sequences: &Sequences, device: &B::Device) -> Self {
        let (rows, longest) = (sequences.lengths.len(), sequences.longest());
        let (mut tokens, mut real) = (vec![0i32; rows * longest], vec![0.0f32; rows * longest]);
        let mut places = Vec::with_capacity(sequences.tokens());
        for (row, span) in sequences.spans().enumerate() {
            for i in 0..span.length {
                let place = row * longest + i;
                tokens[place] = (span.first + i) as i32;
                real[place] = 1.0;
                places.push(place as i32);
            }
        }
        let length = places.len();
        Self {
            tokens: Tensor::from_data(TensorData::new(tokens, [rows * longest]), device),
            places: Tensor::from_data(TensorData::new(places, [length]), device),
            real: Tensor::from_data(TensorData::new(real, [rows * longest, 1]), device),
        }
    }
}

impl<B: Backend> Masking<B> {
    /// `[tokens, width] -> [rows * longest, width]`. What stands in the padding is arbitrary: it comes after its
    /// sequence, where no token of the sequence looks.
    fn pad(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.padding {
            Some(padding) => x.select(0, padding.tokens.clone()),
            None => x,
        }
    }

    /// The same with zeros in the padding.
    fn pad_with_zeros(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.padding {
            Some(padding) => x.select(0, padding.tokens.clone()) * padding.real.clone(),
            None => x,
        }
    }

    /// The inverse of both.
    fn unpad(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.padding {
            Some(padding) => x.select(0, padding.places.clone()),
            None => x,
        }
    }
}

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

fn weights<B: Ops>([q, k, v]: [FloatTensor<B>; 3], masking: &Masking<B>, shape: &AttentionShape) -> Weights<B> {
    let AttentionShape { sequences, heads, kv_heads, head_dim, .. } = shape;
    let (rows, longest) = (sequences.lengths.len(), sequences.longest());
    let total = sequences.cached + longest;
    let q = grouped(masking.pad(tensor(q)), shape);
    let k = split(masking.pad(tensor(k)), rows, *kv_heads, *head_dim);
    let v = split(masking.pad(tensor(v)), rows, *kv_heads, *head_dim);
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
/// result is shaped like `q`.
pub(super) fn forward<B: Ops>(
    qkv: [FloatTensor<B>; 3],
    masking: &Masking<B>,
    shape: &AttentionShape,
) -> FloatTensor<B> {
    let Weights { v, weights, .. } = weights::<B>(qkv, masking, shape);
    primitive(masking.unpad(ungrouped(matmul(weights, v), shape)))
}

/// The gradients of [`forward`] for `q`, `k` and `v`; the weights are computed again.
pub(super) fn backward<B: Ops>(
    qkv: [FloatTensor<B>; 3],
    masking: &Masking<B>,
    grad: FloatTensor<B>,
    shape: &AttentionShape,
) -> [FloatTensor<B>; 3] {
    let Weights { q, k, v, weights, tanh } = weights::<B>(qkv, masking, shape);
    let grad = grouped(masking.pad_with_zeros(tensor(grad)), shape);
    let d_v = matmul(weights.clone().swap_dims(2, 3), grad.clone());
    let d_weights = matmul(grad, v.swap_dims(2, 3));
    let along = (d_weights.clone() * weights.clone()).sum_dim(3);
    let mut d_scores = weights * (d_weights - along) * shape.scale;
    if let Some(tanh) = tanh {
        d_scores = d_scores * (tanh.powi_scalar(2).neg() + 1.0);
    }
    let d_k = matmul(d_scores.clone().swap_dims(2, 3), q);
    let d_q = matmul(d_scores, k);
    [ungrouped(d_q, shape), join(d_k), join(d_v)].map(|gradient| primitive(masking.unpad(gradient)))
}

#[cfg(test)]
mod tests {
    use super::{Sequences, Span};

    #[test]
    fn sequences_lie_one_after_another() {
        let spans: Vec<Span> = Sequences::new(&[3, 1, 2]).spans().collect();
        let whole = |first, length| Span { first, length, first_key: first, total: length };
        assert_eq!(spans, [whole(0, 3), whole(3, 1), whole(4, 2)]);
        let spans: Vec<Span> = Sequences::after(5, 2).spans().collect();
        assert_eq!(spans, [Span { first: 0, length: 2, first_key: 0, total: 7 }]);
    }
}
