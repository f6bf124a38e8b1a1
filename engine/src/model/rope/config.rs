//! The rotary keys of a `config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// The scalings that are known, as `rope_type` names them.
const KINDS: &str = "default, linear, llama3, yarn, longrope";

/// Rotary position embedding (arXiv:2104.09864) and how its frequencies are scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions of a head that are rotated: all, or the first of them.
    pub dim: usize,
    /// The scaling.
    pub scaling: Scaling,
}

/// `rope_scaling`.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// Every wavelength stretched by a factor.
    Linear {
        /// How far.
        factor: f64,
    },
    /// Llama 3.1's.
    Llama3(Llama3Scaling),
    /// YaRN (arXiv:2309.00071).
    Yarn(Yarn),
    /// LongRoPE (arXiv:2402.13753), as Phi-3 has it.
    LongRope(LongRope),
}

impl Scaling {
    /// As `rope_type` names it; nothing for no scaling.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Linear { .. } => Some("linear"),
            Self::Llama3(_) => Some("llama3"),
            Self::Yarn(_) => Some("yarn"),
            Self::LongRope(_) => Some("longrope"),
        }
    }
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

/// `rope_scaling` of type `yarn` (transformers, `_compute_yarn_parameters`).
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How far wavelengths are stretched.
    pub factor: f64,
    /// Pairs that turn at least so often in the original context are kept.
    pub beta_fast: f64,
    /// Pairs that turn at most so often are stretched whole.
    pub beta_slow: f64,
    /// Whether the two bounds are rounded outwards to whole pairs.
    pub truncate: bool,
    /// Context length before the scaling.
    pub original_max_position_embeddings: f64,
    /// What cos and sin are multiplied by.
    pub attention_factor: f64,
}

/// `rope_scaling` of type `longrope` (transformers, `_compute_longrope_parameters`).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// How far each pair's wavelength is stretched in sequences up to the original context length.
    pub short_factor: Vec<f64>,
    /// The same in longer ones.
    pub long_factor: Vec<f64>,
    /// Context length before the scaling.
    pub original_max_position_embeddings: usize,
    /// What cos and sin are multiplied by.
    pub attention_factor: f64,
}

/// The keys of any scaling.
#[derive(Deserialize)]
struct Raw {
    factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    attention_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
}

/// What of a configuration the rotary embedding depends on.
pub(in crate::model) struct Sources<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// The key that `scaling` was found under.
    pub key: &'a str,
    /// `rope_scaling`, or `rope_parameters` of transformers 5.
    pub scaling: Option<&'a Value>,
    /// Base of the frequencies.
    pub theta: f64,
    /// Width of a head.
    pub head_dim: usize,
    /// Share of a head that is rotated.
    pub partial: f64,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// `original_max_position_embeddings` beside it, as Phi-3 has it.
    pub original: Option<usize>,
}

/// Reads them.
///
/// # Errors
/// [`Error::Key`] on a missing, unsupported or impossible one.
pub(in crate::model) fn parse(sources: &Sources) -> Result<RopeConfig> {
    let Sources { path, key, scaling, theta, head_dim, partial, .. } = *sources;
    let inside = |name: &str| scaling.and_then(|scaling| scaling.get(name)).and_then(Value::as_f64);
    let partial = inside("partial_rotary_factor").unwrap_or(partial);
    let dim = (head_dim as f64 * partial) as usize;
    if !(partial > 0.0 && partial <= 1.0) || dim == 0 || !dim.is_multiple_of(2) {
        let reason = format!("{partial} of head_dim = {head_dim} is no even number of dimensions from 2 to {head_dim}");
        return Err(Error::key(path, "partial_rotary_factor", reason));
    }
    let theta = inside("rope_theta").unwrap_or(theta);
    if !(theta.is_finite() && theta > 1.0) {
        return Err(Error::key(path, "rope_theta", format!("{theta} must be above 1")));
    }
    let scaling = match scaling {
        Some(value) => scaled(sources, value, dim).map_err(|reason| Error::key(path, key, reason))?,
        None => Scaling::None,
    };
    Ok(RopeConfig { theta, dim, scaling })
}

fn scaled(sources: &Sources, value: &Value, dim: usize) -> Result<Scaling, String> {
    let kind = value.get("rope_type").or_else(|| value.get("type")).and_then(Value::as_str).unwrap_or("default");
    let raw: Raw = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    // The names that Phi-3's scaling had before it was called so.
    let kind = if kind == "su" || (kind == "yarn" && raw.short_factor.is_some()) { "longrope" } else { kind };
    let factor = || positive("factor", raw.factor);
    Ok(match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: factor()? },
        "llama3" => {
            let llama3: Llama3Scaling = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
            let Llama3Scaling { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } = llama3;
            for (name, value) in [
                ("factor", factor),
                ("low_freq_factor", low_freq_factor),
                ("high_freq_factor", high_freq_factor),
                ("original_max_position_embeddings", original_max_position_embeddings),
            ] {
                positive(name, Some(value))?;
            }
            Scaling::Llama3(llama3)
        }
        "yarn" => {
            let factor = factor()?;
            let attention_factor = raw.attention_factor.unwrap_or_else(|| yarn_attention(factor, &raw));
            let original = raw.original_max_position_embeddings.unwrap_or(sources.max_positions as f64);
            Scaling::Yarn(Yarn {
                factor,
                beta_fast: positive("beta_fast", raw.beta_fast.or(Some(32.0)))?,
                beta_slow: positive("beta_slow", raw.beta_slow.or(Some(1.0)))?,
                truncate: raw.truncate.unwrap_or(true),
                original_max_position_embeddings: positive("original_max_position_embeddings", Some(original))?,
                attention_factor: positive("attention_factor", Some(attention_factor))?,
            })
        }
        "longrope" => {
            let original = sources.original.map(|n| n as f64).or(raw.original_max_position_embeddings);
            let original = positive("original_max_position_embeddings", original)?;
            let stretch = sources.max_positions as f64 / original;
            let factor = if sources.original.is_some() { stretch } else { raw.factor.unwrap_or(stretch) };
            let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
            Scaling::LongRope(LongRope {
                short_factor: stretches("short_factor", &raw.short_factor, dim)?,
                long_factor: stretches("long_factor", &raw.long_factor, dim)?,
                original_max_position_embeddings: original as usize,
                attention_factor: positive("attention_factor", raw.attention_factor.or(Some(derived)))?,
            })
        }
        "dynamic" => {
            let reason = "type `dynamic` is not supported: it gives every length of text other angles, so that what is \
                          trained at one length is not what runs at another";
            return Err(format!("{reason}; supported: {KINDS}"));
        }
        other => return Err(format!("type `{other}` is not supported; supported: {KINDS}")),
    })
}

/// YaRN's factor where the configuration states none.
fn yarn_attention(factor: f64, raw: &Raw) -> f64 {
    let of = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    match (raw.mscale, raw.mscale_all_dim) {
        (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => of(mscale) / of(all),
        _ => of(1.0),
    }
}

/// A number that is there, positive and finite.
fn positive(name: &str, value: Option<f64>) -> Result<f64, String> {
    match value {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        Some(value) => Err(format!("`{name}` is {value}; it must be positive")),
        None => Err(format!("`{name}` is missing")),
    }
}

/// One positive factor for each pair of dimensions.
fn stretches(name: &str, values: &Option<Vec<f64>>, dim: usize) -> Result<Vec<f64>, String> {
    let values = values.as_ref().ok_or_else(|| format!("`{name}` is missing"))?;
    if values.len() != dim / 2 {
        return Err(format!("`{name}` has {} factors; {} pairs of dimensions are rotated", values.len(), dim / 2));
    }
    values.iter().map(|value| positive(name, Some(*value))).collect()
}
