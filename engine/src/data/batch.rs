//! Batches, and their order as a function of seed and epoch.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Dataset, Example};

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

/// How examples go into micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grouping {
    /// As the shuffle has them.
    #[default]
    Shuffled,
    /// Examples of like length together, as transformers' `group_by_length` does.
    ByLength,
    /// Bins filled with whole examples, so that every micro-batch has about the same number of tokens.
    Packed {
        /// Tokens of a bin.
        bin: usize,
    },
}

/// Micro-batches of a stretch of the shuffle that is sorted by length, as in transformers.
const STRETCH: usize = 50;

fn random(seed: u64, purpose: u64, epoch: usize) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(epoch as u64).to_le_bytes());
    key[16..24].copy_from_slice(&purpose.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, random.random_range(0..=i as u64) as usize);
    }
}

/// The order of `count` examples in an epoch: a shuffle that depends on seed and epoch alone.
pub fn epoch_order(count: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    shuffle(&mut order, &mut random(seed, 0, epoch));
    order
}

/// A number for each of `count` records, which depends on seed and place alone.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<u64> {
    let mut random = random(seed, 2, 0);
    (0..count).map(|_| random.random()).collect()
}

/// Best-fit decreasing: the longest first, each into the fullest bin that it still fits into; an item longer than a bin
/// has one of its own. Ties keep the order of `items`. Bins hold at most 11/9 as many as the best packing and one more
/// (D. S. Johnson et al., SIAM J. Comput. 3, 1974); their number depends on the lengths alone, not on the order.
fn pack(mut items: Vec<usize>, lengths: &[usize], bin: usize) -> Vec<Vec<usize>> {
    items.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Bins by the room that they have left.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for item in items {
        let length = lengths[item];
        let fullest =
            open.range_mut(length..).next().and_then(|(room, bins)| Some((*room, bins.pop()?, bins.is_empty())));
        let (room, index) = match fullest {
            Some((room, index, last)) => {
                if last {
                    open.remove(&room);
                }
                (room, index)
            }
            None => {
                bins.push(Vec::new());
                (bin.max(length), bins.len() - 1)
            }
        };
        bins[index].push(item);
        if room > length {
            open.entry(room - length).or_default().push(index);
        }
    }
    bins
}

/// Which examples each optimizer step sees; any step can be asked for, so that resuming is exact by construction.
#[derive(Clone, Debug)]
pub struct Batches {
    lengths: Vec<usize>,
    grouping: Grouping,
    batch_size: usize,
    accumulation: usize,
    seed: u64,
    /// Examples, or bins when packed.
    bins: usize,
    /// The epoch that was last asked for, and its micro-batches: an order is made once for all of its steps.
    current: RefCell<Option<(usize, Vec<Vec<usize>>)>>,
}

impl Batches {
    /// Examples of these lengths in micro-batches of `batch_size` (bins, when packed), `accumulation` of them to a step;
    /// both at least 1.
    pub fn new(lengths: Vec<usize>, grouping: Grouping, batch_size: usize, accumulation: usize, seed: u64) -> Self {
        let batch_size = batch_size.max(1);
        let bins = match grouping {
            Grouping::Packed { bin } => pack((0..lengths.len()).collect(), &lengths, bin).len(),
            Grouping::Shuffled | Grouping::ByLength => lengths.len(),
        };
        Self {
            lengths,
            grouping,
            batch_size,
            accumulation: accumulation.max(1),
            seed,
            bins,
            current: RefCell::default(),
        }
    }

    /// Those of a data set.
    pub fn of(data: &Dataset, batch_size: usize, accumulation: usize, seed: u64) -> Self {
        let lengths = data.examples.iter().map(|e| e.tokens.len()).collect();
        Self::new(lengths, data.grouping, batch_size, accumulation, seed)
    }

    /// Optimizer steps of one epoch; the last may be short.
    pub fn steps_per_epoch(&self) -> usize {
        self.bins.div_ceil(self.batch_size).div_ceil(self.accumulation).max(1)
    }

    /// What `batch_size` counts, in an epoch: examples, or bins when packed.
    pub fn bins(&self) -> usize {
        self.bins
    }

    /// The micro-batches of a step of an epoch, as positions in the data set: a function of seed, epoch and step.
    pub fn step(&self, epoch: usize, step: usize) -> Vec<Vec<usize>> {
        let mut current = self.current.borrow_mut();
        if !matches!(&*current, Some((made, _)) if *made == epoch) {
            *current = Some((epoch, self.epoch(epoch)));
        }
        let all = current.as_ref().map_or(&[][..], |(_, all)| all);
        all.chunks(self.accumulation).nth(step).unwrap_or_default().to_vec()
    }

    /// The micro-batches of an epoch.
    fn epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let mut order = epoch_order(self.lengths.len(), self.seed, epoch);
        let mut random = random(self.seed, 1, epoch);
        match self.grouping {
            Grouping::Shuffled => order.chunks(self.batch_size).map(<[usize]>::to_vec).collect(),
            Grouping::ByLength => {
                for stretch in order.chunks_mut(STRETCH * self.batch_size) {
                    stretch.sort_by_key(|i| std::cmp::Reverse(self.lengths[*i]));
                }
                let mut batches: Vec<Vec<usize>> = order.chunks(self.batch_size).map(<[usize]>::to_vec).collect();
                shuffle(&mut batches, &mut random);
                batches
            }
            Grouping::Packed { bin } => {
                let mut bins = pack(order, &self.lengths, bin);
                shuffle(&mut bins, &mut random);
                bins.chunks(self.batch_size).map(<[Vec<usize>]>::concat).collect()
            }
        }
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

    const GROUPINGS: [Grouping; 3] = [Grouping::Shuffled, Grouping::ByLength, Grouping::Packed { bin: 40 }];

    fn lengths(count: usize) -> Vec<usize> {
        numbers(count, 5).into_iter().map(|n| 2 + (n % 30) as usize).collect()
    }

    fn epoch(batches: &Batches, epoch: usize) -> Vec<Vec<usize>> {
        (0..batches.steps_per_epoch()).flat_map(|step| batches.step(epoch, step)).collect()
    }

    #[test]
    fn an_epoch_sees_every_example_once_in_an_order_of_its_own() {
        for grouping in GROUPINGS {
            let batches = Batches::new(lengths(230), grouping, 3, 2, 7);
            let mut sorted = epoch(&batches, 0).concat();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..230).collect::<Vec<_>>(), "{grouping:?}");
            assert_ne!(epoch(&batches, 0), epoch(&batches, 1), "{grouping:?}");
            assert_ne!(epoch(&batches, 0), epoch(&Batches::new(lengths(230), grouping, 3, 2, 8), 0), "{grouping:?}");
            assert!(batches.step(0, batches.steps_per_epoch()).is_empty(), "{grouping:?}");
            for e in 0..5 {
                let last = batches.step(e, batches.steps_per_epoch() - 1);
                assert!(!last.is_empty(), "{grouping:?}: epochs have the same number of steps");
            }
        }
        let batches = Batches::new(lengths(23), Grouping::Shuffled, 3, 2, 7);
        assert_eq!(batches.steps_per_epoch(), 4);
        assert_eq!(epoch(&batches, 0).concat(), epoch_order(23, 7, 0));
        assert_eq!(batches.step(0, 3).iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn a_step_does_not_depend_on_the_steps_before_it() {
        for grouping in GROUPINGS {
            let batches = Batches::new(lengths(100), grouping, 4, 2, 1);
            let in_order: Vec<_> =
                (0..3).flat_map(|e| (0..5).map(move |s| (e, s))).map(|(e, s)| batches.step(e, s)).collect();
            for (i, expected) in in_order.iter().enumerate().rev() {
                let fresh = Batches::new(lengths(100), grouping, 4, 2, 1);
                assert_eq!(&fresh.step(i / 5, i % 5), expected, "{grouping:?}");
                assert_eq!(&batches.step(i / 5, i % 5), expected, "{grouping:?}");
            }
        }
    }

    #[test]
    fn bins_hold_what_fits_and_are_as_few_as_known() {
        let lengths = [6, 5, 5, 4, 3, 3, 2, 2, 15];
        let bins = pack((0..lengths.len()).collect(), &lengths, 10);
        let fill: Vec<Vec<usize>> = bins.iter().map(|bin| bin.iter().map(|i| lengths[*i]).collect()).collect();
        assert_eq!(fill, [vec![15], vec![6, 4], vec![5, 5], vec![3, 3, 2, 2]]);
        let lengths = self::lengths(500);
        let batches = Batches::new(lengths.clone(), Grouping::Packed { bin: 40 }, 2, 1, 3);
        let tokens = |batch: &Vec<usize>| batch.iter().map(|i| lengths[*i]).sum::<usize>();
        let made = epoch(&batches, 0);
        assert!(made.iter().all(|batch| tokens(batch) <= 80));
        assert!(made.len() as f64 <= 1.02 * (lengths.iter().sum::<usize>() as f64 / 80.0).ceil());
        assert_ne!(made[0], epoch(&batches, 1)[0]);
    }

    #[test]
    fn batches_by_length_hold_like_lengths() {
        let lengths = lengths(2000);
        let spread = |grouping| {
            let batches = Batches::new(lengths.clone(), grouping, 8, 1, 3);
            let spread = |batch: &Vec<usize>| {
                let of = |i: &usize| lengths[*i];
                batch.iter().map(of).max().unwrap_or(0) - batch.iter().map(of).min().unwrap_or(0)
            };
            epoch(&batches, 0).iter().map(spread).sum::<usize>() as f64 / batches.steps_per_epoch() as f64
        };
        assert!(spread(Grouping::ByLength) < 2.0 && spread(Grouping::Shuffled) > 15.0);
        let batches = Batches::new(lengths.clone(), Grouping::ByLength, 8, 1, 3);
        let longest: Vec<usize> = epoch(&batches, 0).iter().map(|b| lengths[b[0]]).collect();
        assert!(!longest.is_sorted_by(|a, b| a >= b), "long batches do not all come first");
    }

    #[test]
    fn a_stream_is_cut_without_a_lone_token() {
        let windows = pack_stream(&[1, 2, 3, 4, 5], 2);
        assert_eq!(windows.iter().map(|w| w.tokens.clone()).collect::<Vec<_>>(), [[1, 2], [3, 4]]);
        assert_eq!(windows[0].trained, [false, true]);
    }
}
