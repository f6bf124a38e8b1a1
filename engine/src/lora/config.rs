//! An adapter's configuration, as a recipe and as PEFT's `adapter_config.json` hold it.

use serde::{Deserialize, Serialize};

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
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: Targets::Pattern("all-linear".into()),
            use_rslora: false,
        }
    }
}

impl LoraConfig {
    /// What the branch's output is multiplied by.
    pub fn scaling(&self) -> f64 {
        self.lora_alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }
}
