//! What of a run fits a given memory: searches over its plan.

use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{ModelShape, Run, plan};

/// A change to a run with which it fits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Sequences of a micro-batch.
    pub batch: u64,
    /// Micro-batches of an optimizer step; with `batch` it makes at least the sequences of a step that were asked for.
    pub accumulation: u64,
    /// Tokens of a sequence.
    pub length: u64,
    /// Whether layers are computed again in the backward pass.
    pub recompute: bool,
    /// What it needs.
    pub bytes: u64,
}

/// The largest value up to `most` that `fits`, which holds for every value below one that it holds for.
pub(crate) fn largest(most: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
    if most == 0 || !fits(1) {
        return None;
    }
    let (mut yes, mut no) = (1, most.saturating_add(1));
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if fits(middle) { yes = middle } else { no = middle }
    }
    Some(yes)
}

/// The largest micro-batch of sequences of the run's length, up to `most`, that `memory` bytes hold.
pub fn widest(model: &ModelShape, run: &Run, memory: u64, most: u64) -> Option<u64> {
    largest(most, |batch| needed(model, &Run { batch, ..uniform(run) }) <= memory)
}

/// The longest sequence of which `memory` bytes hold one, up to `most`.
pub fn longest(model: &ModelShape, run: &Run, memory: u64, most: u64) -> Option<u64> {
    largest(most, |length| needed(model, &Run { batch: 1, length, ..uniform(run) }) <= memory)
}

fn uniform(run: &Run) -> Run {
    Run { sequences: vec![], ..run.clone() }
}

fn needed(model: &ModelShape, run: &Run) -> u64 {
    plan(model, run).peak()
}

/// Ways to run in `memory` bytes that see as many sequences per optimizer step: without recomputation, which is faster,
/// and with it, the largest micro-batch each; where the length fits not even once, the longest that does. The first is
/// the one to take: keeping graphs is taken where the whole micro-batch fits that way.
pub fn proposals(model: &ModelShape, run: &Run, memory: u64) -> Vec<Proposal> {
    let global = run.batch.saturating_mul(run.accumulation).max(1);
    let of = |recompute: bool| {
        let run = Run { recompute, accumulation: 1, ..uniform(run) };
        // Sums of gradients are held from the first micro-batch on, so the answer is checked with its own accumulation.
        let with = |most: u64, length: u64| {
            let batch = divisor(global, most);
            let run = Run { batch, length, accumulation: global / batch, ..run.clone() };
            let bytes = needed(model, &run);
            Proposal { batch, accumulation: run.accumulation, length, recompute, bytes }
        };
        let fits = |p: &Proposal| p.bytes <= memory;
        let batch = largest(global, |batch| fits(&with(batch, run.length)));
        batch.map(|batch| with(batch, run.length)).or_else(|| {
            let length = largest(run.length, |length| fits(&with(1, length)))?;
            Some(with(1, length))
        })
    };
    let mut found: Vec<Proposal> = [true, false].into_iter().filter_map(of).collect();
    // More tokens at once are better, and as many without a second forward pass better still.
    found.sort_by_key(|p| core::cmp::Reverse((p.length, p.batch, !p.recompute)));
    found
}

/// The largest divisor of `number` that is at most `most`, both at least 1: as many sequences to each micro-batch.
fn divisor(number: u64, most: u64) -> u64 {
    let pairs = (1..=number.isqrt()).filter(|small| number.is_multiple_of(*small));
    pairs.flat_map(|small| [small, number / small]).filter(|divisor| *divisor <= most).max().unwrap_or(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{ComputeDtype, preset};

    #[test]
    fn a_proposal_fits_and_one_more_would_not() {
        let model = preset("llama-3.1-8b").unwrap();
        let run = Run { batch: 64, length: 1024, weight_bytes: 4, compute_dtype: ComputeDtype::F32, ..Run::default() };
        let memory = 24 << 30;
        let found = proposals(&model, &run, memory);
        assert_eq!(found.len(), 2);
        for p in found {
            assert!(p.bytes <= memory && p.batch * p.accumulation == 64 && p.batch < 64, "{p:?}");
            let batch = 2 * p.batch;
            let more = Run { batch, recompute: p.recompute, accumulation: 64 / batch, ..run.clone() };
            assert!(plan(&model, &more).peak() > memory, "{p:?}");
        }
        for (number, most, expected) in
            [(16, 13, 8), (16, 16, 16), (4, 3, 2), (7, 6, 1), (1, 1, 1), (12, 5, 4), (12, 6, 6)]
        {
            assert_eq!(divisor(number, most), expected, "{number} {most}");
        }
    }

    #[test]
    fn what_fits_not_once_is_shortened() {
        let model = preset("llama-3.1-8b").unwrap();
        let run =
            Run { batch: 2, length: 1 << 20, weight_bytes: 4, compute_dtype: ComputeDtype::F32, ..Run::default() };
        let found = proposals(&model, &run, 24 << 30);
        assert!(!found.is_empty() && found.iter().all(|p| p.batch == 1 && p.length < 1 << 20 && p.accumulation == 2));
        assert_eq!(longest(&model, &run, 1 << 20, 4096), None);
        assert!(proposals(&model, &run, 1 << 30).is_empty());
    }
}
