//! Rotary position embedding (arXiv:2104.09864), in the half-split layout of Hugging Face's Llama.

use std::f64::consts::TAU;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::config::{ModelConfig, RopeConfig};
use crate::ops::Sequences;

/// The frequency of each pair of dimensions.
#[derive(Clone, Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
}

impl Rope {
    /// The frequencies that a model's configuration asks for.
    pub fn new(config: &ModelConfig) -> Self {
        Self { frequencies: frequencies(&config.rope, config.head_dim) }
    }

    /// cos and signed sin of the angles of every token's position in its sequence, each `[tokens, 1, 2, head_dim / 2]`; the
    /// sign makes the rotation one multiply-add with the halves swapped.
    pub fn rotation<B: Backend>(&self, sequences: &Sequences, device: &B::Device) -> [Tensor<B, 4>; 2] {
        let half = self.frequencies.len();
        let size = 2 * half;
        let longest = sequences.longest();
        let (mut cos, mut sin) = (Vec::with_capacity(longest * size), Vec::with_capacity(longest * size));
        for position in sequences.cached..sequences.cached + longest {
            for sign in [-1.0f32, 1.0] {
                for frequency in &self.frequencies {
                    // The product is rounded to f32 before cos and sin, as the reference does.
                    let angle = f64::from(position as f32 * frequency);
                    cos.push(angle.cos() as f32);
                    sin.push(sign * angle.sin() as f32);
                }
            }
        }
        [cos, sin].map(|table| {
            let values: Vec<f32> = sequences.lengths.iter().flat_map(|n| &table[..n * size]).copied().collect();
            Tensor::from_data(TensorData::new(values, [sequences.tokens(), 1, 2, half]), device)
        })
    }
}

/// `theta^(-2i / head_dim)`, with Llama 3.1's stretch of long wavelengths where the configuration has it.
fn frequencies(rope: &RopeConfig, head_dim: usize) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|i| (1.0 / rope.theta.powf((2 * i) as f64 / head_dim as f64)) as f32);
    let Some(scaling) = &rope.llama3 else { return plain.collect() };
    let original = scaling.original_max_position_embeddings;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    plain
        .map(|frequency| {
            let frequency = f64::from(frequency);
            let wavelength = TAU / frequency;
            let scaled = if wavelength > original / low {
                frequency / scaling.factor
            } else if wavelength < original / high {
                frequency
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
            };
            scaled as f32
        })
        .collect()
}
