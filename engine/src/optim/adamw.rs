//! AdamW's constants (arXiv:1711.05101), and what of them differs from parameter to parameter.

use serde::{Deserialize, Serialize};

/// AdamW's constants, under PyTorch's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the denominator from zero.
    pub eps: f64,
    /// Decoupled weight decay, a share of the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Whether weight decay applies to a parameter: to all but biases and norms (transformers,
/// `Trainer.get_decay_parameter_names`).
pub fn is_decayed(path: &str) -> bool {
    let part = |part: &str| {
        let whole = part == "norm" || part.ends_with("_norm");
        whole || ["bias", "layernorm", "rmsnorm"].iter().any(|name| part.contains(name))
    };
    !path.to_lowercase().split('.').any(part)
}

/// Whether LoRA+ trains a parameter at the higher rate (arXiv:2402.12354): the B matrices, and vectors beside them, DoRA's
/// magnitudes among these (PEFT, `create_loraplus_optimizer`).
pub fn is_loraplus(path: &str) -> bool {
    path.contains("lora_B") || path.contains("lora_magnitude_vector") || !is_decayed(path)
}
