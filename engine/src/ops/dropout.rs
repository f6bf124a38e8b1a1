//! Which elements are dropped: a function of a key and of an element's place, by Philox4x32-10 (Salmon et al., SC11, the generator
//! of PyTorch's dropout on GPUs). Every backend drops the same ones, each element on its own, so that nothing has to be kept.

/// Counters of Philox that are side by side, for the sake of SIMD.
pub(super) const LANES: usize = 8;

/// Elements that [`LANES`] counters decide on: each gives four words, each of them two halves.
pub(super) const GROUP: usize = 8 * LANES;

/// Dropout of a tensor (Srivastava et al., JMLR 15:1929).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropped {
    /// Tells apart what is dropped of different tensors.
    pub key: [u32; 2],
    /// An element is dropped whose 16 random bits lie below.
    pub threshold: u32,
    /// What is kept is multiplied by this, so that the mean stays.
    pub kept: f32,
}

impl Dropped {
    /// A share `p` of all elements, which lies in `0..1`, to the nearest of 65,536 parts.
    pub fn new(key: u64, p: f64) -> Self {
        let threshold = ((p * 65_536.0).round() as u32).min(65_535);
        Self { key: [key as u32, (key >> 32) as u32], threshold, kept: 65_536.0 / (65_536 - threshold) as f32 }
    }

    /// What an element is multiplied by.
    pub fn factor(&self, element: usize) -> f32 {
        self.factors(element / GROUP)[element % GROUP]
    }

    /// What the elements from `GROUP * group` on are multiplied by. Of each eight in a row all come from another counter, and the
    /// next eight from the same ones' next halves, the lower one of a word first.
    #[inline(always)]
    pub(super) fn factors(&self, group: usize) -> [f32; GROUP] {
        let counter: [u64; LANES] = std::array::from_fn(|lane| (group * LANES + lane) as u64);
        let words =
            philox([counter.map(|c| c as u32), counter.map(|c| (c >> 32) as u32), [0; LANES], [0; LANES]], self.key);
        let mut factors = [self.kept; GROUP];
        for (half, factors) in factors.chunks_exact_mut(LANES).enumerate() {
            for (factor, word) in factors.iter_mut().zip(words[half / 2]) {
                if (word >> (16 * (half % 2))) & 0xffff < self.threshold {
                    *factor = 0.0;
                }
            }
        }
        factors
    }
}

/// Four random words of each of `N` counters, side by side for the sake of SIMD.
// A lane is of four arrays.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn philox<const N: usize>(mut counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for _ in 0..10 {
        for lane in 0..N {
            let [first, second] = [(0xD251_1F53, counter[0][lane]), (0xCD9E_8D57, counter[2][lane])]
                .map(|(multiplier, word): (u64, u32)| multiplier * u64::from(word));
            counter[0][lane] = (second >> 32) as u32 ^ counter[1][lane] ^ key[0];
            counter[1][lane] = second as u32;
            counter[2][lane] = (first >> 32) as u32 ^ counter[3][lane] ^ key[1];
            counter[3][lane] = first as u32;
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::{Dropped, philox};

    #[test]
    fn words_are_those_of_random123() {
        // Random123 1.14, tests/kat_vectors.
        let ones = u32::MAX;
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter.map(|word| [word]), key).map(|[word]| word), expected);
        }
    }

    #[test]
    fn a_share_is_dropped_and_the_mean_stays() {
        const COUNT: usize = 1 << 16;
        for p in [0.0, 0.05, 0.5] {
            let drop = Dropped::new(7, p);
            let factors: Vec<f32> = (0..COUNT).map(|i| drop.factor(i)).collect();
            let share = factors.iter().filter(|factor| **factor == 0.0).count() as f64 / COUNT as f64;
            // Five standard deviations.
            let bound = 5.0 * (p * (1.0 - p) / COUNT as f64).sqrt();
            assert!((share - p).abs() <= bound, "{share} of {p}");
            assert!(factors.iter().all(|factor| *factor == 0.0 || *factor == drop.kept));
        }
        let of = |key| (0..64).map(|i| Dropped::new(key, 0.5).factor(i)).collect::<Vec<_>>();
        assert!(of(1) != of(2) && of(1) != of(1 << 32));
    }
}
