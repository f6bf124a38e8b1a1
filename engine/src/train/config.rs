//! How to train: the keys of a recipe's `[training]`.

use serde::{Deserialize, Serialize};

use super::backprop::Recompute;
use crate::optim::AdamWConfig;
use crate::{Error, Result};

/// How to train, under the names that transformers uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// Passes over the data.
    pub epochs: usize,
    /// Stops after this many optimizer steps; 0 for no limit.
    pub max_steps: usize,
    /// Examples of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of the steps in which the rate rises to its peak.
    pub warmup_ratio: f64,
    /// Gradients with a larger global norm are scaled down to it; 0 leaves them alone.
    pub max_grad_norm: f64,
    /// AdamW's constants.
    pub adamw: AdamWConfig,
    /// Tokens whose logits exist at a time.
    pub loss_chunk: usize,
    /// Whether layers are computed again in the backward pass.
    pub recompute: Recompute,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            max_steps: 0,
            batch_size: 8,
            gradient_accumulation_steps: 1,
            learning_rate: 2e-4,
            warmup_ratio: 0.03,
            max_grad_norm: 1.0,
            adamw: AdamWConfig::default(),
            loss_chunk: 512,
            recompute: Recompute::Layers,
        }
    }
}

impl TrainerConfig {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |key: &str, cure: &str| Err(Error::Invalid(format!("training.{key}: {cure}")));
        if self.batch_size == 0 {
            return wrong("batch_size", "must be at least 1");
        }
        if self.gradient_accumulation_steps == 0 {
            return wrong("gradient_accumulation_steps", "must be at least 1");
        }
        if self.batch_size.checked_mul(self.gradient_accumulation_steps).is_none() {
            return wrong("batch_size", "times gradient_accumulation_steps is too large");
        }
        let AdamWConfig { beta1, beta2, eps, weight_decay } = &self.adamw;
        if ![beta1, beta2].iter().all(|beta| (0.0..1.0).contains(*beta)) {
            return wrong("adamw", "beta1 and beta2 must lie in 0..1");
        }
        if !(*eps > 0.0 && eps.is_finite() && *weight_decay >= 0.0 && weight_decay.is_finite()) {
            return wrong("adamw", "eps must be a positive number and weight_decay 0 or more");
        }
        if self.loss_chunk == 0 {
            return wrong("loss_chunk", "must be at least 1");
        }
        if self.epochs == 0 && self.max_steps == 0 {
            return wrong("epochs", "0 epochs train nothing unless max_steps is set");
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return wrong("learning_rate", "must be a positive number");
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            return wrong("warmup_ratio", "must lie in 0..=1");
        }
        if self.max_grad_norm.is_nan() || self.max_grad_norm < 0.0 {
            return wrong("max_grad_norm", "must be 0 or more");
        }
        Ok(())
    }
}
