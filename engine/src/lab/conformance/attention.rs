//! Attention in every form of a backend, and its gradients, against plain loops in f64.

use burn::tensor::FloatDType;

use super::{Case, HALF_TOLERANCE, Matrix, Suite, TOLERANCE};
use crate::Result;
use crate::model::in_type;
use crate::ops::{AttentionForm, AttentionShape, Masking, Ops, Sequences, attention_with_gradients};

/// Heads of queries and of keys, and how wide they are: single elements, no multiple of four, tiles of the kernels and more than one.
const HEADS: [[usize; 3]; 7] = [[1, 1, 1], [4, 2, 5], [2, 1, 16], [6, 2, 64], [4, 2, 128], [2, 2, 80], [2, 1, 256]];

/// Sequences, window and cap: one token, blocks of the kernels and their remainders, packed, after a cache.
fn kinds() -> Vec<(Sequences, Option<usize>, Option<f32>)> {
    vec![
        (Sequences::new(&[1]), None, None),
        (Sequences::new(&[64]), None, None),
        (Sequences::new(&[131]), None, None),
        (Sequences::new(&[3, 70, 1, 33]), None, Some(1.5)),
        (Sequences::new(&[65, 65]), Some(17), None),
        (Sequences::after(77, 9), None, None),
        (Sequences::after(30, 40), Some(33), Some(2.0)),
    ]
}

fn tolerance(form: AttentionForm) -> f64 {
    match form {
        AttentionForm::FusedBf16 => HALF_TOLERANCE,
        _ => TOLERANCE,
    }
}

impl<B: Ops, P: AsyncFnMut(&Case)> Suite<B, P> {
    pub(super) async fn attention(&mut self) -> Result<()> {
        // Each width with some of the kinds: all pairs would take longer than all else.
        for (i, [heads, kv_heads, head_dim]) in HEADS.into_iter().enumerate() {
            for (_, (sequences, window, softcap)) in kinds().into_iter().enumerate().filter(|(j, _)| (i + j) % 2 == 0) {
                let scale = 1.5 / (head_dim as f32).sqrt();
                let shape = AttentionShape { sequences, window, heads, kv_heads, head_dim, scale, softcap };
                self.attention_of(shape).await?;
            }
        }
        Ok(())
    }

    async fn attention_of(&mut self, shape: AttentionShape) -> Result<()> {
        let AttentionShape { sequences, window, heads, kv_heads, head_dim, softcap, .. } = &shape;
        let (tokens, keys) = (sequences.tokens(), sequences.keys());
        let about = format!(
            "{heads} heads over {kv_heads} of {head_dim}, tokens {:?} after {}, window {window:?}, cap {softcap:?}",
            sequences.lengths, sequences.cached
        );
        // In the kernels' own type or in one that they convert, and in f32.
        for (held, rounding) in self.types() {
            // As they are held: a gradient of queries is a difference of much larger terms, and what operands lose at first would tell in it.
            let [q, k, v, grad] = [(tokens, *heads), (keys, *kv_heads), (keys, *kv_heads), (tokens, *heads)]
                .map(|(rows, heads)| self.random(rows, heads * head_dim).rounded(held));
            let of_these = |dtype| {
                let operands = [&q, &k, &v, &grad].map(|matrix| matrix.clone().rounded(dtype));
                let expected = formulas(&operands, &shape);
                (operands, expected)
            };
            let as_held = of_these(held);
            let of = if held == FloatDType::F32 { String::new() } else { format!(" of {held:?}") };
            for form in AttentionForm::on::<B>(&self.device) {
                let masking = Masking::of(form, sequences, *window, &self.device);
                // What a form rounds at first is lost beforehand, too.
                let rounded = (form == AttentionForm::FusedBf16).then(|| of_these(FloatDType::BF16));
                let (operands, expected) = rounded.as_ref().unwrap_or(&as_held);
                for matrix in &operands[..3] {
                    self.poison(matrix.values.len()).await?;
                }
                let [q, k, v, grad] = operands.each_ref().map(|matrix| in_type(self.upload(matrix), held));
                let (y, [d_q, d_k, d_v]) = attention_with_gradients([q, k, v], grad, &masking, &shape);
                for (what, found, expected) in [
                    ("", y, &expected[0]),
                    (" dq", d_q, &expected[1]),
                    (" dk", d_k, &expected[2]),
                    (" dv", d_v, &expected[3]),
                ] {
                    let kernel = (format!("attention {form:?}{what}{of}"), tolerance(form).max(rounding));
                    // Of a query that sees one key only, the gradient is zero, and what is found is rounding.
                    if expected.iter().any(|value| value.abs() > 1e-9) {
                        self.compare(kernel, about.clone(), found, expected).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The result and the gradients of queries, keys and values.
fn formulas([q, k, v, grad]: &[Matrix; 4], shape: &AttentionShape) -> [Vec<f64>; 4] {
    let (d, group, scale) = (shape.head_dim, shape.group(), f64::from(shape.scale));
    let element = |x: &Matrix, row: usize, head: usize, i: usize| f64::from(x.values[row * x.columns + head * d + i]);
    let zeros = |x: &Matrix| vec![0.0f64; x.values.len()];
    let (mut y, mut d_q, mut d_k, mut d_v) = (zeros(q), zeros(q), zeros(k), zeros(v));
    for span in shape.sequences.spans() {
        for (i, head) in (0..span.length).flat_map(|i| (0..shape.heads).map(move |head| (i, head))) {
            let (row, kv_head) = (span.first + i, head / group);
            let own = span.total - span.length + i;
            let first = shape.window.map_or(0, |window| (own + 1).saturating_sub(window));
            let seen = span.first_key + first..span.first_key + own + 1;
            let dot = |a: &Matrix, b: &Matrix, key: usize| -> f64 {
                (0..d).map(|i| element(a, row, head, i) * element(b, key, kv_head, i)).sum()
            };
            let bounded = |score: f64| match shape.softcap.map(f64::from) {
                Some(cap) => ((score / cap).tanh() * cap, 1.0 - (score / cap).tanh().powi(2)),
                None => (score, 1.0),
            };
            let scores: Vec<(f64, f64)> = seen.clone().map(|key| bounded(dot(q, k, key) * scale)).collect();
            let sum: f64 = scores.iter().map(|(score, _)| score.exp()).sum();
            let d_weights: Vec<f64> = seen.clone().map(|key| dot(grad, v, key)).collect();
            let weights: Vec<f64> = scores.iter().map(|(score, _)| score.exp() / sum).collect();
            let delta: f64 = weights.iter().zip(&d_weights).map(|(weight, d_weight)| weight * d_weight).sum();
            for (j, key) in seen.enumerate() {
                let d_score = weights[j] * (d_weights[j] - delta) * scores[j].1 * scale;
                for i in 0..d {
                    let (query, at) = (row * q.columns + head * d + i, key * k.columns + kv_head * d + i);
                    y[query] += weights[j] * element(v, key, kv_head, i);
                    d_v[at] += weights[j] * element(grad, row, head, i);
                    d_q[query] += d_score * element(k, key, kv_head, i);
                    d_k[at] += d_score * element(q, row, head, i);
                }
            }
        }
    }
    [y, d_q, d_k, d_v]
}
