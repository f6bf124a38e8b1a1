//! What a run is: what must be the same for a checkpoint to be continued.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::recipe::Recipe;
use crate::data::Dataset;
use crate::files::{Checkpoint, sha256};
use crate::{Error, Result};

/// Keys, or sections, of a recipe that a continued run may change. What is trained on and what model, and so the paths of
/// both, are told by their content. All others would make it another run.
const FREE: [&str; 13] = [
    "model",
    "output",
    "device",
    "devices",
    "memory_limit",
    "data.train",
    "data.test",
    "training.epochs",
    "training.max_steps",
    "training.optim_device_budget",
    "evaluation",
    "checkpoints",
    "show",
];

/// A run: its recipe, and the digests of what the recipe names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The recipe, flags included.
    pub recipe: Recipe,
    /// Of the base model's `config.json`.
    pub config_sha256: String,
    /// Of the base model's weights: [`Checkpoint::digest`].
    pub model_digest: String,
    /// Of the tokens that are trained on: [`data_digest`].
    pub data_sha256: String,
    /// The same of the held-out data. It may change; what was best by other data is then not.
    #[serde(default)]
    pub held_out_sha256: Option<String>,
    /// Processes that train it, each of which takes `gradient_accumulation_steps` micro-batches of every step.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub world_size: usize,
}

fn one() -> usize {
    1
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

impl Run {
    /// The run of a recipe on this data, and what is held out of it; `folder` holds the model that it names.
    ///
    /// # Errors
    /// When the model's files cannot be read.
    pub fn new(recipe: &Recipe, folder: &Path, data: &Dataset, held_out: Option<&Dataset>) -> Result<Self> {
        let config = folder.join("config.json");
        let config = std::fs::read(&config).map_err(|e| Error::file(&config, e))?;
        let digest = Checkpoint::open(folder)?.digest()?;
        Ok(Self::of(recipe, &config, digest, data, held_out))
    }

    /// The run of a recipe on this data, from a model's `config.json` and the digest of its weights.
    pub fn of(
        recipe: &Recipe,
        config: &[u8],
        model_digest: String,
        data: &Dataset,
        held_out: Option<&Dataset>,
    ) -> Self {
        Self {
            recipe: recipe.clone(),
            config_sha256: sha256([config]),
            model_digest,
            data_sha256: data_digest(data),
            held_out_sha256: held_out.map(data_digest),
            world_size: 1,
        }
    }

    /// What all ranks of a data-parallel run must have the same of: its name, and its content. Where its files lie, and the
    /// device, is each machine's own affair.
    ///
    /// # Errors
    /// When the recipe cannot be encoded.
    pub fn shared(&self) -> Result<Vec<(String, String)>> {
        const OWN: [&str; 8] = [
            "model",
            "output",
            "device",
            "devices",
            "memory_limit",
            "data.train",
            "data.test",
            "training.optim_device_budget",
        ];
        let mut sections: Vec<(String, String)> = Vec::new();
        for (key, value) in flat(&self.recipe)?.into_iter().filter(|(key, _)| !OWN.contains(&key.as_str())) {
            let section = key.split_once('.').map_or(key.as_str(), |(section, _)| section);
            let name = format!("the recipe's `{section}`");
            let line = format!("{key}={value}\n");
            match sections.last_mut().filter(|(last, _)| *last == name) {
                Some((_, text)) => text.push_str(&line),
                None => sections.push((name, line)),
            }
        }
        let held_out = self.held_out_sha256.clone().unwrap_or_default();
        sections.extend([
            ("the model (config.json)".into(), self.config_sha256.clone()),
            ("the model (weights)".into(), self.model_digest.clone()),
            ("data.train (tokens)".into(), self.data_sha256.clone()),
            ("data.test (tokens)".into(), held_out),
        ]);
        Ok(sections)
    }

    /// Micro-batches of an optimizer step, of all processes together.
    fn micro_batches(&self) -> usize {
        self.recipe.training.gradient_accumulation_steps.saturating_mul(self.world_size)
    }

    /// The processes and what each accumulates, in words.
    pub fn processes(&self) -> String {
        let accumulated = self.recipe.training.gradient_accumulation_steps;
        let processes = if self.world_size == 1 { "process" } else { "processes" };
        format!("{} {processes} x gradient_accumulation_steps = {accumulated}", self.world_size)
    }

    /// Whether `self` continues what `saved`, read from the file `path`, began.
    ///
    /// # Errors
    /// On the first key that differs, with both values.
    pub fn continues(&self, saved: &Self, path: &Path) -> Result<()> {
        let cure = "to continue it, say the same again; for a new run, choose another output";
        let content = [
            ("model (config.json)", &saved.config_sha256, &self.config_sha256),
            ("model (weights)", &saved.model_digest, &self.model_digest),
            ("data.train (tokens)", &saved.data_sha256, &self.data_sha256),
        ];
        let (before, now) = (flat(&saved.recipe)?, flat(&self.recipe)?);
        // A step is the same examples, however many processes they are dealt out to.
        if saved.micro_batches() != self.micro_batches() {
            let (began, says) = (saved.processes(), self.processes());
            let reason = format!("the run began with {began}, and is now {says}; {cure}");
            return Err(Error::key(path, ACCUMULATION, reason));
        }
        let is_free = |key: &str| key == ACCUMULATION || is_free(key);
        // A table of patterns may have lost keys, too.
        let differing = now.keys().chain(before.keys()).find(|key| !is_free(key) && before.get(*key) != now.get(*key));
        if let Some(key) = differing {
            let [before, now] = [&before, &now].map(|keys| keys.get(key).map_or("nothing".into(), Value::to_string));
            let reason = format!("the run began with {before}, the recipe now says {now}; {cure}");
            return Err(Error::key(path, key, reason));
        }
        match content.into_iter().find(|(_, saved, now)| saved != now) {
            None => Ok(()),
            Some((what, saved, now)) => {
                Err(Error::key(path, what, format!("had digest {saved} when the run began, and now has {now}; {cure}")))
            }
        }
    }
}

/// Counts for what it is times the number of processes.
const ACCUMULATION: &str = "training.gradient_accumulation_steps";

/// What was best by one metric is not by another.
const BOUND: &str = "evaluation.metric_for_best_model";

fn is_free(key: &str) -> bool {
    key != BOUND
        && FREE.iter().any(|free| key.strip_prefix(free).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// A recipe with dotted keys.
fn flat(recipe: &Recipe) -> Result<Map<String, Value>> {
    fn add(prefix: &str, value: Value, into: &mut Map<String, Value>) {
        match value {
            Value::Object(table) => {
                for (key, value) in table {
                    let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                    add(&key, value, into);
                }
            }
            value => {
                into.insert(prefix.to_string(), value);
            }
        }
    }
    let mut keys = Map::new();
    let value = serde_json::to_value(recipe).map_err(|e| Error::Invalid(format!("the recipe is no JSON: {e}")))?;
    add("", value, &mut keys);
    Ok(keys)
}

/// A digest of the tokens of a data set and of which of them are trained, which tells apart files, tokenizers, templates and
/// lengths.
pub fn data_digest(data: &Dataset) -> String {
    let examples = data.examples.iter().map(|example| {
        let mut bytes: Vec<u8> = (example.tokens.len() as u64).to_le_bytes().into();
        bytes.extend(example.tokens.iter().flat_map(|token| token.to_le_bytes()));
        bytes.extend(example.trained.iter().map(|trained| u8::from(*trained)));
        sha256([bytes.as_slice()])
    });
    sha256(examples.collect::<Vec<_>>().iter().map(String::as_bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::{Counts, Example, Grouping};

    #[test]
    fn what_matters_is_named_with_both_values() {
        let examples = vec![Example { tokens: vec![1, 2], trained: vec![false, true] }];
        let data = Dataset { examples, counts: Counts::default(), grouping: Grouping::default() };
        let recipe = Recipe::default();
        let [config_sha256, model_digest] = ["c", "m"].map(String::from);
        let data_sha256 = data_digest(&data);
        let run = Run { recipe, config_sha256, model_digest, data_sha256, held_out_sha256: None, world_size: 1 };
        let refused = |change: &dyn Fn(&mut Run)| {
            let mut now = run.clone();
            change(&mut now);
            now.continues(&run, Path::new("run.json")).err().map(|e| e.to_string())
        };
        assert_eq!(refused(&|_| {}), None);
        let free = |now: &mut Run| {
            now.recipe.output = "there".into();
            now.recipe.training.max_steps = 9;
            now.recipe.checkpoints.save_steps = 1;
        };
        assert_eq!(refused(&free), None);
        let message = refused(&|now| now.recipe.training.batch_size = 3).unwrap();
        assert!(message.starts_with("run.json: `training.batch_size`: the run began with 8, the recipe now says 3"));
        // Four micro-batches to a step are the same step, whoever takes them.
        let dealt = |now: &mut Run, processes, each| {
            (now.world_size, now.recipe.training.gradient_accumulation_steps) = (processes, each);
        };
        let mut of_two = run.clone();
        dealt(&mut of_two, 2, 2);
        for (processes, each, same) in [(1, 4, true), (4, 1, true), (2, 1, false), (1, 2, false)] {
            let mut now = run.clone();
            dealt(&mut now, processes, each);
            let refused = now.continues(&of_two, Path::new("run.json")).err().map(|e| e.to_string());
            assert_eq!(refused.is_none(), same, "{processes} x {each}: {refused:?}");
            let named = |message: String| message.contains("2 processes x gradient_accumulation_steps = 2");
            assert!(refused.is_none_or(named));
        }
        let written = serde_json::to_string(&of_two).unwrap();
        assert_eq!(serde_json::from_str::<Run>(&written).unwrap(), of_two);
        assert!(!serde_json::to_string(&run).unwrap().contains("world_size"));
        let message = refused(&|now| now.recipe.lora.r = 3).unwrap();
        assert!(message.contains("`lora.r`") && message.contains("16"), "{message}");
        for change in [|now: &mut Run| now.recipe.seed = 1, |now: &mut Run| now.recipe.data.max_length = 1] {
            assert!(refused(&change).is_some());
        }
        let mut scaled = run.clone();
        scaled.recipe.lora.alpha_pattern = [("q_proj".into(), 128.0)].into();
        let lost = run.continues(&scaled, Path::new("run.json")).unwrap_err().to_string();
        assert!(lost.contains("alpha_pattern.q_proj") && lost.contains("128") && lost.contains("nothing"), "{lost}");
        let mut other = data.clone();
        other.examples[0].trained[0] = true;
        let message = refused(&|now| now.data_sha256 = data_digest(&other)).unwrap();
        assert!(message.contains("`data.train (tokens)`") && message.contains(&run.data_sha256), "{message}");
        assert!(refused(&|now| now.model_digest = "other".into()).unwrap().contains("m"));
    }
}
