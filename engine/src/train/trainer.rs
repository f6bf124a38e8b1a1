//! The training loop.

use serde::{Deserialize, Serialize};

use super::config::TrainerConfig;
use super::loss::{Targets, loss_sum};
use super::optimization::Optimization;
use super::schedule::Schedule;
use crate::data::{Batch, Batches, Dataset, Example};
use crate::files::read;
use crate::model::Transformer;
use crate::ops::{Ops, Sequences};
use crate::optim::PagingReport;
use crate::{Error, Result};

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
    /// Tokens that went through the model.
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

/// A model in training, its data and where it stands.
pub struct Trainer<B: Ops> {
    optimization: Optimization<B>,
    data: Dataset,
    batches: Batches,
    schedule: Schedule,
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
        model.config.check_tokens(data.examples.iter().flat_map(|e| &e.tokens))?;
        let batches = Batches::of(&data, config.batch_size, config.gradient_accumulation_steps, seed);
        let all = batches.steps_per_epoch().saturating_mul(config.epochs);
        let total = match (config.max_steps, config.epochs) {
            (0, _) => all,
            (limit, 0) => limit,
            (limit, _) => limit.min(all),
        };
        let schedule = Schedule::new(&config, total);
        Ok(Self { optimization: Optimization::new(model, config, seed), data, batches, schedule })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Transformer<B> {
        &self.optimization.model
    }

    /// The model, for what needs it mutably, such as saving its adapter.
    pub fn model_mut(&mut self) -> &mut Transformer<B> {
        &mut self.optimization.model
    }

    /// What a paged optimizer moved so far; `None` with another one.
    pub fn paging(&self) -> Option<PagingReport> {
        self.optimization.optimizer.paging()
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.schedule.total
    }

    /// One optimizer step; `None` after the last.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when the loss or the gradient is not a number: the model is then the last one whose loss was one.
    pub async fn step(&mut self) -> Result<Option<Metrics>> {
        let step = self.optimization.steps;
        if step >= self.schedule.total {
            return Ok(None);
        }
        let per_epoch = self.batches.steps_per_epoch();
        let micro_batches = self.batches.step(step / per_epoch, step % per_epoch);
        let batches: Vec<Batch> =
            micro_batches.iter().map(|rows| Batch::collate(rows.iter().map(|i| &self.data.examples[*i]))).collect();
        let learning_rate = self.schedule.rate(step);
        let (loss, grad_norm) = self.optimization.step(&batches, learning_rate).await?;
        Ok(Some(Metrics {
            step: step + 1,
            epoch: (step + 1) as f64 / per_epoch as f64,
            loss,
            grad_norm,
            learning_rate,
            tokens: batches.iter().map(|b| b.tokens.len()).sum(),
            trained_tokens: batches.iter().map(|b| b.targets.len()).sum(),
        }))
    }

    /// The loss over a data set, without dropout.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub async fn evaluate(&self, data: &Dataset) -> Result<Evaluation> {
        let TrainerConfig { batch_size, loss_chunk, .. } = self.optimization.config;
        evaluate(self.model(), data, batch_size, loss_chunk).await
    }
}

/// The loss of a model over a data set; never holds full logits.
///
/// # Errors
/// On a token that the model does not know, or when the device cannot be read.
pub async fn evaluate<B: Ops>(
    model: &Transformer<B>,
    data: &Dataset,
    batch_size: usize,
    loss_chunk: usize,
) -> Result<Evaluation> {
    model.config.check_tokens(data.examples.iter().flat_map(|e| &e.tokens))?;
    // Like lengths go together, so that a backend that pads inside its attention pads little.
    let mut examples: Vec<&Example> = data.examples.iter().collect();
    examples.sort_by_key(|example| example.tokens.len());
    let (mut sum, mut count) = (0.0, 0);
    for rows in examples.chunks(batch_size.max(1)) {
        let batch = Batch::collate(rows.iter().copied());
        let hidden = model.hidden(&batch.tokens, &model.pass(Sequences::new(&batch.lengths)), None);
        let loss = loss_sum(&model.head, hidden, &Targets::of(&batch), loss_chunk);
        sum += f64::from(read(loss).await?[0]);
        count += batch.targets.len();
    }
    Ok(Evaluation { loss: sum / count.max(1) as f64, trained_tokens: count })
}
