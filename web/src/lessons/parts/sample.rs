//! Random weights that every reader gets alike.

use std::sync::LazyLock;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution as _, StandardNormal, StandardUniform};

/// Standard normal numbers.
pub(crate) fn normal(seed: u64, count: usize) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    StandardNormal.sample_iter(&mut random).take(count).collect()
}

/// A distribution of weights by what one can drag at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Distribution {
    /// The standard deviation before anything else is done.
    pub(crate) width: f64,
    /// From -1 to 1: how lopsided, as the shape `δ` of the skew-normal distribution.
    pub(crate) skew: f64,
    /// Share of values that are ten times as far out.
    pub(crate) outliers: f64,
    /// Share of values that are exactly zero.
    pub(crate) zeros: f64,
}

/// Values of a sample.
const COUNT: usize = 4096;
/// How much further out an outlier is.
const FAR: f64 = 10.0;

impl Distribution {
    /// 4096 values of it. The same random numbers serve every setting, so that what changes is the setting alone.
    pub(crate) fn sample(&self) -> Vec<f32> {
        static RANDOM: LazyLock<Vec<[f64; 4]>> = LazyLock::new(|| {
            let normals = normal(1, 2 * COUNT);
            let mut random = ChaCha8Rng::seed_from_u64(2);
            let uniform = |random: &mut ChaCha8Rng| StandardUniform.sample(random);
            (0..COUNT)
                .map(|i| [normals[2 * i], normals[2 * i + 1], uniform(&mut random), uniform(&mut random)])
                .collect()
        });
        let value = |[a, b, far, zero]: &[f64; 4]| {
            if *zero < self.zeros {
                return 0.0;
            }
            // Azzalini 1985: |a| pulls to one side as far as δ says.
            let skewed = self.skew * a.abs() + (1.0 - self.skew * self.skew).max(0.0).sqrt() * b;
            (self.width * skewed * if *far < self.outliers { FAR } else { 1.0 }) as f32
        };
        RANDOM.iter().map(value).collect()
    }
}

/// The square root of the mean square.
#[cfg(test)]
pub(crate) fn rms(values: &[f32]) -> f64 {
    (values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::{Distribution, rms};

    #[test]
    fn a_sample_is_what_was_asked_for() {
        let plain = Distribution { width: 0.02, skew: 0.0, outliers: 0.0, zeros: 0.0 };
        let share = |values: &[f32], of: fn(&f32) -> bool| values.iter().filter(|v| of(v)).count() as f64 / 4096.0;
        let values = plain.sample();
        assert!((rms(&values) / 0.02 - 1.0).abs() < 0.03, "{}", rms(&values));
        assert!((share(&values, |v| *v > 0.0) - 0.5).abs() < 0.03);
        let skewed = Distribution { skew: 1.0, ..plain }.sample();
        assert!(skewed.iter().all(|v| *v >= 0.0) && (rms(&skewed) / 0.02 - 1.0).abs() < 0.03);
        let zeros = Distribution { zeros: 0.25, ..plain }.sample();
        assert!((share(&zeros, |v| *v == 0.0) - 0.25).abs() < 0.03);
        let wild = Distribution { outliers: 0.05, ..plain }.sample();
        assert!((rms(&wild) / 0.02 / (0.95f64 + 0.05 * 100.0).sqrt() - 1.0).abs() < 0.1, "{}", rms(&wild));
    }
}
