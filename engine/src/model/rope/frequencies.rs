//! The frequency of each pair of dimensions, `theta^(-2i / dim)`, and what scaling makes of it.

use std::f64::consts::TAU;

use super::config::{Llama3Scaling, RopeConfig, Yarn};

/// `theta^(2i / dim)`, the wavelength of each pair over 2π.
fn periods(theta: f64, dim: usize) -> impl Iterator<Item = f64> {
    (0..dim / 2).map(move |i| theta.powf((2 * i) as f64 / dim as f64))
}

/// Without scaling.
pub(super) fn plain(theta: f64, dim: usize) -> Vec<f32> {
    periods(theta, dim).map(|period| (1.0 / period) as f32).collect()
}

/// Each wavelength stretched by a factor of its own (LongRoPE, arXiv:2402.13753).
pub(super) fn stretched(theta: f64, dim: usize, by: &[f64]) -> Vec<f32> {
    periods(theta, dim).zip(by).map(|(period, by)| (1.0 / (by * period)) as f32).collect()
}

/// Long wavelengths stretched, short ones kept, those between blended (transformers, `_compute_llama3_parameters`).
pub(super) fn llama3(plain: Vec<f32>, scaling: &Llama3Scaling) -> Vec<f32> {
    let original = scaling.original_max_position_embeddings;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    let scaled = plain.into_iter().map(|frequency| {
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
    });
    scaled.collect()
}

/// Pairs that turn often in the original context are kept, pairs that turn seldom are stretched, with a ramp between
/// (YaRN, arXiv:2309.00071, section 3.2).
pub(super) fn yarn(plain: &[f32], config: &RopeConfig, yarn: &Yarn) -> Vec<f32> {
    let dim = config.dim as f64;
    // The pair that turns `turns` times in the original context.
    let pair =
        |turns: f64| dim * (yarn.original_max_position_embeddings / (turns * TAU)).ln() / (2.0 * config.theta.ln());
    let (low, high) = (pair(yarn.beta_fast), pair(yarn.beta_slow));
    let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    let width = if low == high { 0.001 } else { high - low };
    let scaled = plain.iter().enumerate().map(|(i, frequency)| {
        let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0);
        let frequency = f64::from(*frequency);
        (frequency / yarn.factor * stretched + frequency * (1.0 - stretched)) as f32
    });
    scaled.collect()
}
