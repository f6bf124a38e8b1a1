//! The learning rate as a function of the step.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::config::TrainerConfig;

/// How the rate goes after warmup, under the names of transformers' `lr_scheduler_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedulerType {
    /// Down to zero along half a cosine.
    #[default]
    Cosine,
    /// Down to zero along a line.
    Linear,
    /// The peak at every step; without warmup, as in transformers.
    Constant,
    /// The peak after warmup.
    ConstantWithWarmup,
    /// Down to `min_lr`, or to the share `min_lr_rate` of the peak, along half a cosine.
    CosineWithMinLr,
}

/// The learning rate of every step (transformers, `get_scheduler`): linear warmup, then one of [`LrSchedulerType`].
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// How the rate goes after warmup.
    pub kind: LrSchedulerType,
    /// The rate at the end of warmup.
    pub peak: f64,
    /// Steps of warmup.
    pub warmup: usize,
    /// Steps in all.
    pub total: usize,
    /// Share of the peak that [`LrSchedulerType::CosineWithMinLr`] ends at.
    pub floor: f64,
}

impl Schedule {
    /// The schedule of a run of `total` steps. Warmup is `warmup_steps` where they are set, and else a share of the steps,
    /// rounded up.
    pub fn new(config: &TrainerConfig, total: usize) -> Self {
        let warmup = match config.warmup_steps {
            0 => (config.warmup_ratio * total as f64).ceil() as usize,
            steps => steps,
        };
        let floor = if config.min_lr > 0.0 { config.min_lr / config.learning_rate } else { config.min_lr_rate };
        Self { kind: config.lr_scheduler_type, peak: config.learning_rate, warmup, total, floor }
    }

    /// The rate of a step, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        if self.kind == LrSchedulerType::Constant {
            return self.peak;
        }
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let progress = (step - self.warmup) as f64 / (self.total.saturating_sub(self.warmup)).max(1) as f64;
        let cosine = 0.5 * (1.0 + (PI * progress).cos());
        let factor = match self.kind {
            LrSchedulerType::Cosine => cosine,
            LrSchedulerType::Linear => 1.0 - progress,
            LrSchedulerType::Constant | LrSchedulerType::ConstantWithWarmup => 1.0,
            LrSchedulerType::CosineWithMinLr => cosine * (1.0 - self.floor) + self.floor,
        };
        self.peak * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_peaks_and_falls_to_zero() {
        let config = TrainerConfig { learning_rate: 2e-4, warmup_ratio: 0.1, ..TrainerConfig::default() };
        let schedule = Schedule::new(&config, 100);
        assert_eq!(schedule.rate(0), 0.0);
        assert_eq!(schedule.rate(5), 1e-4);
        assert_eq!(schedule.rate(10), 2e-4);
        assert!((schedule.rate(55) - 1e-4).abs() < 1e-12);
        assert!(schedule.rate(100) < 1e-12);
        let at_once = TrainerConfig { learning_rate: 1.0, warmup_ratio: 0.0, ..config };
        assert_eq!(Schedule::new(&at_once, 0).rate(0), 1.0);
    }

    #[test]
    fn warmup_steps_win_over_the_ratio_and_min_lr_is_a_share_of_the_peak() {
        let config = TrainerConfig { warmup_ratio: 0.1, warmup_steps: 7, ..TrainerConfig::default() };
        assert_eq!(Schedule::new(&config, 100).warmup, 7);
        let config = TrainerConfig {
            lr_scheduler_type: LrSchedulerType::CosineWithMinLr,
            learning_rate: 1e-3,
            min_lr: 1e-4,
            ..config
        };
        assert!((Schedule::new(&config, 100).rate(100) - 1e-4).abs() < 1e-16);
    }
}
