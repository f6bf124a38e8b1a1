//! One optimizer step: gradients of all micro-batches, clipped together, applied at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use halfbyte_memory::in_flight;

use super::backprop::{Flight, Settings};
use super::config::TrainerConfig;
use super::memory::Exact;
use super::neftune::noise;
use super::pipeline::pipeline;
use super::sums::{Sums, Total};
use crate::data::Batch;
use crate::files::read;
use crate::lora::Dropout;
use crate::model::{Parameter, Transformer};
use crate::ops::Ops;
use crate::optim::{Gradients, Optimizer, StateTensor, clip_factor};
use crate::parallel::Collective;
use crate::{Error, Result};

/// Parameters' values by path.
type Values<B> = BTreeMap<String, Tensor<B, 2>>;

/// A model and its optimizer.
pub struct Optimization<B: Ops> {
    /// The model; its trainable parameters change with every step.
    pub model: Transformer<B>,
    /// How to train.
    pub config: TrainerConfig,
    /// Steps that were applied.
    pub steps: usize,
    /// The optimizer, whose state belongs to the model as it is.
    pub optimizer: Optimizer<B>,
    /// The other processes that train the same model.
    pub collective: Option<Arc<dyn Collective>>,
    seed: u64,
    /// What the last step changed, as it was before: a loss that is not a number shows that the step which led to it was the bad one.
    before: Option<Values<B>>,
    /// Lengths of the sequences that the devices' memory is for.
    lengths: Vec<usize>,
}

impl<B: Ops> Optimization<B> {
    /// An optimizer that has seen nothing; `seed` is that of dropout and noise.
    pub fn new(model: Transformer<B>, config: TrainerConfig, seed: u64) -> Self {
        let mut trained = BTreeMap::new();
        model.visit(|path, parameter| {
            if parameter.trainable {
                trained.insert(path.to_string(), (parameter.value.dims(), parameter.value.device()));
            }
        });
        let optimizer = Optimizer::spread(config.optimizer(), trained);
        Self { model, config, steps: 0, optimizer, collective: None, seed, before: None, lengths: vec![] }
    }

    /// Applies one step at this learning rate: the mean loss over the trained tokens of all micro-batches, and the
    /// gradient norm before clipping (`torch.nn.utils.clip_grad_norm_`).
    ///
    /// With other processes, each is given all micro-batches and takes every so many-th of them, as accelerate deals batches
    /// out; the loss, the norm and the update are those of all.
    ///
    /// # Errors
    /// [`Error::NonFinite`] when either is not a number; nothing was applied then, and where it is the loss, the step before is
    /// undone: model, optimizer state and [`steps`](Self::steps) are then those of before that step. [`Error::Device`] when
    /// the device refused something, of which nothing was applied then, or optimizer state cannot be paged. [`Error::Rank`] when
    /// another process is gone or has failed: nothing was applied then.
    pub async fn step(&mut self, batches: &[Batch], rate: f64) -> Result<(f64, f64)> {
        let trained: usize = batches.iter().map(|b| b.targets.len()).sum();
        let weight = 1.0 / trained.max(1) as f64;
        let mut loss_sum: Option<Tensor<B, 1>> = None;
        let collective = self.collective.as_deref();
        let (rank, world_size) = collective.map_or((0, 1), |ranks| (ranks.rank(), ranks.world_size()));
        let TrainerConfig { loss_chunk: chunk, recompute, .. } = self.config;
        let settings = Settings { weight, chunk, recompute };
        let own: Vec<(usize, &Batch)> = batches.iter().enumerate().skip(rank).step_by(world_size).collect();
        let mut sums = Sums::over(self.collective.as_ref(), &self.model, own.len())?;
        let exact = Exact::of(&self.model);
        for group in own.chunks(in_flight(self.model.stages.len())) {
            collective.map_or(Ok(()), |ranks| ranks.check())?;
            exact.next(group.iter().flat_map(|(_, batch)| batch.lengths.clone()).collect(), &mut self.lengths);
            let flights = group.iter().map(|(micro, batch)| {
                let dropout = Dropout { seed: self.seed, step: self.steps as u64, micro: *micro as u64 };
                let embedded = self.embed(batch, &dropout);
                Flight::new(&self.model, embedded, batch, settings, Some(dropout))
            });
            for sum in pipeline(flights.collect(), &mut sums) {
                loss_sum = Some(match loss_sum {
                    Some(before) => before + sum,
                    None => sum,
                });
            }
        }
        let Total { gradients, loss, norm, held } = sums.finish(&self.model, loss_sum, weight)?;
        let applied = self.apply(gradients, loss, norm, rate).await;
        // To let go of it is to wait for its arrival, which applying the step did.
        drop(held);
        applied
    }

    /// Applies a step of these gradients, if the loss and the norm of all of them, `[1]` on one device, are numbers: both on the host.
    async fn apply(
        &mut self,
        gradients: Gradients<B>,
        loss: Tensor<B, 1>,
        norm: Tensor<B, 1>,
        rate: f64,
    ) -> Result<(f64, f64)> {
        // The host does not wait for what it does not decide: while a device still computes gradients, its optimizer's kernels are on
        // their way, which change nothing unless loss and norm are numbers. What a device refused must be known before.
        self.model.check()?;
        let factor = clip_factor(loss.clone(), norm.clone(), self.config.max_grad_norm);
        let values = self.values(|path| gradients.contains_key(path));
        // Should the optimizer fail half-way, its state is still that of this model, but not one to go back from.
        let before = self.before.take();
        let can_undo = before.is_some();
        let (spare, mut before): (Values<B>, Values<B>) =
            before.unwrap_or_default().into_iter().partition(|(path, _)| gradients.contains_key(path));
        let kept: Vec<String> = spare.keys().cloned().collect();
        let after = self.optimizer.step_into(spare, values.clone(), gradients, factor.clone(), rate).await;
        // A read asks its own device whether it refused something.
        let read =
            read(Tensor::cat(vec![loss, norm, factor], 0)).await.and_then(|read| self.model.check().map(|()| read));
        let applied = read.as_ref().is_ok_and(|read| read[2] != 0.0);
        self.optimizer.conclude(applied);
        let (read, mut after) = (read?, after?);
        let [loss, norm] = [read[0], read[1]].map(f64::from);
        let step = self.steps + 1;
        if !applied {
            before.extend(kept.into_iter().filter_map(|path| after.remove_entry(&path)));
            self.before = can_undo.then_some(before);
            let what = if loss.is_finite() { "the gradient norm" } else { "the loss" };
            if !loss.is_finite() {
                self.undo();
            }
            let cure = "the step was not applied; lower learning_rate or max_grad_norm, or look at the data".into();
            return Err(Error::NonFinite { step, what: what.into(), cure });
        }
        self.model = self.with(&after);
        (self.before, self.steps) = (Some(values), step);
        Ok((loss, norm))
    }

    /// The values of those parameters that are asked for.
    fn values(&self, asked: impl Fn(&str) -> bool) -> Values<B> {
        let mut values = Values::new();
        self.model.visit(|path, parameter| {
            if asked(path) {
                values.insert(path.to_string(), parameter.value.clone());
            }
        });
        values
    }

    /// The model with other values of its parameters.
    fn with(&self, values: &Values<B>) -> Transformer<B> {
        self.model.map(|path, parameter| match values.get(path) {
            Some(value) => Parameter { value: value.clone(), trainable: parameter.trainable },
            None => parameter.clone(),
        })
    }

    /// The embeddings of a micro-batch's tokens, with NEFTune's noise where that is asked for.
    fn embed(&self, batch: &Batch, key: &Dropout) -> Tensor<B, 2> {
        let embedded = self.model.embed(&batch.tokens);
        match self.config.neftune_noise_alpha {
            alpha if alpha > 0.0 => {
                let config = &self.model.config;
                let scale = config.embedding_scale.filter(|_| config.family.scales_outside).unwrap_or(1.0);
                let noise = noise(&batch.lengths, embedded.dims()[1], alpha * scale, key);
                embedded.clone() + Tensor::from_data(noise, &embedded.device())
            }
            _ => embedded,
        }
    }

    /// Takes the last step back, when it proved bad afterwards: model, optimizer state and [`steps`](Self::steps) are those of
    /// before it.
    pub(super) fn undo(&mut self) {
        if let Some(before) = self.before.take() {
            self.model = self.with(&before);
            self.optimizer.undo();
            self.steps -= 1;
        }
    }

    /// Continues after `steps` steps with the optimizer's state of then; the model's parameters are put back apart from it.
    ///
    /// # Errors
    /// When the state is not that of the model's trainable parameters; nothing changes then.
    pub fn restore(&mut self, steps: usize, state: BTreeMap<String, StateTensor>) -> Result<()> {
        self.optimizer.restore(steps, state)?;
        (self.steps, self.before) = (steps, None);
        Ok(())
    }
}
