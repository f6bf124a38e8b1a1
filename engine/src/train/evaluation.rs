//! Evaluation on held-out data while training: when, what of it is the best, and when to stop.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::loss::{Targets, loss_and_hits};
use super::memory::Exact;
use crate::data::{Batch, Dataset, Example};
use crate::files::read;
use crate::model::Transformer;
use crate::ops::{Ops, Sequences};
use crate::parallel::Collective;
use crate::{Error, Result};

/// When something is done while training, as transformers' `IntervalStrategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Never.
    No,
    /// Every so many steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
}

impl Strategy {
    /// Whether it is due after `step` steps.
    pub fn due(self, step: usize, every: usize, steps_per_epoch: usize) -> bool {
        match self {
            Self::No => false,
            Self::Steps => every > 0 && step.is_multiple_of(every),
            Self::Epoch => step.is_multiple_of(steps_per_epoch.max(1)),
        }
    }
}

/// By what evaluations are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestMetric {
    /// The mean loss; lower is better.
    #[serde(alias = "loss")]
    EvalLoss,
    /// The share of tokens that are predicted; higher is better.
    #[serde(alias = "mean_token_accuracy")]
    EvalMeanTokenAccuracy,
}

/// Evaluation while training, under the names that transformers uses. With held-out data there is always one before the
/// first step and one after the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// When to evaluate between the first step and the last.
    pub eval_strategy: Strategy,
    /// Steps between evaluations, with the strategy `steps`.
    pub eval_steps: usize,
    /// Ends the run with the adapter of the best evaluation. Each that is the best so far is then saved as a checkpoint.
    pub load_best_model_at_end: bool,
    /// What is best.
    pub metric_for_best_model: BestMetric,
    /// Evaluations in a row without improvement after which training stops; 0 for never.
    pub early_stopping_patience: usize,
    /// By how much a metric must be better to count as improved.
    pub early_stopping_threshold: f64,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            eval_strategy: Strategy::No,
            eval_steps: 0,
            load_best_model_at_end: false,
            metric_for_best_model: BestMetric::EvalLoss,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
        }
    }
}

impl EvaluationConfig {
    /// Whether the keys go together, and with whether there is held-out data.
    ///
    /// # Errors
    /// On the first key that has no effect, or none that was meant.
    pub fn check(&self, held_out: bool) -> Result<()> {
        let wrong = |key: &str, cure: &str| Err(Error::Invalid(format!("evaluation.{key}: {cure}")));
        match self.eval_strategy {
            Strategy::Steps if self.eval_steps == 0 => return wrong("eval_steps", "how many steps lie between two?"),
            Strategy::No | Strategy::Epoch if self.eval_steps > 0 => {
                return wrong("eval_steps", "has no effect unless evaluation.eval_strategy = \"steps\"");
            }
            _ => {}
        }
        if self.eval_strategy != Strategy::No && !held_out {
            return wrong("eval_strategy", "there is nothing to evaluate on; set data.test");
        }
        if self.eval_strategy == Strategy::No && self.load_best_model_at_end {
            return wrong("load_best_model_at_end", "needs evaluation.eval_strategy = \"steps\" or \"epoch\"");
        }
        if self.eval_strategy == Strategy::No && self.early_stopping_patience > 0 {
            return wrong("early_stopping_patience", "needs evaluation.eval_strategy = \"steps\" or \"epoch\"");
        }
        if !(self.early_stopping_threshold.is_finite() && self.early_stopping_threshold >= 0.0) {
            return wrong("early_stopping_threshold", "must be 0 or more");
        }
        Ok(())
    }
}

/// What a model does on a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss over the trained tokens.
    #[serde(rename = "eval_loss")]
    pub loss: f64,
    /// `exp` of the loss.
    #[serde(rename = "eval_perplexity")]
    pub perplexity: f64,
    /// Share of the trained tokens that have the largest logit.
    #[serde(rename = "eval_mean_token_accuracy")]
    pub mean_token_accuracy: f64,
    /// Trained tokens.
    #[serde(rename = "eval_trained_tokens")]
    pub trained_tokens: usize,
}

impl Evaluation {
    /// What is compared, and whether more of it is better.
    pub fn metric(&self, metric: BestMetric) -> (f64, bool) {
        match metric {
            BestMetric::EvalLoss => (self.loss, false),
            BestMetric::EvalMeanTokenAccuracy => (self.mean_token_accuracy, true),
        }
    }
}

/// The loss and the token accuracy of a model over a data set; never holds full logits.
///
/// # Errors
/// On a token that the model does not know, or when the device cannot be read.
pub async fn evaluate<B: Ops>(
    model: &Transformer<B>,
    data: &Dataset,
    batch_size: usize,
    loss_chunk: usize,
) -> Result<Evaluation> {
    evaluate_in_parts(model, data, batch_size, loss_chunk, None).await
}

/// [`evaluate`], each rank on its part of the batches. What each batch gives goes to every rank, which adds it up as one
/// process would: the result is the same bits, whatever the number of ranks.
pub(super) async fn evaluate_in_parts<B: Ops>(
    model: &Transformer<B>,
    data: &Dataset,
    batch_size: usize,
    loss_chunk: usize,
    collective: Option<&dyn Collective>,
) -> Result<Evaluation> {
    model.config.check_tokens(data.examples.iter().flat_map(|e| &e.tokens))?;
    // Like lengths go together, so that a backend that pads inside its attention pads little.
    let mut examples: Vec<&Example> = data.examples.iter().collect();
    examples.sort_by_key(|example| example.tokens.len());
    let batches: Vec<Batch> =
        examples.chunks(batch_size.max(1)).map(|rows| Batch::collate(rows.iter().copied())).collect();
    let (rank, world_size) = collective.map_or((0, 1), |ranks| (ranks.rank(), ranks.world_size()));
    let mut found = vec![0.0; 2 * batches.len()];
    let (exact, mut before) = (Exact::of(model), vec![]);
    for (i, batch) in batches.iter().enumerate().skip(rank).step_by(world_size) {
        exact.next(batch.lengths.clone(), &mut before);
        let hidden = model.hidden(&batch.tokens, &model.passes(&Sequences::new(&batch.lengths)), None);
        let [loss, hit] = loss_and_hits(&model.head, hidden, &Targets::of(batch), loss_chunk);
        found[2 * i..2 * i + 2].copy_from_slice(&read(Tensor::cat(vec![loss, hit], 0)).await?);
    }
    exact.next(vec![], &mut before);
    collective.map_or(Ok(()), |ranks| ranks.all_reduce(&mut found))?;
    let (mut sum, mut hits) = (0.0, 0.0);
    for values in found.chunks(2) {
        sum += f64::from(values[0]);
        hits += f64::from(values[1]);
    }
    let count: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    let mean = |sum: f64| sum / count.max(1) as f64;
    // A perplexity beyond f64 would be written as null.
    let perplexity = mean(sum).exp().min(f64::MAX);
    Ok(Evaluation { loss: mean(sum), perplexity, mean_token_accuracy: mean(hits), trained_tokens: count })
}
