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
use super::reduce::{Summed, sum_over_ranks};
use crate::data::Batch;
use crate::files::read;
use crate::lora::Dropout;
use crate::model::{Parameter, Transformer, moved};
use crate::ops::Ops;
use crate::optim::{Gradients, Optimizer, StateTensor, grad_norm, scaled};
use crate::parallel::Collective;
use crate::{Error, Result};

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
    /// The model before the last step: a loss that is not a number shows that the step which led to it was the bad one.
    before: Option<Transformer<B>>,
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
    /// optimizer state cannot be paged, or the device refused something; the step before is undone in the latter case.
    /// [`Error::Rank`] when another process is gone or has failed: nothing was applied then.
    pub async fn step(&mut self, batches: &[Batch], rate: f64) -> Result<(f64, f64)> {
        let trained: usize = batches.iter().map(|b| b.targets.len()).sum();
        let weight = 1.0 / trained.max(1) as f64;
        let mut gradients = Gradients::new();
        let mut loss_sum: Option<Tensor<B, 1>> = None;
        let collective = self.collective.as_deref();
        let (rank, world_size) = collective.map_or((0, 1), |ranks| (ranks.rank(), ranks.world_size()));
        let TrainerConfig { loss_chunk: chunk, recompute, .. } = self.config;
        let settings = Settings { weight, chunk, recompute };
        let own: Vec<(usize, &Batch)> = batches.iter().enumerate().skip(rank).step_by(world_size).collect();
        let exact = Exact::of(&self.model);
        for group in own.chunks(in_flight(self.model.stages.len())) {
            collective.map_or(Ok(()), |ranks| ranks.check())?;
            exact.next(group.iter().flat_map(|(_, batch)| batch.lengths.clone()).collect(), &mut self.lengths);
            let flights = group.iter().map(|(micro, batch)| {
                let dropout = Dropout { seed: self.seed, step: self.steps as u64, micro: *micro as u64 };
                let embedded = self.embed(batch, &dropout);
                Flight::new(&self.model, embedded, batch, settings, Some(dropout))
            });
            for sum in pipeline(flights.collect(), &mut gradients) {
                loss_sum = Some(match loss_sum {
                    Some(before) => before + sum,
                    None => sum,
                });
            }
        }
        let (loss, norm);
        (gradients, loss, norm) = match self.sums(gradients, loss_sum, weight).await {
            Err(error @ Error::Device { .. }) => {
                // What the device refused may have been a part of the step before, which nothing was read of since.
                self.undo();
                return Err(error);
            }
            sums => sums?,
        };
        let step = self.steps + 1;
        for (what, value) in [("the loss", loss), ("the gradient norm", norm)] {
            if !value.is_finite() {
                if !loss.is_finite() {
                    self.undo();
                }
                let cure = "the step was not applied; lower learning_rate or max_grad_norm, or look at the data".into();
                return Err(Error::NonFinite { step, what: what.into(), cure });
            }
        }
        let max_norm = self.config.max_grad_norm;
        let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        if clip < 1.0 {
            gradients = scaled(gradients, clip);
        }
        let values_of = |model: &Transformer<B>| {
            let mut values = BTreeMap::new();
            model.visit(|path, parameter| {
                if gradients.contains_key(path) {
                    values.insert(path.to_string(), parameter.value.clone());
                }
            });
            values
        };
        // Should the optimizer fail half-way, its state is still that of this model, but not one to go back from.
        let spare = self.before.take().map(|before| values_of(&before)).unwrap_or_default();
        let values = self.optimizer.step_into(spare, values_of(&self.model), gradients, rate).await?;
        let after = self.model.map(|path, parameter| match values.get(path) {
            Some(value) => Parameter { value: value.clone(), trainable: parameter.trainable },
            None => parameter.clone(),
        });
        self.before = Some(std::mem::replace(&mut self.model, after));
        self.steps = step;
        Ok((loss, norm))
    }

    /// The embeddings of a micro-batch's tokens, with NEFTune's noise where that is asked for.
    fn embed(&self, batch: &Batch, key: &Dropout) -> Tensor<B, 2> {
        let embedded = self.model.embed(&batch.tokens);
        match self.config.neftune_noise_alpha {
            alpha if alpha > 0.0 => {
                let noise = noise(&batch.lengths, embedded.dims()[1], alpha, key);
                embedded.clone() + Tensor::from_data(noise, &embedded.device())
            }
            _ => embedded,
        }
    }

    /// The gradients of all micro-batches and ranks, the mean loss and the gradient norm. Reading them is the only point in a
    /// step where the host waits for the device.
    async fn sums(
        &self,
        gradients: Gradients<B>,
        loss_sum: Option<Tensor<B, 1>>,
        weight: f64,
    ) -> Result<(Gradients<B>, f64, f64)> {
        if let Some(collective) = &self.collective {
            let Summed { gradients, loss, norm } =
                sum_over_ranks(collective.as_ref(), &self.model, gradients, loss_sum).await?;
            return Ok((gradients, loss * weight, norm));
        }
        let (Some(loss_sum), Some(norm)) = (loss_sum, grad_norm(&gradients)) else {
            return Err(Error::Invalid("a step needs a batch and a trainable parameter".into()));
        };
        // A read asks the loss's device whether it refused something, and each of the others is asked here.
        self.model.check()?;
        let norm = moved(norm, &loss_sum.device());
        let values = read(Tensor::cat(vec![loss_sum * weight, norm], 0)).await?;
        Ok((gradients, f64::from(values[0]), f64::from(values[1])))
    }

    /// Takes the last step back, when it proved bad afterwards: model, optimizer state and [`steps`](Self::steps) are those of
    /// before it.
    pub(super) fn undo(&mut self) {
        if let Some(before) = self.before.take() {
            self.model = before;
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
