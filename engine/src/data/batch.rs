//! Batches, and their order as a function of seed and epoch.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Example;

/// Examples one after another, with nothing between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Tokens of each example.
    pub lengths: Vec<usize>,
    /// The tokens of all.
    pub tokens: Vec<u32>,
    /// Where the loss is taken: a position in `tokens`, and the token that must be predicted there.
    pub targets: Vec<(usize, u32)>,
}

impl Batch {
    /// Puts examples together.
    pub fn collate<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut batch = Self { lengths: Vec::new(), tokens: Vec::new(), targets: Vec::new() };
        for example in examples {
            let start = batch.tokens.len();
            let trained = example.tokens.iter().zip(&example.trained).enumerate().skip(1).filter(|(_, (_, t))| **t);
            batch.targets.extend(trained.map(|(i, (token, _))| (start + i - 1, *token)));
            batch.tokens.extend(&example.tokens);
            batch.lengths.push(example.tokens.len());
        }
        batch
    }
}

/// The order of `count` examples in an epoch: a shuffle that depends on seed and epoch alone.
pub fn epoch_order(count: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(epoch as u64).to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, random.random_range(0..=i as u64) as usize);
    }
    order
}

/// Which examples each optimizer step sees; any step can be asked for, so that resuming is exact by construction.
#[derive(Clone, Debug)]
pub struct Batches {
    count: usize,
    batch_size: usize,
    accumulation: usize,
    seed: u64,
}

impl Batches {
    /// `count` examples in micro-batches of `batch_size`, `accumulation` of them to a step; both at least 1.
    pub fn new(count: usize, batch_size: usize, accumulation: usize, seed: u64) -> Self {
        Self { count, batch_size: batch_size.max(1), accumulation: accumulation.max(1), seed }
    }

    /// Optimizer steps of one epoch; the last may be short.
    pub fn steps_per_epoch(&self) -> usize {
        self.count.div_ceil(self.batch_size * self.accumulation).max(1)
    }

    /// The micro-batches of a step of an epoch, as positions in the data set.
    pub fn step(&self, epoch: usize, step: usize) -> Vec<Vec<usize>> {
        let order = epoch_order(self.count, self.seed, epoch);
        let size = self.batch_size * self.accumulation;
        let examples = order.into_iter().skip(step * size).take(size).collect::<Vec<_>>();
        examples.chunks(self.batch_size).map(<[usize]>::to_vec).collect()
    }
}

/// Cuts a stream of tokens into windows of `length` in which every token is trained; a last window of one token, which
/// would predict nothing, is left out.
pub fn pack_stream(tokens: &[u32], length: usize) -> Vec<Example> {
    let windows = tokens.chunks(length.max(2)).filter(|window| window.len() > 1);
    windows
        .map(|window| {
            let mut trained = vec![true; window.len()];
            trained[0] = false;
            Example { tokens: window.to_vec(), trained }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_trained_tokens_one_position_earlier() {
        let a = Example { tokens: vec![5, 6, 7], trained: vec![false, false, true] };
        let b = Example { tokens: vec![8, 9], trained: vec![false, true] };
        let batch = Batch::collate([&a, &b]);
        assert_eq!(batch.lengths, [3, 2]);
        assert_eq!(batch.tokens, [5, 6, 7, 8, 9]);
        assert_eq!(batch.targets, [(1, 7), (3, 9)]);
    }

    #[test]
    fn an_epoch_sees_every_example_once_in_an_order_of_its_own() {
        let batches = Batches::new(23, 3, 2, 7);
        assert_eq!(batches.steps_per_epoch(), 4);
        let epoch = |e| (0..4).flat_map(|s| batches.step(e, s)).flatten().collect::<Vec<_>>();
        let mut sorted = epoch(0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..23).collect::<Vec<_>>());
        assert_ne!(epoch(0), epoch(1));
        assert_eq!(epoch(1), epoch(1));
        assert_ne!(epoch(0), (0..4).flat_map(|s| Batches::new(23, 3, 2, 8).step(0, s)).flatten().collect::<Vec<_>>());
        assert_eq!(batches.step(0, 3).iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn a_stream_is_cut_without_a_lone_token() {
        let windows = pack_stream(&[1, 2, 3, 4, 5], 2);
        assert_eq!(windows.iter().map(|w| w.tokens.clone()).collect::<Vec<_>>(), [[1, 2], [3, 4]]);
        assert_eq!(windows[0].trained, [false, true]);
    }
}
