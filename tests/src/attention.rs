//! Attention and its gradients against a plain f64 formula, in every form of a backend.

use halfbyte::ops::{AttentionForm, AttentionShape, Masking, Ops, Sequences, causal_attention};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::operations::{Case, Matrix};

/// Attention over sequences of equal and of differing lengths, with grouped heads, after a cache, through a window, with
/// capped scores.
pub fn attention_matches<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let of = |sequences, [heads, kv_heads, head_dim]: [usize; 3], window: Option<usize>, softcap: Option<f32>| {
        let scale = if softcap.is_some() { 2.5 } else { (head_dim as f32).powf(-0.5) };
        AttentionShape { sequences, window, heads, kv_heads, head_dim, scale, softcap }
    };
    let shapes = [
        of(Sequences::new(&[1]), [1, 1, 4], None, None),
        of(Sequences::new(&[6, 6]), [4, 2, 8], None, None),
        of(Sequences::new(&[3, 1, 7, 2]), [6, 2, 5], None, None),
        of(Sequences::after(4, 3), [2, 1, 8], None, None),
        of(Sequences::new(&[6, 6]), [4, 2, 8], Some(1), None),
        of(Sequences::new(&[3, 1, 7, 2]), [6, 2, 5], Some(3), Some(2.0)),
        of(Sequences::new(&[9]), [2, 1, 4], None, Some(1.5)),
        of(Sequences::after(4, 3), [2, 1, 8], Some(4), Some(3.0)),
        of(Sequences::after(6, 1), [2, 1, 8], Some(3), None),
        of(Sequences::new(&[5]), [2, 1, 4], Some(64), None),
        // More than one block of queries, the keys of the second beginning inside the sequence.
        of(Sequences::new(&[150]), [1, 1, 2], Some(9), Some(2.0)),
    ];
    let exact = B::ATTENTION_FORMS.iter().filter(|form| **form != AttentionForm::FusedBf16);
    for (form, shape) in exact.flat_map(|form| shapes.iter().map(move |shape| (*form, shape.clone()))) {
        // Through a window of one token no score matters; a kernel's gradients of the scores are rounding then, not zeros.
        if shape.window == Some(1) && form == AttentionForm::Fused && B::BOUNDED_ATTENTION {
            continue;
        }
        let masking = Masking::of(form, &shape.sequences, shape.window, device);
        let keys = shape.sequences.spans().map(|span| span.total).sum();
        let widths = [shape.heads, shape.kv_heads, shape.kv_heads].map(|heads| heads * shape.head_dim);
        let rows = [shape.sequences.tokens(), keys, keys];
        let case = Case::<B> {
            name: format!("{form:?} attention of {shape:?}"),
            inputs: rows.into_iter().zip(widths).map(|(m, n)| Matrix::random(m, n, &mut random)).collect(),
            operation: &|x| causal_attention(x[0].clone(), x[1].clone(), x[2].clone(), &masking, &shape),
            formula: &|x| attention(&x[0], &x[1], &x[2], &shape),
        };
        case.check(device, &mut random);
    }
}

/// Softmax attention, query by query.
fn attention(q: &Matrix, k: &Matrix, v: &Matrix, shape: &AttentionShape) -> Matrix {
    let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let bounded = |score: f64| shape.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
    let mut out = Matrix::of(q.rows, q.columns, |_, _| f64::NAN);
    for span in shape.sequences.spans() {
        for (i, head) in (0..span.length).flat_map(|i| (0..shape.heads).map(move |head| (i, head))) {
            let (row, base) = (span.first + i, head / group * d);
            let own = span.first_key + span.total - span.length + i;
            let seen =
                shape.window.map_or(span.first_key, |w| span.first_key.max((own + 1).saturating_sub(w)))..own + 1;
            let dot = |key| (0..d).map(|c| q.at(row, head * d + c) * k.at(key, base + c)).sum::<f64>();
            let weights: Vec<f64> = seen.clone().map(|key| bounded(dot(key) * f64::from(shape.scale)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for c in 0..d {
                let value: f64 = seen.clone().zip(&weights).map(|(key, w)| w * v.at(key, base + c)).sum();
                out.values[row * q.columns + head * d + c] = value / sum;
            }
        }
    }
    out
}
