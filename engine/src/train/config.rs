//! How to train: the keys of a recipe's `[training]`.

use serde::{Deserialize, Serialize};

use super::backprop::Recompute;
use super::schedule::LrSchedulerType;
use crate::optim::{AdamWConfig, DeviceBudget, Optim, OptimizerConfig};
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
    /// The optimizer.
    pub optim: Optim,
    /// Optimizer state that a paged optimizer keeps on the device; the rest is in host memory.
    pub optim_device_budget: DeviceBudget,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// What the rate of LoRA's B matrices is multiplied by (LoRA+); 1 for one rate for all.
    pub loraplus_lr_ratio: f64,
    /// How the rate goes after warmup.
    pub lr_scheduler_type: LrSchedulerType,
    /// Share of the steps in which the rate rises to its peak.
    pub warmup_ratio: f64,
    /// The same as a number of steps; wins over the share unless it is 0.
    pub warmup_steps: usize,
    /// The rate at the end of `cosine_with_min_lr`.
    pub min_lr: f64,
    /// The same as a share of `learning_rate`; set one of the two.
    pub min_lr_rate: f64,
    /// Strength of the noise on embeddings while training (NEFTune; 5 is usual); 0 for none.
    pub neftune_noise_alpha: f64,
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
            optim: Optim::default(),
            optim_device_budget: DeviceBudget::default(),
            learning_rate: 2e-4,
            loraplus_lr_ratio: 1.0,
            lr_scheduler_type: LrSchedulerType::default(),
            warmup_ratio: 0.03,
            warmup_steps: 0,
            min_lr: 0.0,
            min_lr_rate: 0.0,
            neftune_noise_alpha: 0.0,
            max_grad_norm: 1.0,
            adamw: AdamWConfig::default(),
            loss_chunk: 512,
            recompute: Recompute::Layers,
        }
    }
}

impl TrainerConfig {
    /// What the optimizer depends on.
    pub fn optimizer(&self) -> OptimizerConfig {
        OptimizerConfig {
            optim: self.optim,
            adamw: self.adamw.clone(),
            loraplus_lr_ratio: self.loraplus_lr_ratio,
            device_budget: self.optim_device_budget,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// On the first key that is out of range, or without effect.
    pub fn check(&self) -> Result<()> {
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
        if self.recompute == Recompute::LayersFromHost && cfg!(target_arch = "wasm32") {
            return wrong("recompute", "a browser's worker cannot wait for its GPU; use layers");
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
        if self.optim_device_budget.0.is_some() && !self.optim.is_paged() {
            return wrong("optim_device_budget", "needs `optim` to be paged_adamw_32bit or paged_adamw_8bit");
        }
        if !(self.loraplus_lr_ratio.is_finite() && self.loraplus_lr_ratio > 0.0) {
            return wrong("loraplus_lr_ratio", "must be a positive number; 1 for one rate for all");
        }
        let falls_to_min = self.lr_scheduler_type == LrSchedulerType::CosineWithMinLr;
        if !(0.0..=self.learning_rate).contains(&self.min_lr) {
            return wrong("min_lr", "must lie between 0 and learning_rate");
        }
        if !(0.0..=1.0).contains(&self.min_lr_rate) {
            return wrong("min_lr_rate", "must lie in 0..=1");
        }
        match (self.min_lr > 0.0, self.min_lr_rate > 0.0) {
            (true, true) => return wrong("min_lr", "set it or min_lr_rate, not both"),
            (false, false) if falls_to_min => return wrong("min_lr", "cosine_with_min_lr needs it or min_lr_rate"),
            (true, _) | (_, true) if !falls_to_min => {
                return wrong("lr_scheduler_type", "must be cosine_with_min_lr where min_lr or min_lr_rate is set");
            }
            _ => {}
        }
        if !(self.neftune_noise_alpha.is_finite() && self.neftune_noise_alpha >= 0.0) {
            return wrong("neftune_noise_alpha", "must be 0 or more");
        }
        if self.max_grad_norm.is_nan() || self.max_grad_norm < 0.0 {
            return wrong("max_grad_norm", "must be 0 or more");
        }
        Ok(())
    }
}
