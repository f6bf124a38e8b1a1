//! Reading a [`ModelConfig`] from a Hugging Face `config.json`.

use std::path::Path;

use burn::tensor::FloatDType;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::config::{AttentionConfig, LayerKind, ModelConfig};
use super::family::{FAMILIES, Family, Windows};
use super::names::{MULTIMODAL, Multimodal};
use super::rope::{self, RopeConfig};
use crate::ops::Activation;
use crate::{Error, Result};

/// The keys of `config.json` that matter here. Of a key whose `null` says something else than its absence, the outer
/// option is whether it is there.
#[derive(Deserialize)]
struct Raw {
    vocab_size: Option<usize>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    max_position_embeddings: Option<usize>,
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "present")]
    final_logit_softcapping: Option<Option<f64>>,
    #[serde(default)]
    use_bidirectional_attention: bool,
}

fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// The family of a configuration, its keys, and what its tensors' names begin with in files.
fn family<'a>(path: &Path, json: &'a Value) -> Result<(&'static Family, &'a Value, &'static str)> {
    let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let architectures: Vec<&str> = match json.get("architectures").and_then(Value::as_array) {
        Some(names) => names.iter().filter_map(Value::as_str).collect(),
        None => vec![],
    };
    let is = |architecture: &str, of: &str| match architectures.is_empty() {
        true => of == model_type,
        false => architectures.contains(&architecture),
    };
    if let Some(family) = FAMILIES.iter().find(|family| is(family.architecture, family.model_type)) {
        return Ok((family, json, ""));
    }
    let whole = MULTIMODAL.iter().find(|whole| is(whole.architecture, whole.model_type));
    if let Some(Multimodal { part, prefix, .. }) = whole
        && let (Some(family), Some(text)) = (FAMILIES.iter().find(|f| f.model_type == *part), json.get("text_config"))
    {
        return Ok((family, text, prefix));
    }
    let found = architectures.first().copied().unwrap_or(model_type);
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
    let parts: Vec<&str> = MULTIMODAL.iter().map(|whole| whole.architecture).collect();
    let reason = format!(
        "`{found}` is not supported; supported are: {}, and the text models in: {}",
        known.join(", "),
        parts.join(", ")
    );
    Err(Error::key(path, "architectures", reason))
}

impl ModelConfig {
    /// The configuration of a model's folder.
    ///
    /// # Errors
    /// When there is none, and as [`parse`](Self::parse).
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let json = std::fs::read(&path)
            .map_err(|e| Error::file(&path, format!("{e}; a model folder holds config.json and model.safetensors")))?;
        Self::parse(&path, &json)
    }

    /// Parses `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Key`] on a missing, contradictory or unsupported key.
    pub fn parse(path: impl AsRef<Path>, json: &[u8]) -> Result<Self> {
        let path = path.as_ref();
        let not_understood =
            |e: serde_json::Error| Error::file(path, format!("not a model configuration that is understood: {e}"));
        let json: Value = serde_json::from_slice(json).map_err(not_understood)?;
        let (family, keys, prefix) = family(path, &json)?;
        let mut raw = Raw::deserialize(keys).map_err(not_understood)?;
        let [heads, kv_heads] = [0, 1].map(|i| family.heads.map(|heads| heads[i]));
        raw.num_attention_heads = raw.num_attention_heads.or(heads);
        raw.num_key_value_heads = raw.num_key_value_heads.or(kv_heads);
        let vocab_size = raw.vocab_size.or(family.vocab_size).unwrap_or(0);
        let max_positions = raw.max_position_embeddings.unwrap_or(family.max_positions);
        sizes(path, &raw, vocab_size, max_positions)?;
        let activation = activation(path, family, keys)?;
        let attention = attention(path, family, &raw)?;
        let final_logit_softcapping = raw.final_logit_softcapping.unwrap_or(family.final_logit_softcapping);
        positive(path, "final_logit_softcapping", final_logit_softcapping)?;
        let rms_norm_eps = raw.rms_norm_eps.unwrap_or(family.rms_norm_eps);
        positive(path, "rms_norm_eps", Some(rms_norm_eps))?;
        let (kinds, layer_kinds) = kinds(path, family, &raw, (attention.head_dim, max_positions))?;
        let [qkv_bias, output_bias, mlp_bias] = family.biases.resolve(raw.attention_bias, raw.mlp_bias);
        Ok(Self {
            family,
            prefix,
            vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            attention,
            kinds,
            layer_kinds,
            rms_norm_eps,
            activation,
            embedding_scale: family.scaled_embeddings.then(|| (raw.hidden_size as f64).sqrt()),
            final_logit_softcapping,
            tied: raw.tie_word_embeddings.unwrap_or(family.tied),
            qkv_bias,
            output_bias,
            mlp_bias,
            max_positions,
            dtype: dtype(&json),
        })
    }
}

/// What a model's files hold floats in by its configuration, as `dtype` or, in older files, `torch_dtype`: of the text model, or else of the
/// whole; f32 where it does not say.
pub(crate) fn dtype(json: &Value) -> FloatDType {
    let configurations = json.get("text_config").into_iter().chain([json]);
    let mut said = configurations.flat_map(|keys| ["dtype", "torch_dtype"].map(|key| keys.get(key)?.as_str()));
    match said.find_map(|name| name) {
        Some(name) if name.ends_with("bfloat16") => FloatDType::BF16,
        Some(name) if name.ends_with("float16") => FloatDType::F16,
        _ => FloatDType::F32,
    }
}

fn activation(path: &Path, family: &Family, keys: &Value) -> Result<Activation> {
    let key = family.activation_key;
    match keys.get(key).and_then(Value::as_str) {
        None => Ok(family.activation),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some(other) => {
            let reason = format!("`{other}` is not supported; supported are silu and gelu_pytorch_tanh");
            Err(Error::key(path, key, reason))
        }
    }
}

/// Checks that every size is one that a model can have. Larger ones are no model's, and would overflow the sums made of
/// them.
fn sizes(path: &Path, raw: &Raw, vocab_size: usize, max_positions: usize) -> Result<()> {
    let heads = raw.num_attention_heads.unwrap_or(0);
    let kv_heads = raw.num_key_value_heads.unwrap_or(heads);
    for (key, value, most) in [
        ("vocab_size", vocab_size, 1 << 24),
        ("hidden_size", raw.hidden_size, 1 << 20),
        ("intermediate_size", raw.intermediate_size, 1 << 20),
        ("num_hidden_layers", raw.num_hidden_layers, 1 << 12),
        ("num_attention_heads", heads, 1 << 12),
        ("num_key_value_heads", kv_heads, 1 << 12),
        ("max_position_embeddings", max_positions, 1 << 30),
    ] {
        if value == 0 || value > most {
            let reason = format!("is {value} or missing; it must lie in 1..={most}");
            return Err(Error::key(path, key, reason));
        }
    }
    if !heads.is_multiple_of(kv_heads) {
        let reason = format!("{kv_heads} does not divide num_attention_heads = {heads}");
        return Err(Error::key(path, "num_key_value_heads", reason));
    }
    Ok(())
}

/// Reads the heads, whose numbers have been checked.
fn attention(path: &Path, family: &Family, raw: &Raw) -> Result<AttentionConfig> {
    let heads = raw.num_attention_heads.unwrap_or(1);
    let kv_heads = raw.num_key_value_heads.unwrap_or(heads);
    let head_dim = raw.head_dim.or(family.head_dim).unwrap_or(raw.hidden_size / heads);
    if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1 << 12 {
        return Err(Error::key(
            path,
            "head_dim",
            format!("{head_dim} must be even and positive, for rotary embedding"),
        ));
    }
    if raw.use_bidirectional_attention {
        return Err(Error::key(path, "use_bidirectional_attention", "an embedding model; only decoders are supported"));
    }
    let scalar = family.query_pre_attn_scalar.map(|absent| raw.query_pre_attn_scalar.unwrap_or(absent));
    positive(path, "query_pre_attn_scalar", scalar)?;
    let softcap = match family.norms_around_mlp {
        true => raw.attn_logit_softcapping.unwrap_or(family.attn_logit_softcapping),
        false => None,
    };
    positive(path, "attn_logit_softcapping", softcap)?;
    Ok(AttentionConfig {
        heads,
        kv_heads,
        head_dim,
        scale: scalar.unwrap_or(head_dim as f64).powf(-0.5) as f32,
        softcap: softcap.map(|cap| cap as f32),
    })
}

fn positive(path: &Path, key: &str, value: Option<f64>) -> Result<()> {
    match value.filter(|value| !(value.is_finite() && *value > 0.0)) {
        Some(value) => Err(Error::key(path, key, format!("{value} must be positive"))),
        None => Ok(()),
    }
}

/// The kinds of layer that occur, and which of them each layer is.
fn kinds(path: &Path, family: &Family, raw: &Raw, sizes: (usize, usize)) -> Result<(Vec<LayerKind>, Vec<usize>)> {
    let (sliding, window) = sliding(path, family, raw)?;
    let (mut kinds, mut places) = (Vec::new(), [None; 2]);
    let mut layer_kinds = Vec::with_capacity(sliding.len());
    for through_window in sliding {
        let place = match places[usize::from(through_window)] {
            Some(place) => place,
            None => {
                let rope = rope(path, family, raw, sizes, through_window)?;
                kinds.push(LayerKind { window: window.filter(|_| through_window), rope });
                kinds.len() - 1
            }
        };
        places[usize::from(through_window)] = Some(place);
        layer_kinds.push(place);
    }
    Ok((kinds, layer_kinds))
}

/// Whether each layer sees through the window, and the window.
fn sliding(path: &Path, family: &Family, raw: &Raw) -> Result<(Vec<bool>, Option<usize>)> {
    let layers = raw.num_hidden_layers;
    let window = raw.sliding_window.unwrap_or(family.sliding_window);
    if window == Some(0) || (window.is_none() && family.rope_local_base_freq.is_some()) {
        return Err(Error::key(path, "sliding_window", "is 0 or null; it must be the number of tokens that are seen"));
    }
    if raw.sliding_window_pattern == Some(0) {
        return Err(Error::key(path, "sliding_window_pattern", "is 0; every how many layers one has no window?"));
    }
    if let (Some(types), true) = (&raw.layer_types, matches!(family.windows, Windows::Upper | Windows::AllButEvery(_)))
    {
        if types.len() != layers {
            let reason = format!("has {} entries for {layers} layers", types.len());
            return Err(Error::key(path, "layer_types", reason));
        }
        let known = |name: &String| match name.as_str() {
            "full_attention" => Ok(false),
            "sliding_attention" if window.is_some() => Ok(true),
            "sliding_attention" => {
                Err(Error::key(path, "layer_types", "has sliding layers; sliding_window is missing"))
            }
            other => {
                let reason = format!("`{other}` is not supported; supported: full_attention, sliding_attention");
                Err(Error::key(path, "layer_types", reason))
            }
        };
        return Ok((types.iter().map(known).collect::<Result<_>>()?, window));
    }
    let sliding = |i: usize| match family.windows {
        Windows::None => false,
        Windows::All => true,
        Windows::Upper => raw.use_sliding_window && i >= raw.max_window_layers.unwrap_or(28),
        Windows::AllButEvery(n) => !(i + 1).is_multiple_of(raw.sliding_window_pattern.unwrap_or(n)),
    };
    Ok(((0..layers).map(|i| window.is_some() && sliding(i)).collect(), window))
}

/// Reads the rotary keys, which transformers 4 spells `rope_theta` and `rope_scaling`, and 5 `rope_parameters`, there with an
/// entry for each kind of layer where kinds differ.
fn rope(
    path: &Path,
    family: &Family,
    raw: &Raw,
    (head_dim, max_positions): (usize, usize),
    sliding: bool,
) -> Result<RopeConfig> {
    let name = if sliding { "sliding_attention" } else { "full_attention" };
    let local = family.rope_local_base_freq.filter(|_| sliding);
    let (key, scaling) = match raw.rope_parameters.as_ref().filter(|v| !v.is_null()) {
        Some(parameters) => ("rope_parameters", Some(parameters.get(name).unwrap_or(parameters))),
        None => ("rope_scaling", raw.rope_scaling.as_ref().filter(|v| !v.is_null() && local.is_none())),
    };
    let theta = match local {
        Some(absent) => raw.rope_local_base_freq.unwrap_or(absent),
        None => raw.rope_theta.unwrap_or(family.rope_theta),
    };
    rope::parse(&rope::Sources {
        path,
        key,
        scaling,
        theta,
        head_dim,
        partial: raw.partial_rotary_factor.unwrap_or(1.0),
        max_positions,
        original: raw.original_max_position_embeddings,
    })
}
