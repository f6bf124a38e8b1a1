//! AdamW (arXiv:1711.05101) with f32 state, the arithmetic of `torch.optim.AdamW`.
//!
//! Written here rather than taken from Burn: the trainer owns gradients by name, and later state in 8 bits and in pages
//! goes behind the same two tensors.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use super::state::StateTensor;
use crate::{Error, Result};

/// AdamW's constants, under PyTorch's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the denominator from zero.
    pub eps: f64,
    /// Decoupled weight decay, a share of the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// First and second moment of one parameter's gradient.
struct Moments<B: Backend> {
    first: Tensor<B, 2>,
    second: Tensor<B, 2>,
}

/// The optimizer and its state.
pub struct AdamW<B: Backend> {
    config: AdamWConfig,
    step: i32,
    moments: BTreeMap<String, Moments<B>>,
}

impl<B: Backend> AdamW<B> {
    /// An optimizer that has seen no gradient.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, step: 0, moments: BTreeMap::new() }
    }

    /// Begins a step; every parameter of it is then passed to [`update`](Self::update) once.
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// The parameter's new value, from its value, its gradient and the learning rate. Norms and biases
    /// are not decayed (transformers, `Trainer.get_decay_parameter_names`).
    pub fn update(&mut self, path: &str, value: Tensor<B, 2>, gradient: Tensor<B, 2>, rate: f64) -> Tensor<B, 2> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let before = self.moments.remove(path);
        let (first, second) = match before {
            Some(m) => (
                m.first * beta1 + gradient.clone() * (1.0 - beta1),
                m.second * beta2 + gradient.clone() * gradient * (1.0 - beta2),
            ),
            None => (gradient.clone() * (1.0 - beta1), gradient.clone() * gradient * (1.0 - beta2)),
        };
        let correction1 = 1.0 - beta1.powi(self.step);
        let correction2 = 1.0 - beta2.powi(self.step);
        let denominator = second.clone().sqrt() / correction2.sqrt() + eps;
        let step = first.clone() / denominator * (rate / correction1);
        self.moments.insert(path.to_string(), Moments { first, second });
        let decay = if path.contains("norm") || path.ends_with("bias") { 0.0 } else { weight_decay };
        value * (1.0 - rate * decay) - step
    }
    /// The state on the host: `{parameter path}.exp_avg` and `.exp_avg_sq`, as PyTorch names them.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub async fn state(&self) -> Result<BTreeMap<String, StateTensor>> {
        let mut state = BTreeMap::new();
        for (path, Moments { first, second }) in &self.moments {
            state.insert(format!("{path}.exp_avg"), StateTensor::read(first.clone()).await?);
            state.insert(format!("{path}.exp_avg_sq"), StateTensor::read(second.clone()).await?);
        }
        Ok(state)
    }

    /// Puts a state back, after `step` steps, in place of the present one.
    ///
    /// # Errors
    /// On a tensor that is no moment, that lacks the other one, or whose shape is not the other's; nothing changes then.
    pub fn restore(&mut self, step: usize, mut state: BTreeMap<String, StateTensor>, device: &B::Device) -> Result<()> {
        let wrong = |name: &str, reason: &str| Error::Invalid(format!("optimizer state `{name}`: {reason}"));
        let step = i32::try_from(step).map_err(|_| Error::Invalid(format!("{step} is no step of a run")))?;
        let mut moments = BTreeMap::new();
        // In order of their names, a parameter's first moment comes before its second.
        while let Some((name, first)) = state.pop_first() {
            let path = name
                .strip_suffix(".exp_avg")
                .ok_or_else(|| wrong(&name, "is no exp_avg, or its exp_avg is missing"))?;
            let second_name = format!("{path}.exp_avg_sq");
            let second = state.remove(&second_name).ok_or_else(|| wrong(&second_name, "is missing"))?;
            if first.shape != second.shape {
                return Err(wrong(&second_name, "has another shape than its exp_avg"));
            }
            let (first, second) = (first.tensor(&name, device)?, second.tensor(&second_name, device)?);
            moments.insert(path.to_string(), Moments { first, second });
        }
        (self.step, self.moments) = (step, moments);
        Ok(())
    }
}
