//! The training loop.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::config::TrainerConfig;
use super::evaluation::{Evaluation, evaluate_in_parts};
use super::optimization::Optimization;
use super::schedule::Schedule;
use super::state::TrainerState;
use crate::data::{Batch, Batches, Dataset};
use crate::files::read_all;
use crate::model::Transformer;
use crate::ops::Ops;
use crate::optim::{PagingReport, StateTensor};
use crate::parallel::Collective;
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

/// A model in training, its data and where it stands.
pub struct Trainer<B: Ops> {
    optimization: Optimization<B>,
    data: Dataset,
    batches: Batches,
    schedule: Schedule,
    /// What the run remembers of itself.
    pub state: TrainerState,
}

impl<B: Ops> Trainer<B> {
    /// A trainer at step 0. The order of the data and the dropout are functions of `seed`.
    ///
    /// # Errors
    /// When a setting is out of range or nothing is trainable.
    pub fn new(model: Transformer<B>, data: Dataset, config: TrainerConfig, seed: u64) -> Result<Self> {
        Self::build(model, data, config, seed, None)
    }

    /// A trainer that is one of the ranks of a data-parallel run. A step takes `gradient_accumulation_steps` micro-batches of
    /// each; one process that accumulates them all sees the same examples in each step, with the same dropout. Every rank is
    /// given the whole data, and makes the same calls.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn parallel(
        model: Transformer<B>,
        data: Dataset,
        config: TrainerConfig,
        seed: u64,
        collective: Arc<dyn Collective>,
    ) -> Result<Self> {
        Self::build(model, data, config, seed, Some(collective))
    }

    fn build(
        mut model: Transformer<B>,
        data: Dataset,
        config: TrainerConfig,
        seed: u64,
        collective: Option<Arc<dyn Collective>>,
    ) -> Result<Self> {
        config.check()?;
        if model.parameter_counts().0 == 0 {
            return Err(Error::Invalid("the model has no trainable parameter; attach an adapter first".into()));
        }
        model.config.check_tokens(data.examples.iter().flat_map(|e| &e.tokens))?;
        let world_size = collective.as_ref().map_or(1, |ranks| ranks.world_size());
        let micro_batches = config.gradient_accumulation_steps.saturating_mul(world_size);
        let batches = Batches::of(&data, config.batch_size, micro_batches, seed);
        let all = batches.steps_per_epoch().saturating_mul(config.epochs);
        let total = match (config.max_steps, config.epochs) {
            (0, _) => all,
            (limit, 0) => limit,
            (limit, _) => limit.min(all),
        };
        let schedule = Schedule::new(&config, total);
        let state = TrainerState::new(total, batches.steps_per_epoch(), config.batch_size);
        let mut optimization = Optimization::new(model, config, seed);
        optimization.collective = collective;
        Ok(Self { optimization, data, batches, schedule, state })
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

    /// The other processes that train the same model.
    pub fn collective(&self) -> Option<&dyn Collective> {
        self.optimization.collective.as_deref()
    }

    /// Checks that every rank holds the same adapter, to the bit; nothing to check in a run of one process.
    ///
    /// # Errors
    /// [`Error::Rank`] that names a rank that does not, or is gone; [`Error::Device`] when the device cannot be read.
    pub async fn agree(&self) -> Result<()> {
        let Some(collective) = self.collective() else { return Ok(()) };
        collective.agree("adapter", digest(self.model()).await?)
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.schedule.total
    }

    /// Optimizer steps of one pass over the data.
    pub fn steps_per_epoch(&self) -> usize {
        self.batches.steps_per_epoch()
    }

    /// The optimizer's state on the host, for a checkpoint.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub async fn optimizer_state(&self) -> Result<BTreeMap<String, StateTensor>> {
        self.optimization.optimizer.state().await
    }

    /// Continues where a run stood, once its adapter is in the model. Nothing else is needed: the order of the data, dropout
    /// and the rate are functions of the step.
    ///
    /// # Errors
    /// When the run stood beyond the last step of this one, or the optimizer's state is not that of the model.
    pub fn restore(&mut self, state: TrainerState, optimizer: BTreeMap<String, StateTensor>) -> Result<()> {
        let (step, total) = (state.global_step, self.total_steps());
        if step > total {
            return Err(Error::Invalid(format!(
                "step {step} lies beyond the {total} steps of this run; raise training.epochs or training.max_steps"
            )));
        }
        self.optimization.restore(step, optimizer)?;
        let of_this_run = std::mem::replace(&mut self.state, state);
        (self.state.max_steps, self.state.num_train_epochs) = (of_this_run.max_steps, of_this_run.num_train_epochs);
        Ok(())
    }

    /// One optimizer step; `None` after the last.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when the loss or the gradient is not a number: the model is then the last one whose loss was one.
    /// [`Error::Rank`] when another process of a data-parallel run is gone or has failed: the model is then that of the last
    /// step.
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
        let metrics = Metrics {
            step: step + 1,
            epoch: (step + 1) as f64 / per_epoch as f64,
            loss,
            grad_norm,
            learning_rate,
            tokens: batches.iter().map(|b| b.tokens.len()).sum(),
            trained_tokens: batches.iter().map(|b| b.targets.len()).sum(),
        };
        self.state.log_step(metrics.clone());
        Ok(Some(metrics))
    }

    /// Evaluates the model as it is now, without dropout, and logs it.
    ///
    /// # Errors
    /// As [`evaluate`](super::evaluate); [`Error::NonFinite`] when the loss is not a number: the last step is then undone.
    pub async fn evaluate(&mut self, data: &Dataset) -> Result<Evaluation> {
        let TrainerConfig { batch_size, loss_chunk, .. } = self.optimization.config;
        let evaluation = evaluate_in_parts(self.model(), data, batch_size, loss_chunk, self.collective()).await?;
        if !evaluation.loss.is_finite() {
            self.optimization.undo();
            let cure = "the step was taken back; lower learning_rate or max_grad_norm, or look at the data".into();
            return Err(Error::NonFinite { step: self.state.global_step, what: "the held-out loss".into(), cure });
        }
        self.state.log_evaluation(evaluation.clone());
        Ok(evaluation)
    }
}

/// A digest of everything that is trained: names, shapes and the values' bits.
async fn digest<B: Ops>(model: &Transformer<B>) -> Result<[u8; 32]> {
    let (mut paths, mut tensors) = (Vec::new(), Vec::new());
    model.visit(|path, parameter| {
        if parameter.trainable {
            paths.push(format!("{path} {:?}", parameter.value.dims()));
            tensors.push(parameter.value.clone());
        }
    });
    let mut sha256 = Sha256::new();
    for (path, values) in paths.iter().zip(read_all(tensors).await?) {
        sha256.update(path.as_bytes());
        values.chunks(1 << 16).for_each(|values| {
            sha256.update(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        });
    }
    Ok(sha256.finalize().into())
}
