//! An adapter's configuration, as a recipe and as PEFT's `adapter_config.json` hold it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// The largest rank that is accepted: more than any weight is wide, and small enough that no product overflows.
const MOST: usize = 1 << 16;

/// Which linear layers are adapted, as PEFT's `target_modules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// `"all-linear"`: every linear layer but the output head; any other string is a regular expression that must match
    /// the whole path.
    Pattern(String),
    /// Names: a layer is adapted when its path is one of them or ends in `.` and one of them.
    Names(Vec<String>),
}

impl Targets {
    /// Whether every linear layer is meant.
    pub fn is_all(&self) -> bool {
        matches!(self, Self::Pattern(all) if all.eq_ignore_ascii_case("all-linear"))
    }
}

/// A LoRA adapter's hyperparameters, under PEFT's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the update.
    pub r: usize,
    /// Numerator of the scaling.
    pub lora_alpha: f64,
    /// Share of the branch's input that is dropped in training.
    pub lora_dropout: f64,
    /// Adapted layers.
    pub target_modules: Targets,
    /// Scale by `alpha / sqrt(r)` (rsLoRA, arXiv:2312.03732) in place of `alpha / r`.
    pub use_rslora: bool,
    /// Train the length of every row of the adapted weight on its own (DoRA, arXiv:2402.09353).
    pub use_dora: bool,
    /// Decoder layers that are adapted, counted from 0; empty for all.
    #[serde(deserialize_with = "one_or_many")]
    pub layers_to_transform: Vec<usize>,
    /// What stands before a layer's number in a path, for `layers_to_transform`; empty for anything.
    #[serde(deserialize_with = "one_or_many")]
    pub layers_pattern: Vec<String>,
    /// Modules that are trained in full and saved whole, by the ends of their paths: `lm_head`, `embed_tokens`, norms.
    #[serde(deserialize_with = "one_or_many")]
    pub modules_to_save: Vec<String>,
    /// Ranks that differ from `r`: by the end of a layer's path, a regular expression. The first key that matches counts,
    /// in the order of the alphabet, which is the order that PEFT saves them in.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Numerators that differ from `lora_alpha`, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: Targets::Pattern("all-linear".into()),
            use_rslora: false,
            use_dora: false,
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

impl LoraConfig {
    /// What the branch's output is multiplied by, where no pattern says otherwise.
    pub fn scaling(&self) -> f64 {
        self.scaling_of(self.lora_alpha, self.r)
    }

    pub(super) fn scaling_of(&self, alpha: f64, rank: usize) -> f64 {
        alpha / if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the key.
    pub fn check(&self) -> Result<()> {
        let wrong = |key: &str, reason: String| Err(Error::Invalid(format!("lora.{key}: {reason}")));
        let ranks = self.rank_pattern.iter().map(|(key, rank)| (format!("rank_pattern.{key}"), *rank));
        for (key, rank) in [("r".to_string(), self.r)].into_iter().chain(ranks) {
            if rank == 0 || rank > MOST {
                return wrong(&key, format!("{rank} must lie in 1..={MOST}; use 4 to 64"));
            }
        }
        let alphas = self.alpha_pattern.iter().map(|(key, alpha)| (format!("alpha_pattern.{key}"), *alpha));
        for (key, alpha) in [("lora_alpha".to_string(), self.lora_alpha)].into_iter().chain(alphas) {
            if !alpha.is_finite() {
                return wrong(&key, format!("{alpha} is not a finite number"));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return wrong("lora_dropout", format!("{} must lie in 0..1", self.lora_dropout));
        }
        let by_pattern = matches!(self.target_modules, Targets::Pattern(_)) && !self.target_modules.is_all();
        if by_pattern && !self.layers_to_transform.is_empty() {
            return wrong("layers_to_transform", "goes with a list of target_modules, not with an expression".into());
        }
        if self.layers_to_transform.is_empty() && !self.layers_pattern.is_empty() {
            return wrong("layers_pattern", "says where layers_to_transform counts, which is not given".into());
        }
        Ok(())
    }
}

/// Reads what PEFT writes as one value, as a list, or as null.
pub(crate) fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        Many(Vec<T>),
        One(T),
    }
    Ok(match Option::<Either<T>>::deserialize(from)? {
        Some(Either::Many(values)) => values,
        Some(Either::One(value)) => vec![value],
        None => Vec::new(),
    })
}
