//! What a run remembers of itself: `trainer_state.json` in the shape of transformers' `TrainerState`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::evaluation::{Evaluation, EvaluationConfig};
use super::trainer::Metrics;

/// The state of a run, key for key that of transformers (4.57), which reads it with `TrainerState.load_from_json`.
/// Keys that mean nothing here have the value that they have in transformers when they are unused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Step of the best evaluation so far.
    pub best_global_step: Option<usize>,
    /// Its metric.
    pub best_metric: Option<f64>,
    /// Its checkpoint, where it has one.
    pub best_model_checkpoint: Option<String>,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Steps between evaluations; 0 where they do not go by steps.
    pub eval_steps: usize,
    /// Optimizer steps so far.
    pub global_step: usize,
    is_hyper_param_search: bool,
    is_local_process_zero: bool,
    is_world_process_zero: bool,
    /// Every step and every evaluation, in order.
    pub log_history: Vec<Entry>,
    logging_steps: usize,
    /// Optimizer steps of the whole run.
    pub max_steps: usize,
    /// Tokens that went through the model.
    pub num_input_tokens_seen: usize,
    /// Passes over the data of the whole run, rounded up.
    pub num_train_epochs: usize,
    /// Steps between checkpoints; 0 where they do not go by steps.
    pub save_steps: usize,
    /// State of what transformers calls callbacks.
    pub stateful_callbacks: Callbacks,
    total_flos: f64,
    /// Examples of a micro-batch.
    pub train_batch_size: usize,
    trial_name: Option<String>,
    trial_params: Option<Value>,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    /// An optimizer step.
    Step(Metrics),
    /// An evaluation.
    Evaluation(Evaluated),
}

/// An evaluation, and when it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// After how many steps.
    pub step: usize,
    /// After how many passes over the data.
    pub epoch: f64,
    /// What it found.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

/// Callbacks that have a state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Callbacks {
    /// How long there was no improvement.
    #[serde(rename = "EarlyStoppingCallback", default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
}

/// Early stopping, as transformers stores it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    args: EarlyStoppingArguments,
    attributes: EarlyStoppingAttributes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct EarlyStoppingArguments {
    early_stopping_patience: usize,
    early_stopping_threshold: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct EarlyStoppingAttributes {
    early_stopping_patience_counter: usize,
}

impl TrainerState {
    /// A run that has done nothing of `max_steps` steps.
    pub fn new(max_steps: usize, steps_per_epoch: usize, train_batch_size: usize) -> Self {
        Self {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: 0,
            global_step: 0,
            is_hyper_param_search: false,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: Vec::new(),
            logging_steps: 1,
            max_steps,
            num_input_tokens_seen: 0,
            num_train_epochs: max_steps.div_ceil(steps_per_epoch.max(1)),
            save_steps: 0,
            stateful_callbacks: Callbacks::default(),
            total_flos: 0.0,
            train_batch_size,
            trial_name: None,
            trial_params: None,
        }
    }

    /// Logs a step.
    pub(super) fn log_step(&mut self, metrics: Metrics) {
        (self.global_step, self.epoch) = (metrics.step, metrics.epoch);
        self.num_input_tokens_seen += metrics.tokens;
        self.log_history.push(Entry::Step(metrics));
    }

    /// Logs an evaluation of the model as it is now.
    pub(super) fn log_evaluation(&mut self, evaluation: Evaluation) {
        let evaluated = Evaluated { step: self.global_step, epoch: self.epoch, evaluation };
        self.log_history.push(Entry::Evaluation(evaluated));
    }

    /// The losses of the steps so far.
    pub fn losses(&self) -> Vec<f64> {
        let loss = |entry: &Entry| match entry {
            Entry::Step(metrics) => Some(metrics.loss),
            Entry::Evaluation(_) => None,
        };
        self.log_history.iter().filter_map(loss).collect()
    }

    /// The evaluations so far.
    pub fn evaluations(&self) -> impl DoubleEndedIterator<Item = &Evaluated> {
        self.log_history.iter().filter_map(|entry| match entry {
            Entry::Evaluation(evaluated) => Some(evaluated),
            Entry::Step(_) => None,
        })
    }

    /// Judges an evaluation of the model as it is now, as transformers' `Trainer` and its `EarlyStoppingCallback` do: the
    /// best is better than all before; an improvement is better than the best by more than the threshold. Whether it is the
    /// best so far is returned; whether it is time to stop says [`has_stopped`](Self::has_stopped).
    pub fn judge(&mut self, evaluation: &Evaluation, config: &EvaluationConfig) -> bool {
        let (metric, more_is_better) = evaluation.metric(config.metric_for_best_model);
        let ahead = self.best_metric.map(|best| if more_is_better { metric - best } else { best - metric });
        let best = ahead.is_none_or(|ahead| ahead > 0.0);
        let improved = ahead.is_none_or(|ahead| ahead > config.early_stopping_threshold.max(0.0));
        if best {
            (self.best_metric, self.best_global_step) = (Some(metric), Some(self.global_step));
        }
        let patience = config.early_stopping_patience;
        if patience == 0 {
            self.stateful_callbacks.early_stopping = None;
            return best;
        }
        let before = self.stateful_callbacks.early_stopping.take().map(|e| e.attributes).unwrap_or_default();
        let waited = if improved { 0 } else { before.early_stopping_patience_counter.saturating_add(1) };
        self.stateful_callbacks.early_stopping = Some(EarlyStopping {
            args: EarlyStoppingArguments {
                early_stopping_patience: patience,
                early_stopping_threshold: config.early_stopping_threshold,
            },
            attributes: EarlyStoppingAttributes { early_stopping_patience_counter: waited },
        });
        best
    }

    /// Forgets which evaluation was the best, and how long there was no better one: they are not comparable to what comes.
    pub fn forget_best(&mut self) {
        (self.best_metric, self.best_global_step, self.best_model_checkpoint) = (None, None, None);
        self.stateful_callbacks.early_stopping = None;
    }

    /// Whether there was no improvement for as long as was to be waited.
    pub fn has_stopped(&self, config: &EvaluationConfig) -> bool {
        let waited =
            self.stateful_callbacks.early_stopping.as_ref().map(|e| e.attributes.early_stopping_patience_counter);
        config.early_stopping_patience > 0 && waited >= Some(config.early_stopping_patience)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::train::BestMetric;

    fn judged(metric: BestMetric, threshold: f64, values: &[f64]) -> Vec<(bool, bool)> {
        let mut state = TrainerState::new(100, 10, 1);
        let config = EvaluationConfig {
            metric_for_best_model: metric,
            early_stopping_patience: 2,
            early_stopping_threshold: threshold,
            ..Default::default()
        };
        let evaluation = |v: f64| Evaluation { loss: v, perplexity: 1.0, mean_token_accuracy: v, trained_tokens: 1 };
        let verdicts = values.iter().map(|v| {
            // Through the file and back, as if every evaluation were followed by a stop and a resume.
            let text = serde_json::to_string(&state).unwrap();
            state = serde_json::from_str(&text).unwrap();
            (state.judge(&evaluation(*v), &config), state.has_stopped(&config))
        });
        verdicts.collect()
    }

    #[test]
    fn the_best_is_remembered_and_patience_ends() {
        let (best, no, stop) = ((true, false), (false, false), (false, true));
        assert_eq!(
            judged(BestMetric::EvalLoss, 0.0, &[3.0, 2.0, 2.5, 1.0, 1.0, 1.5]),
            [best, best, no, best, no, stop]
        );
        assert_eq!(judged(BestMetric::EvalMeanTokenAccuracy, 0.0, &[0.1, 0.2, 0.2, 0.1]), [best, best, no, stop]);
        // A little better is the best, but no improvement.
        assert_eq!(judged(BestMetric::EvalLoss, 0.5, &[3.0, 2.9, 2.8]), [best, best, (true, true)]);
    }

    #[test]
    fn the_log_survives_its_file_to_the_bit() {
        let mut state = TrainerState::new(7, 3, 2);
        for step in 1..200 {
            let x = 1.0 / f64::from(step);
            let metrics = Metrics {
                step: step as usize,
                epoch: x,
                loss: f64::from(x as f32),
                grad_norm: x.sin(),
                learning_rate: x * 1e-5,
                tokens: 3,
                trained_tokens: 2,
            };
            state.log_step(metrics);
            let [loss, perplexity, mean_token_accuracy] = [x.exp(), x.cos(), x.tan()];
            state.log_evaluation(Evaluation { loss, perplexity, mean_token_accuracy, trained_tokens: 5 });
        }
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<TrainerState>(&text).unwrap(), state);
        assert_eq!((state.losses().len(), state.evaluations().count(), state.num_input_tokens_seen), (199, 199, 597));
    }
}
