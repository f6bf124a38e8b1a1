//! What attention needs of a pass on its device, in whichever form it is computed.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use super::{AttentionForm, Sequences, Span};
use crate::ops::{ComputeDtype, Ops};

/// Stands in for minus infinity in the mask: its exponential is zero in f32, and it stays finite in every shader.
const MASKED: f32 = -1e30;

/// Up to so many bytes of scores they are held where a backend can: kernels' blocks of queries would be mostly empty, and the products
/// of the composed form are tuned to the device.
const FEW_SCORES: u64 = 8 << 20;

/// What attention needs of a pass, on its device.
#[derive(Clone, Debug)]
pub enum Masking<B: Backend> {
    /// For the composed form.
    Composed(Composed<B>),
    /// For a GPU's kernels.
    Bounds(Bounds<B>),
    /// For code that goes by the sequences themselves.
    Sequences,
}

/// What a GPU's kernels need.
#[derive(Clone, Debug)]
pub struct Bounds<B: Backend> {
    /// `[2 * queries]` in `U32`: the first key that each query sees, and its own, the last one.
    pub(in crate::ops) seen: Tensor<B, 1, Int>,
    /// The type that kernels take queries, keys, values and the result's gradient in.
    pub(in crate::ops) operands: FloatDType,
}

/// What the composed attention needs.
#[derive(Clone, Debug)]
pub struct Composed<B: Backend> {
    /// Added to the scores: `[1, 1, longest, cached + longest]`; absent for a single token that sees all.
    pub(super) hidden: Option<Tensor<B, 4>>,
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

impl<B: Ops> Masking<B> {
    /// For sequences of which each query sees at most `window` tokens, in the form that suits the backend, this many heads and the
    /// type that is computed in.
    pub fn new(
        sequences: &Sequences,
        window: Option<usize>,
        heads: usize,
        compute: ComputeDtype,
        device: &B::Device,
    ) -> Self {
        let [rows, longest, cached, heads] =
            [sequences.lengths.len(), sequences.longest(), sequences.cached, heads].map(|n| n as u64);
        let scores = 4 * rows * heads * longest * (cached + longest);
        let form = match B::ATTENTION_FORMS {
            forms if scores <= FEW_SCORES && forms.contains(&AttentionForm::Composed) => AttentionForm::Composed,
            forms if compute == ComputeDtype::Bf16 && forms.contains(&AttentionForm::FusedBf16) => {
                AttentionForm::FusedBf16
            }
            forms => forms[0],
        };
        Self::of(form, sequences, window, device)
    }

    /// For this form, one of the backend's.
    pub fn of(form: AttentionForm, sequences: &Sequences, window: Option<usize>, device: &B::Device) -> Self {
        match form {
            AttentionForm::Composed => Self::Composed(Composed::new(sequences, window, device)),
            _ if B::BOUNDED_ATTENTION => Self::Bounds(Bounds {
                seen: Tensor::from_data(limits(sequences, window), (device, DType::U32)),
                operands: if form == AttentionForm::FusedBf16 { FloatDType::BF16 } else { FloatDType::F32 },
            }),
            _ => Self::Sequences,
        }
    }
}

/// What a GPU's kernels read of a masking for them.
#[cfg(feature = "gpu")]
pub(in crate::ops) fn bounds<B: Backend>(masking: &Masking<B>) -> Bounds<B> {
    match masking {
        Masking::Bounds(bounds) => bounds.clone(),
        other => unreachable!("a masking for kernels holds bounds, not {other:?}"),
    }
}

/// The first key and the last key that each query sees.
fn limits(sequences: &Sequences, window: Option<usize>) -> TensorData {
    let of_span = |span: Span| {
        (0..span.length).flat_map(move |i| {
            let seen = span.total - span.length + i + 1;
            let hidden = window.map_or(0, |window| seen.saturating_sub(window));
            [span.first_key + hidden, span.first_key + seen - 1].map(|key| key as u32)
        })
    };
    let bounds: Vec<u32> = sequences.spans().flat_map(of_span).collect();
    let length = bounds.len();
    TensorData::new(bounds, [length])
}

impl<B: Backend> Masking<B> {
    /// The same on the autodiff decoration of `B`.
    pub fn lift(&self) -> Masking<Autodiff<B>> {
        match self {
            Self::Composed(composed) => {
                Masking::Composed(composed.map(Tensor::from_inner, Tensor::from_inner, Tensor::from_inner))
            }
            Self::Bounds(bounds) => Masking::Bounds(bounds.map(Tensor::from_inner)),
            Self::Sequences => Masking::Sequences,
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> Masking<Autodiff<B, C>> {
    /// The same on the backend beneath.
    pub(in crate::ops) fn inner(&self) -> Masking<B> {
        match self {
            Self::Composed(composed) => Masking::Composed(composed.map(Tensor::inner, Tensor::inner, Tensor::inner)),
            Self::Bounds(bounds) => Masking::Bounds(bounds.map(Tensor::inner)),
            Self::Sequences => Masking::Sequences,
        }
    }
}

impl<B: Backend> Bounds<B> {
    /// The same with its tensor put through a function.
    fn map<C: Backend>(&self, of_seen: impl Fn(Tensor<B, 1, Int>) -> Tensor<C, 1, Int>) -> Bounds<C> {
        Bounds { seen: of_seen(self.seen.clone()), operands: self.operands }
    }
}

impl<B: Backend> Composed<B> {
    pub(in crate::ops) fn new(sequences: &Sequences, window: Option<usize>, device: &B::Device) -> Self {
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

    /// The same with each tensor put through a function.
    fn map<C: Backend>(
        &self,
        of_hidden: impl Fn(Tensor<B, 4>) -> Tensor<C, 4>,
        of_indices: impl Fn(Tensor<B, 1, Int>) -> Tensor<C, 1, Int>,
        of_real: impl Fn(Tensor<B, 2>) -> Tensor<C, 2>,
    ) -> Composed<C> {
        let padding = self.padding.clone().map(|Padding { tokens, places, real }| Padding {
            tokens: of_indices(tokens),
            places: of_indices(places),
            real: of_real(real),
        });
        Composed { hidden: self.hidden.clone().map(of_hidden), padding }
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

impl<B: Backend> Composed<B> {
    /// `[tokens, width] -> [rows * longest, width]`. What stands in the padding is arbitrary: it comes after its
    /// sequence, where no token of the sequence looks.
    pub(super) fn pad(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.padding {
            Some(padding) => x.select(0, padding.tokens.clone()),
            None => x,
        }
    }

    /// The same with zeros in the padding.
    pub(super) fn pad_with_zeros(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.padding {
            Some(padding) => x.select(0, padding.tokens.clone()) * padding.real.clone(),
            None => x,
        }
    }

    /// The inverse of both.
    pub(super) fn unpad(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.padding {
            Some(padding) => x.select(0, padding.places.clone()),
            None => x,
        }
    }
}
