//! Rotary position embedding (arXiv:2104.09864), in the half-split layout of Hugging Face's Llama.

mod config;
mod frequencies;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

pub use config::{Llama3Scaling, LongRope, RopeConfig, Scaling, Yarn};
pub(super) use config::{Sources, parse};

use crate::ops::Sequences;

/// The frequency of each pair of dimensions.
#[derive(Clone, Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
    /// Those of longer sequences, and the length above which they hold.
    long: Option<(Vec<f32>, usize)>,
    /// What cos and sin are multiplied by.
    factor: f64,
}

impl Rope {
    /// The frequencies that a configuration asks for.
    pub fn new(config: &RopeConfig) -> Self {
        let plain = frequencies::plain(config.theta, config.dim);
        let (frequencies, factor) = match &config.scaling {
            Scaling::None => (plain, 1.0),
            Scaling::Linear { factor } => (plain.iter().map(|f| (f64::from(*f) / factor) as f32).collect(), 1.0),
            Scaling::Llama3(llama3) => (frequencies::llama3(plain, llama3), 1.0),
            Scaling::Yarn(yarn) => (frequencies::yarn(&plain, config, yarn), yarn.attention_factor),
            Scaling::LongRope(long) => {
                let stretched = |by: &[f64]| frequencies::stretched(config.theta, config.dim, by);
                let of_long = Some((stretched(&long.long_factor), long.original_max_position_embeddings));
                return Self {
                    frequencies: stretched(&long.short_factor),
                    long: of_long,
                    factor: long.attention_factor,
                };
            }
        };
        Self { frequencies, long: None, factor }
    }

    /// Whether keys that were rotated while a sequence had `seen` tokens are of no use once it has `total`.
    pub fn changes(&self, seen: usize, total: usize) -> bool {
        self.long.as_ref().is_some_and(|(_, above)| seen <= *above && total > *above)
    }

    /// cos and signed sin of the angles of every token's position in its sequence, each `[tokens, 1, 2, rotary_dim / 2]`;
    /// the sign makes the rotation one multiply-add with the halves swapped.
    pub fn rotation<B: Backend>(&self, sequences: &Sequences, device: &B::Device) -> [Tensor<B, 4>; 2] {
        let half = self.frequencies.len();
        let size = 2 * half;
        // Which frequencies a sequence has depends on its own length alone, not on what else is in the batch.
        let is_long = |length: usize| self.changes(0, sequences.cached + length);
        let longest = |long| sequences.lengths.iter().copied().filter(|n| is_long(*n) == long).max().unwrap_or(0);
        let plain = self.tables(&self.frequencies, sequences.cached, longest(false));
        let long = match &self.long {
            Some((frequencies, _)) => self.tables(frequencies, sequences.cached, longest(true)),
            None => Default::default(),
        };
        std::array::from_fn(|i| {
            let of_length = |n: &usize| if is_long(*n) { &long[i][..n * size] } else { &plain[i][..n * size] };
            let values: Vec<f32> = sequences.lengths.iter().flat_map(of_length).copied().collect();
            Tensor::from_data(TensorData::new(values, [sequences.tokens(), 1, 2, half]), device)
        })
    }

    /// cos and signed sin for `count` positions from `first` on.
    fn tables(&self, frequencies: &[f32], first: usize, count: usize) -> [Vec<f32>; 2] {
        let size = 2 * frequencies.len() * count;
        let (mut cos, mut sin) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for position in first..first + count {
            for sign in [-1.0f64, 1.0] {
                for frequency in frequencies {
                    // The product is rounded to f32 before cos and sin, as the reference does.
                    let angle = f64::from(position as f32 * frequency);
                    cos.push((self.factor * angle.cos()) as f32);
                    sin.push((self.factor * sign * angle.sin()) as f32);
                }
            }
        }
        [cos, sin]
    }
}
