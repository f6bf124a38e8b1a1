//! The training loop.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::backprop::{Recompute, backpropagate};
use super::loss::{Targets, loss_sum};
use super::schedule::Schedule;
use crate::data::{Batch, Batches, Dataset};
use crate::files::read;
use crate::lora::Dropout;
use crate::model::{Parameter, Transformer};
use crate::ops::Ops;
use crate::optim::{AdamW, AdamWConfig, Gradients, accumulate, grad_norm};
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
    fn check(&self) -> Result<()> {
        let wrong = |key: &str, cure: &str| Err(Error::Invalid(format!("training.{key}: {cure}")));
        if self.batch_size == 0 {
            return wrong("batch_size", "must be at least 1");
        }
        if self.gradient_accumulation_steps == 0 {
            return wrong("gradient_accumulation_steps", "must be at least 1");
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

/// What one optimizer step did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The step, counted from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss over the trained tokens of the step.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens that went through the model, padding left out.
    pub tokens: usize,
    /// Tokens that the loss was taken on.
    pub trained_tokens: usize,
}

/// The loss over a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss over the trained tokens.
    pub loss: f64,
    /// How many there were.
    pub trained_tokens: usize,
}

/// A model in training.
pub struct Trainer<B: Ops> {
    /// The model; its trainable parameters change with every step.
    pub model: Transformer<B>,
    config: TrainerConfig,
    data: Dataset,
    batches: Batches,
    optimizer: AdamW<B>,
    schedule: Schedule,
    seed: u64,
    step: usize,
}

impl<B: Ops> Trainer<B> {
    /// A trainer at step 0. The order of the data and the dropout are functions of `seed`.
    ///
    /// # Errors
    /// When a setting is out of range or nothing is trainable.
    pub fn new(mut model: Transformer<B>, data: Dataset, config: TrainerConfig, seed: u64) -> Result<Self> {
        config.check()?;
        if model.parameter_counts().0 == 0 {
            return Err(Error::Invalid("the model has no trainable parameter; attach an adapter first".into()));
        }
        let batches = Batches::new(data.examples.len(), config.batch_size, config.gradient_accumulation_steps, seed);
        let all = batches.steps_per_epoch() * config.epochs.max(usize::from(config.max_steps > 0));
        let total = match config.max_steps {
            0 => all,
            limit if config.epochs == 0 => limit,
            limit => limit.min(all),
        };
        let schedule = Schedule::new(config.learning_rate, config.warmup_ratio, total);
        let optimizer = AdamW::new(config.adamw.clone());
        Ok(Self { model, config, data, batches, optimizer, schedule, seed, step: 0 })
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.schedule.total
    }

    /// One optimizer step; `None` after the last.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when the loss or the gradient is not a number: the model is then as it was before the step.
    pub async fn step(&mut self) -> Result<Option<Metrics>> {
        if self.step >= self.schedule.total {
            return Ok(None);
        }
        let per_epoch = self.batches.steps_per_epoch();
        let micro_batches = self.batches.step(self.step / per_epoch, self.step % per_epoch);
        let batches: Vec<Batch> = micro_batches
            .iter()
            .map(|rows| Batch::collate(&rows.iter().map(|i| &self.data.examples[*i]).collect::<Vec<_>>()))
            .collect();
        let rate = self.schedule.rate(self.step);
        let (loss, norm) = self.optimize(&batches, rate).await?;
        self.step += 1;
        Ok(Some(Metrics {
            step: self.step,
            epoch: self.step as f64 / per_epoch as f64,
            loss,
            grad_norm: norm,
            learning_rate: rate,
            tokens: batches.iter().map(Batch::input_tokens).sum(),
            trained_tokens: batches.iter().map(|b| b.targets.len()).sum(),
        }))
    }

    /// Accumulates the gradients of all micro-batches, clips them and updates the model; the mean loss and the norm.
    async fn optimize(&mut self, batches: &[Batch], rate: f64) -> Result<(f64, f64)> {
        let trained: usize = batches.iter().map(|b| b.targets.len()).sum();
        let weight = 1.0 / trained.max(1) as f64;
        let mut gradients = Gradients::new();
        let mut loss: Option<Tensor<B, 1>> = None;
        for (micro, batch) in batches.iter().enumerate() {
            let dropout = Dropout { seed: self.seed, step: self.step as u64, micro: micro as u64 };
            let TrainerConfig { loss_chunk, recompute, .. } = self.config;
            let step = backpropagate(&self.model, batch, weight, loss_chunk, recompute, Some(dropout));
            accumulate(&mut gradients, step.gradients);
            loss = Some(loss.map_or_else(|| step.loss_sum.clone(), |sum| sum + step.loss_sum.clone()));
        }
        let (Some(loss), Some(norm)) = (loss, grad_norm(&gradients)) else {
            return Err(Error::Invalid("a step without gradients".into()));
        };
        // One read for both: the only point in a step where the host waits for the device.
        let values = read(Tensor::cat(vec![loss * weight, norm], 0)).await?;
        let (loss, norm) = (f64::from(values[0]), f64::from(values[1]));
        for (what, value) in [("the loss", loss), ("the gradient norm", norm)] {
            if !value.is_finite() {
                let cure = "the step was not applied; lower learning_rate or max_grad_norm, or look at the data".into();
                return Err(Error::NonFinite { step: self.step + 1, what: what.into(), cure });
            }
        }
        let max_norm = self.config.max_grad_norm;
        let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.optimizer.begin_step();
        let (optimizer, model) = (&mut self.optimizer, &self.model);
        self.model = model.map(|path, parameter| match gradients.remove(path) {
            Some(gradient) => Parameter {
                value: optimizer.update(path, parameter.value.clone(), gradient * clip, rate),
                trainable: parameter.trainable,
            },
            None => parameter.clone(),
        });
        Ok((loss, norm))
    }

    /// The loss over a data set, without dropout.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub async fn evaluate(&self, data: &Dataset) -> Result<Evaluation> {
        evaluate(&self.model, data, self.config.batch_size, self.config.loss_chunk).await
    }
}

/// The loss of a model over a data set; never holds full logits.
///
/// # Errors
/// When the device cannot be read.
pub async fn evaluate<B: Ops>(
    model: &Transformer<B>,
    data: &Dataset,
    batch_size: usize,
    loss_chunk: usize,
) -> Result<Evaluation> {
    // Like lengths go together, so that little is padding; the sum does not depend on the order.
    let mut order: Vec<usize> = (0..data.examples.len()).collect();
    order.sort_by_key(|i| data.examples[*i].tokens.len());
    let (mut sum, mut count) = (0.0, 0);
    for rows in order.chunks(batch_size.max(1)) {
        let batch = Batch::collate(&rows.iter().map(|i| &data.examples[*i]).collect::<Vec<_>>());
        let hidden = model.hidden(&batch.tokens, &model.pass(batch.rows, batch.length, 0), None);
        let loss = loss_sum(&model.head, hidden, &Targets::of(&batch), loss_chunk);
        sum += f64::from(read(loss).await?[0]);
        count += batch.targets.len();
    }
    Ok(Evaluation { loss: sum / count.max(1) as f64, trained_tokens: count })
}
