//! One optimizer step: gradients of all micro-batches, clipped together, applied at once.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::backprop::backpropagate_from;
use super::config::TrainerConfig;
use super::neftune::noise;
use crate::data::Batch;
use crate::files::read;
use crate::lora::Dropout;
use crate::model::{Parameter, Transformer};
use crate::ops::Ops;
use crate::optim::{Gradients, Optimizer, StateTensor, accumulate, grad_norm};
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
    seed: u64,
    /// The model before the last step: a loss that is not a number shows that the step which led to it was the bad one.
    before: Option<Transformer<B>>,
}

impl<B: Ops> Optimization<B> {
    /// An optimizer that has seen nothing; `seed` is that of dropout and noise.
    pub fn new(model: Transformer<B>, config: TrainerConfig, seed: u64) -> Self {
        let mut shapes = BTreeMap::new();
        model.visit(|path, parameter| {
            if parameter.trainable {
                shapes.insert(path.to_string(), parameter.value.dims());
            }
        });
        let optimizer = Optimizer::new(config.optimizer(), shapes, &model.device());
        Self { model, config, steps: 0, optimizer, seed, before: None }
    }

    /// Applies one step at this learning rate: the mean loss over the trained tokens of all micro-batches, and the
    /// gradient norm before clipping (`torch.nn.utils.clip_grad_norm_`).
    ///
    /// # Errors
    /// [`Error::NonFinite`] when either is not a number; nothing was applied then, and where it is the loss, the step before is
    /// undone: model, optimizer state and [`steps`](Self::steps) are then those of before that step. [`Error::Device`] when
    /// optimizer state cannot be paged, or the device refused something; the step before is undone in the latter case.
    pub async fn step(&mut self, batches: &[Batch], rate: f64) -> Result<(f64, f64)> {
        let trained: usize = batches.iter().map(|b| b.targets.len()).sum();
        let weight = 1.0 / trained.max(1) as f64;
        let mut gradients = Gradients::new();
        let mut loss_sum: Option<Tensor<B, 1>> = None;
        for (micro, batch) in batches.iter().enumerate() {
            let dropout = Dropout { seed: self.seed, step: self.steps as u64, micro: micro as u64 };
            let TrainerConfig { loss_chunk, recompute, neftune_noise_alpha: alpha, .. } = self.config;
            let mut embedded = self.model.embed(&batch.tokens);
            if alpha > 0.0 {
                let noise = noise(&batch.lengths, embedded.dims()[1], alpha, &dropout);
                embedded = embedded.clone() + Tensor::from_data(noise, &embedded.device());
            }
            let step = backpropagate_from(&self.model, embedded, batch, weight, loss_chunk, recompute, Some(dropout));
            accumulate(&mut gradients, step.gradients);
            loss_sum = Some(match loss_sum {
                Some(sum) => sum + step.loss_sum,
                None => step.loss_sum,
            });
        }
        let (Some(loss_sum), Some(norm)) = (loss_sum, grad_norm(&gradients)) else {
            return Err(Error::Invalid("a step needs a batch and a trainable parameter".into()));
        };
        // One read for both: the only point in a step where the host waits for the device.
        let values = match read(Tensor::cat(vec![loss_sum * weight, norm], 0)).await {
            Ok(values) => values,
            Err(error) => {
                // What the device refused may have been a part of the step before, which nothing was read of since.
                self.undo();
                return Err(error);
            }
        };
        let (loss, norm) = (f64::from(values[0]), f64::from(values[1]));
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
            gradients = gradients.into_iter().map(|(path, gradient)| (path, gradient * clip)).collect();
        }
        let mut values = BTreeMap::new();
        self.model.visit(|path, parameter| {
            if gradients.contains_key(path) {
                values.insert(path.to_string(), parameter.value.clone());
            }
        });
        // Should the optimizer fail half-way, its state is still that of this model, but not one to go back from.
        self.before = None;
        let values = self.optimizer.step(values, gradients, rate).await?;
        let after = self.model.map(|path, parameter| match values.get(path) {
            Some(value) => Parameter { value: value.clone(), trainable: parameter.trainable },
            None => parameter.clone(),
        });
        self.before = Some(std::mem::replace(&mut self.model, after));
        self.steps = step;
        Ok((loss, norm))
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
        self.optimizer.restore(steps, state, &self.model.device())?;
        (self.steps, self.before) = (steps, None);
        Ok(())
    }
}
