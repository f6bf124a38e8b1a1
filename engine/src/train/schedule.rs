//! The learning rate as a function of the step.

use std::f64::consts::PI;

/// Linear warmup into half a cosine (transformers, `get_cosine_schedule_with_warmup`).
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The rate at the end of warmup.
    pub peak: f64,
    /// Steps of warmup.
    pub warmup: usize,
    /// Steps in all.
    pub total: usize,
}

impl Schedule {
    /// A schedule whose warmup is a share of the steps, rounded up.
    pub fn new(peak: f64, warmup_ratio: f64, total: usize) -> Self {
        Self { peak, warmup: (warmup_ratio * total as f64).ceil() as usize, total }
    }

    /// The rate of a step, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let progress = (step - self.warmup) as f64 / (self.total.saturating_sub(self.warmup)).max(1) as f64;
        self.peak * (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_peaks_and_falls_to_zero() {
        let schedule = Schedule::new(2e-4, 0.1, 100);
        assert_eq!(schedule.rate(0), 0.0);
        assert_eq!(schedule.rate(5), 1e-4);
        assert_eq!(schedule.rate(10), 2e-4);
        assert!((schedule.rate(55) - 1e-4).abs() < 1e-12);
        assert!(schedule.rate(100) < 1e-12);
        assert_eq!(Schedule::new(1.0, 0.0, 0).rate(0), 1.0);
    }
}
