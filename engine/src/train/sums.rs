//! What the micro-batches of a step add up to: the gradients, and the loss, of this process and of the others, where there are any.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::reduce::{Reduced, Reduction};
use crate::model::{Transformer, moved};
use crate::ops::{Held, Ops};
use crate::optim::{Gradients, accumulate, grad_norm};
use crate::parallel::Collective;
use crate::{Error, Result};

/// Bytes for each rank below which layers are added up together: less costs its messages, whatever is in them.
const LEAST: usize = 1 << 20;

/// Gradients, while micro-batches add theirs.
pub(super) struct Sums<B: Ops> {
    gradients: Gradients<B>,
    ranks: Option<Reduction<B>>,
}

/// All that a step is applied with.
pub(super) struct Total<B: Ops> {
    /// Of all micro-batches.
    pub(super) gradients: Gradients<B>,
    /// The mean over their trained tokens, `[1]`.
    pub(super) loss: Tensor<B, 1>,
    /// The Euclidean norm of all gradients together, `[1]` on the loss's device.
    pub(super) norm: Tensor<B, 1>,
    /// Host memory that gradients still come from.
    pub(super) held: Vec<Held>,
}

impl<B: Ops> Sums<B> {
    /// Of this process alone.
    pub(super) fn alone() -> Self {
        Self { gradients: Gradients::new(), ranks: None }
    }

    /// Of this process, which has so many micro-batches, and the others that it is connected with.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(super) fn over(
        collective: Option<&Arc<dyn Collective>>,
        model: &Transformer<B>,
        micro_batches: usize,
    ) -> Result<Self> {
        let reduction = |ranks: &Arc<dyn Collective>| {
            Reduction::new(ranks.clone(), model, micro_batches, LEAST * ranks.world_size())
        };
        Ok(Self { ranks: collective.map(reduction).transpose()?, ..Self::alone() })
    }

    /// Adds a micro-batch's.
    pub(super) fn add(&mut self, gradients: Gradients<B>) {
        accumulate(&mut self.gradients, gradients);
    }

    /// A micro-batch has added the gradients of this layer, and of those above it.
    pub(super) fn passed(&mut self, layer: usize) {
        if let Some(ranks) = &mut self.ranks {
            ranks.passed(layer, &mut self.gradients);
        }
    }

    /// The gradients that were added.
    pub(super) fn gradients(self) -> Gradients<B> {
        self.gradients
    }

    /// All of the step, with the sum of this process's losses; `weight` is one over the number of all trained tokens. With other ranks, this
    /// waits for them.
    ///
    /// # Errors
    /// [`Error::Rank`] when another rank is gone or has failed; [`Error::Device`] when the device refused something, or cannot be read, in
    /// which case no rank gets its sums.
    pub(super) fn finish(
        self,
        model: &Transformer<B>,
        loss_sum: Option<Tensor<B, 1>>,
        weight: f64,
    ) -> Result<Total<B>> {
        if let Some(ranks) = self.ranks {
            let Reduced { gradients, loss, norm, held } = ranks.finish(model, self.gradients, loss_sum)?;
            let [loss, norm] = [loss * weight, norm].map(|value| Tensor::from_data([value as f32], &model.device()));
            return Ok(Total { gradients, loss, norm, held });
        }
        let (Some(loss_sum), Some(norm)) = (loss_sum, grad_norm(&self.gradients)) else {
            return Err(Error::Invalid("a step needs a batch and a trainable parameter".into()));
        };
        let norm = moved(norm, &loss_sum.device());
        Ok(Total { gradients: self.gradients, loss: loss_sum * weight, norm, held: vec![] })
    }
}
