//! The layers of a model over several devices.

use alloc::vec;
use alloc::vec::Vec;

use crate::fit::largest;
use crate::{ModelShape, Part, Run, plan};

/// Micro-batches that go up through the stages of a model before the first comes down again: with four times as many as stages,
/// the stages hardly wait for each other (GPipe, arXiv:1811.06965, section 3.3). One stage has nothing to overlap.
pub fn in_flight(stages: usize) -> usize {
    if stages > 1 { stages.saturating_mul(4) } else { 1 }
}

/// The run as device `i` of `devices` has a part of it, with so many of the layers.
fn part(model: &ModelShape, run: &Run, (i, devices): (usize, usize), layers: u64) -> (ModelShape, Run) {
    let in_flight = (in_flight(devices) as u64).min(run.accumulation);
    let part = Part { embedding: i == 0, head: i + 1 == devices, in_flight };
    (ModelShape { layers, ..model.clone() }, Run { part, ..run.clone() })
}

/// The run as each of several devices has a part of it, with so many of the layers, bottom first.
pub fn parts(model: &ModelShape, run: &Run, layers: &[u64]) -> Vec<(ModelShape, Run)> {
    let devices = layers.len();
    layers.iter().enumerate().map(|(i, layers)| part(model, run, (i, devices), *layers)).collect()
}

/// How many layers each of several devices takes, bottom first, so that the fullest of them, by the share of its memory that its
/// part of the run needs, is as empty as can be.
pub fn spread(model: &ModelShape, run: &Run, memories: &[u64]) -> Vec<u64> {
    let devices = memories.len();
    let share = |i: usize, layers: u64| {
        let (model, run) = part(model, run, (i, devices), layers);
        plan(&model, &run).peak() as f64 / memories[i].max(1) as f64
    };
    // Each device takes as many as keep it within a share of its memory; nothing where layers are left over.
    let within = |limit: f64| {
        let mut left = model.layers;
        let mut taken = vec![0; devices];
        for (i, taken) in taken.iter_mut().enumerate() {
            *taken = largest(left, |layers| share(i, layers) <= limit).unwrap_or(0);
            left -= *taken;
        }
        (left == 0).then_some(taken)
    };
    let mut found = vec![0; devices];
    let Some(first) = found.first_mut() else { return found };
    *first = model.layers;
    let (mut low, mut high) = (0.0, share(0, model.layers));
    while high - low > 1e-4 * high {
        let middle = f64::midpoint(low, high);
        match within(middle) {
            Some(taken) => (found, high) = (taken, middle),
            None => low = middle,
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::preset;

    fn needed(model: &ModelShape, run: &Run, layers: &[u64]) -> Vec<u64> {
        parts(model, run, layers).iter().map(|(model, run)| plan(model, run).peak()).collect()
    }

    #[test]
    fn no_other_split_is_fuller_at_its_fullest() {
        let model = ModelShape { layers: 12, ..preset("llama-3.2-1b").unwrap() };
        let run = Run { accumulation: 4, ..Run::default() };
        for memories in [[8u64 << 30, 8 << 30, 8 << 30], [4 << 30, 16 << 30, 8 << 30], [1 << 20, 8 << 30, 8 << 30]] {
            let fullest = |layers: &[u64]| {
                let shares = needed(&model, &run, layers).into_iter().zip(memories);
                shares.map(|(needed, memory)| needed as f64 / memory as f64).fold(0.0, f64::max)
            };
            let found = spread(&model, &run, &memories);
            assert_eq!(found.iter().sum::<u64>(), model.layers);
            for first in 0..=model.layers {
                for second in 0..=model.layers - first {
                    let other = [first, second, model.layers - first - second];
                    assert!(fullest(&found) <= fullest(&other) * 1.001, "{found:?} against {other:?}");
                }
            }
        }
    }

    #[test]
    fn parts_sum_to_the_whole() {
        for name in ["llama-3.1-8b", "llama-3.2-1b"] {
            let model = preset(name).unwrap();
            let run = Run::default();
            let whole = plan(&model, &run).persistent();
            let both = parts(&model, &run, &[10, model.layers - 10]);
            let sum: u64 = both.iter().map(|(model, run)| plan(model, run).persistent()).sum();
            // Each device counts the norm behind the layers, and a tied head is a copy.
            let twice = (model.hidden_size + if model.tied { model.vocab_size * model.hidden_size } else { 0 })
                * run.weight_bytes;
            assert_eq!(sum, whole + twice, "{name}");
        }
    }

    #[test]
    fn what_is_in_flight_is_kept() {
        let model = preset("llama-3.1-8b").unwrap();
        let of = |accumulation| {
            let run = Run { accumulation, ..Run::default() };
            needed(&model, &run, &[16, 16])[0]
        };
        let inputs = 2048 * model.hidden_size * 4 * 16;
        // Beside the inputs of the layers, what is handed on and comes back.
        assert!(of(8) - of(4) >= 4 * inputs && of(8) - of(4) < 5 * inputs, "{} and {}", of(4), of(8));
        assert_eq!(of(8), of(80));
    }
}
