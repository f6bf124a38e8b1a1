//! What a decoder-only transformer looks like, read from a Hugging Face `config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// The shape and constants of a Llama-style decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads` (grouped-query attention, arXiv:2305.13245).
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// The output head is the embedding.
    pub tied: bool,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Positions that the model was trained on.
    pub max_positions: usize,
}

/// Rotary position embedding (arXiv:2104.09864) and how its frequencies are scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Llama 3.1's scaling, where the config asks for it.
    pub llama3: Option<Llama3Scaling>,
}

/// `rope_scaling` of type `llama3`: long wavelengths are stretched, short ones kept, those between are blended
/// (transformers, `_compute_llama3_parameters`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Llama3Scaling {
    /// How far long wavelengths are stretched.
    pub factor: f64,
    /// Wavelengths beyond `original / low_freq_factor` are stretched whole.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context length before the scaling.
    pub original_max_position_embeddings: f64,
}

/// The keys of `config.json` that matter here.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    hidden_act: Option<String>,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_positions() -> usize {
    2048
}

/// The architectures that this engine knows, as `architectures` names them.
pub const ARCHITECTURES: [&str; 1] = ["LlamaForCausalLM"];

impl ModelConfig {
    /// Parses `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Key`] on a missing, contradictory or unsupported key.
    pub fn parse(path: impl AsRef<Path>, json: &[u8]) -> Result<Self> {
        let path = path.as_ref();
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|e| Error::file(path, format!("not a model configuration that is understood: {e}")))?;
        let known = raw.architectures.iter().any(|a| ARCHITECTURES.contains(&a.as_str()))
            || (raw.architectures.is_empty() && raw.model_type.as_deref() == Some("llama"));
        if !known {
            let found = raw.architectures.first().cloned().or(raw.model_type).unwrap_or_default();
            return Err(Error::key(
                path,
                "architectures",
                format!("`{found}` is not supported; supported are: {}", ARCHITECTURES.join(", ")),
            ));
        }
        if let Some(act) = raw.hidden_act.as_deref().filter(|act| *act != "silu" && *act != "swish") {
            return Err(Error::key(path, "hidden_act", format!("`{act}` is not supported; Llama models use `silu`")));
        }
        let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        // Larger ones are no model's, and would overflow the sums made of them.
        for (key, value, most) in [
            ("vocab_size", raw.vocab_size, 1 << 24),
            ("hidden_size", raw.hidden_size, 1 << 20),
            ("intermediate_size", raw.intermediate_size, 1 << 20),
            ("num_hidden_layers", raw.num_hidden_layers, 1 << 12),
            ("num_attention_heads", raw.num_attention_heads, 1 << 12),
            ("num_key_value_heads", kv_heads, 1 << 12),
        ] {
            if value == 0 || value > most {
                return Err(Error::key(path, key, format!("{value} is out of range; it must lie in 1..={most}")));
            }
        }
        if !raw.num_attention_heads.is_multiple_of(kv_heads) {
            let reason = format!("{kv_heads} does not divide num_attention_heads = {}", raw.num_attention_heads);
            return Err(Error::key(path, "num_key_value_heads", reason));
        }
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1 << 12 {
            return Err(Error::key(
                path,
                "head_dim",
                format!("{head_dim} must be even and positive, for rotary embedding"),
            ));
        }
        let rope = rope(path, raw.rope_theta, raw.rope_scaling, raw.rope_parameters)?;
        Ok(Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads,
            head_dim,
            rms_norm_eps: raw.rms_norm_eps,
            rope,
            tied: raw.tie_word_embeddings,
            attention_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            max_positions: raw.max_position_embeddings,
        })
    }

    /// Checks that the embedding has a row for every token.
    ///
    /// # Errors
    /// On the first token that it has none for.
    pub fn check_tokens<'a>(&self, tokens: impl IntoIterator<Item = &'a u32>) -> Result<()> {
        match tokens.into_iter().find(|token| **token as usize >= self.vocab_size) {
            Some(token) => Err(Error::Invalid(format!(
                "token {token} is outside the vocabulary of {}; the tokenizer belongs to another model",
                self.vocab_size
            ))),
            None => Ok(()),
        }
    }

    /// The seven linear layers of a decoder layer: path inside the layer, `[out, in]`, and whether it has a bias.
    pub fn linears(&self) -> [(&'static str, [usize; 2], bool); 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            ("self_attn.q_proj", [q, hidden], self.attention_bias),
            ("self_attn.k_proj", [kv, hidden], self.attention_bias),
            ("self_attn.v_proj", [kv, hidden], self.attention_bias),
            ("self_attn.o_proj", [hidden, q], self.attention_bias),
            ("mlp.gate_proj", [inner, hidden], self.mlp_bias),
            ("mlp.up_proj", [inner, hidden], self.mlp_bias),
            ("mlp.down_proj", [hidden, inner], self.mlp_bias),
        ]
    }

    /// All parameters, the tied head counted once.
    pub fn parameters(&self) -> u64 {
        let linear = |([out, input], bias): ([usize; 2], bool)| (out * input + if bias { out } else { 0 }) as u64;
        let layer: u64 = self.linears().iter().map(|(_, shape, bias)| linear((*shape, *bias))).sum();
        let hidden = self.hidden_size as u64;
        let embeddings = self.vocab_size as u64 * hidden * if self.tied { 1 } else { 2 };
        embeddings + self.layers as u64 * (layer + 2 * hidden) + hidden
    }
}

/// Reads the rotary keys, which transformers 4 spells `rope_theta` and `rope_scaling`, and 5 `rope_parameters`.
fn rope(path: &Path, theta: Option<f64>, scaling: Option<Value>, parameters: Option<Value>) -> Result<RopeConfig> {
    let (key, scaling) = match parameters {
        Some(parameters) => ("rope_parameters", Some(parameters)),
        None => ("rope_scaling", scaling.filter(|v| !v.is_null())),
    };
    let Some(scaling) = scaling else { return Ok(RopeConfig { theta: theta.unwrap_or(10_000.0), llama3: None }) };
    let theta = scaling.get("rope_theta").and_then(Value::as_f64).or(theta).unwrap_or(10_000.0);
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
    let llama3 = match kind {
        "default" => None,
        "llama3" => Some(serde_json::from_value(scaling.clone()).map_err(|e| Error::key(path, key, e))?),
        other => {
            return Err(Error::key(path, key, format!("type `{other}` is not supported; supported: default, llama3")));
        }
    };
    Ok(RopeConfig { theta, llama3 })
}
