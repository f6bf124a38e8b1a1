//! Causal attention over sequences of differing lengths: who sees whom, and in which forms that is computed.

// Without a GPU's backend no one asks for the composed form but tests.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
mod composed;
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
mod masking;

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{ComputeDtype, Ops};

#[cfg(any(feature = "gpu", all(test, feature = "cpu")))]
pub(super) use composed::{backward, forward};
#[cfg(feature = "gpu")]
pub(super) use masking::bounds;
pub use masking::{Bounds, Composed, Masking};

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionForm {
    /// By the backend's own code, which never holds the scores of all queries.
    Fused,
    /// The same on CUDA's tensor cores, operands rounded to bf16: for [`ComputeDtype::Bf16`] alone.
    FusedBf16,
    /// Of Burn's operations, over scores of all queries.
    Composed,
}

impl AttentionForm {
    /// The backend's, of those that a device has.
    pub fn on<B: Ops>(device: &B::Device) -> Vec<Self> {
        let has = |form: &Self| *form != Self::FusedBf16 || ComputeDtype::Bf16.check::<B>(device).is_ok();
        B::ATTENTION_FORMS.iter().copied().filter(has).collect()
    }
}

/// What attention gives.
#[derive(Clone, Debug)]
pub struct Attended<B: Backend> {
    /// Shaped like the queries.
    pub y: FloatTensor<B>,
    /// The logarithm of each query's sum of exponentials, `[tokens, heads]`, where the gradients take it and `y`.
    pub lse: Option<FloatTensor<B>>,
}

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

    /// Keys and values of all sequences.
    pub fn keys(&self) -> usize {
        self.tokens() + self.cached * self.lengths.len()
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
