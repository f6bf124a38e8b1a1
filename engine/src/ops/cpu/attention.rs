//! Causal attention, a block of queries of one head at a time: the whole score matrix never exists, and heads are read
//! where they lie, without a transposed copy.

use rayon::prelude::*;

use super::matrix::{Threads, View, matmul, with_scratch};
use super::rows::{dot, exponentials, max, tanh, vectorized};
use crate::ops::{AttentionShape, Span};

/// Queries of a block.
const BLOCK: usize = 128;

/// A task: one key head of one sequence, and its results.
struct Task {
    span: Span,
    kv_head: usize,
}

fn tasks(shape: &AttentionShape) -> Vec<Task> {
    shape.sequences.spans().flat_map(|span| (0..shape.kv_heads).map(move |kv_head| Task { span, kv_head })).collect()
}

/// A block of queries of a sequence: the first, how many, the first key that one of them sees, and how many keys from
/// there to the last.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    count: usize,
    from: usize,
    keys: usize,
}

fn blocks(span: Span, window: Option<usize>) -> impl Iterator<Item = Block> {
    (0..span.length).step_by(BLOCK).map(move |first| {
        let count = BLOCK.min(span.length - first);
        let before = span.total - span.length + first;
        let from = window.map_or(0, |window| (before + 1).saturating_sub(window));
        Block { first, count, from, keys: before + count - from }
    })
}

/// One head of `tokens` tokens in a tensor of rows `heads * head_dim`, from token `first` on.
fn head<'a>(x: &'a [f32], shape: &AttentionShape, heads: usize, head: usize, first: usize, tokens: usize) -> View<'a> {
    let width = heads * shape.head_dim;
    View::new(x, first * width + head * shape.head_dim, [tokens, shape.head_dim], [width, 1])
}

/// The attention weights of a block of queries, `[count, keys]`, into `scores`; where scores are capped and `slopes` has
/// room, the derivative of the cap there.
fn weights(q: View, k: View, block: Block, shape: &AttentionShape, scores: &mut [f32], slopes: &mut [f32]) {
    let Block { count, keys, .. } = block;
    matmul(q, k.t(), (scores, keys), shape.scale, false, Threads::One);
    vectorized(
        #[inline(always)]
        || {
            if let Some(cap) = shape.softcap {
                let of_block = &mut scores[..count * keys];
                of_block.iter_mut().for_each(|x| *x = tanh(*x / cap));
                slopes.iter_mut().zip(of_block.iter()).for_each(|(slope, x)| *slope = 1.0 - x * x);
                of_block.iter_mut().for_each(|x| *x *= cap);
            }
            for (i, row) in scores.chunks_mut(keys).take(count).enumerate() {
                let end = keys - count + i + 1;
                let (row, after) = row.split_at_mut(end);
                let (before, seen) = row.split_at_mut(shape.window.map_or(0, |window| end.saturating_sub(window)));
                let largest = max(seen);
                let inverse = 1.0 / exponentials(seen, largest);
                seen.iter_mut().for_each(|x| *x *= inverse);
                before.fill(0.0);
                after.fill(0.0);
            }
        },
    );
}

/// Writes one head's columns into a tensor of rows `heads * head_dim`.
fn put(out: &mut [f32], values: &[f32], shape: &AttentionShape, heads: usize, head: usize, first: usize) {
    let width = heads * shape.head_dim;
    for (i, row) in values.chunks(shape.head_dim).enumerate() {
        let start = (first + i) * width + head * shape.head_dim;
        out[start..start + shape.head_dim].copy_from_slice(row);
    }
}

pub(super) fn forward(q: &[f32], k: &[f32], v: &[f32], shape: &AttentionShape) -> Vec<f32> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let of_task = |Task { span, kv_head }: &Task| {
        let Span { first: start, length, first_key, total } = *span;
        // Query heads of one key head, one after the other: [group, length, head_dim].
        let mut out = vec![0.0; shape.group() * length * head_dim];
        with_scratch(BLOCK.min(length) * total, |scores| {
            for g in 0..shape.group() {
                for block @ Block { first, count, from, keys } in blocks(*span, shape.window) {
                    let q = head(q, shape, heads, kv_head * shape.group() + g, start + first, count);
                    let k = head(k, shape, kv_heads, *kv_head, first_key + from, keys);
                    let v = head(v, shape, kv_heads, *kv_head, first_key + from, keys);
                    weights(q, k, block, shape, scores, &mut []);
                    let weights = View::new(scores, 0, [count, keys], [keys, 1]);
                    let out = &mut out[(g * length + first) * head_dim..];
                    matmul(weights, v, (out, head_dim), 1.0, false, Threads::One);
                }
            }
        });
        out
    };
    let tasks = tasks(shape);
    let parts: Vec<Vec<f32>> = tasks.par_iter().map(of_task).collect();
    let mut out = vec![0.0; q.len()];
    for (Task { span, kv_head }, part) in tasks.iter().zip(parts) {
        for (g, values) in part.chunks(span.length * head_dim).enumerate() {
            put(&mut out, values, shape, heads, kv_head * shape.group() + g, span.first);
        }
    }
    out
}

/// The gradients for `q`, `k` and `v`.
pub(super) fn backward(q: &[f32], k: &[f32], v: &[f32], grad: &[f32], shape: &AttentionShape) -> [Vec<f32>; 3] {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let of_task = |Task { span, kv_head }: &Task| {
        let Span { first: start, length, first_key, total } = *span;
        let mut d_q = vec![0.0; shape.group() * length * head_dim];
        let (mut d_k, mut d_v) = (vec![0.0; total * head_dim], vec![0.0; total * head_dim]);
        let size = BLOCK.min(length) * total;
        let slopes = if shape.softcap.is_some() { size } else { 0 };
        with_scratch(2 * size + slopes, |scratch| {
            let (scores, rest) = scratch.split_at_mut(size);
            let (d_scores, slopes) = rest.split_at_mut(size);
            for g in 0..shape.group() {
                for block @ Block { first, count, from, keys } in blocks(*span, shape.window) {
                    let at = |x| head(x, shape, heads, kv_head * shape.group() + g, start + first, count);
                    let (q, grad) = (at(q), at(grad));
                    let k = head(k, shape, kv_heads, *kv_head, first_key + from, keys);
                    let v = head(v, shape, kv_heads, *kv_head, first_key + from, keys);
                    weights(q, k, block, shape, scores, slopes);
                    let view = |scores| View::new(scores, 0, [count, keys], [keys, 1]);
                    let of_keys = from * head_dim..;
                    let d_v = &mut d_v[of_keys.clone()];
                    matmul(view(scores).t(), grad, (d_v, head_dim), 1.0, true, Threads::One);
                    matmul(grad, v.t(), (d_scores, keys), 1.0, false, Threads::One);
                    for (d, w) in d_scores.chunks_mut(keys).zip(scores.chunks(keys)).take(count) {
                        let along = dot(d, w);
                        d.iter_mut().zip(w).for_each(|(d, w)| *d = (*d - along) * w);
                    }
                    d_scores.iter_mut().zip(slopes.iter()).take(count * keys).for_each(|(d, slope)| *d *= slope);
                    let d_scores = view(d_scores);
                    let d_q = &mut d_q[(g * length + first) * head_dim..];
                    matmul(d_scores, k, (d_q, head_dim), shape.scale, false, Threads::One);
                    matmul(d_scores.t(), q, (&mut d_k[of_keys], head_dim), shape.scale, true, Threads::One);
                }
            }
        });
        [d_q, d_k, d_v]
    };
    let tasks = tasks(shape);
    let parts: Vec<[Vec<f32>; 3]> = tasks.par_iter().map(of_task).collect();
    let (mut d_q, mut d_k, mut d_v) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for (Task { span, kv_head }, [part_q, part_k, part_v]) in tasks.iter().zip(parts) {
        for (g, values) in part_q.chunks(span.length * head_dim).enumerate() {
            put(&mut d_q, values, shape, heads, kv_head * shape.group() + g, span.first);
        }
        put(&mut d_k, &part_k, shape, kv_heads, *kv_head, span.first_key);
        put(&mut d_v, &part_v, shape, kv_heads, *kv_head, span.first_key);
    }
    [d_q, d_k, d_v]
}
