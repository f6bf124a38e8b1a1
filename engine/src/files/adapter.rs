//! An adapter folder in PEFT's format as it lies on the disk: configuration and matrices, checked, on the host.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::Checkpoint;
use super::json::read_json;
use crate::lora::{Layers, LoraConfig, Targets, is_saved, one_or_many};
use crate::model::{prefix_of, text_path};
use crate::{Error, Result};

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts in front of a module's path in the Hugging Face model.
pub(super) const PREFIX: &str = "base_model.model.";
/// A layer's tensors, after its path.
pub(super) const A: &str = ".lora_A.weight";
pub(super) const B: &str = ".lora_B.weight";
pub(super) const MAGNITUDE: &str = ".lora_magnitude_vector";

/// Ways to begin an adapter, by their names in PEFT, that leave the base as it is.
const BESIDE_THE_BASE: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The keys of `adapter_config.json` that change what an adapter computes; others are PEFT's bookkeeping.
#[derive(Deserialize)]
struct Raw {
    peft_type: String,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Option<Targets>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    ensure_weight_tying: bool,
    #[serde(default, deserialize_with = "one_or_many")]
    target_parameters: Vec<String>,
    init_lora_weights: Option<Value>,
    alora_invocation_tokens: Option<IgnoredAny>,
    #[serde(default)]
    use_qalora: bool,
    arrow_config: Option<IgnoredAny>,
    layer_replication: Option<IgnoredAny>,
    trainable_token_indices: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "one_or_many")]
    modules_to_save: Vec<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    layers_to_transform: Vec<usize>,
    #[serde(default, deserialize_with = "one_or_many")]
    layers_pattern: Vec<String>,
    rank_pattern: Option<BTreeMap<String, usize>>,
    alpha_pattern: Option<BTreeMap<String, f64>>,
}

/// What an `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The base model that the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
    lora: LoraConfig,
}

/// Reads an adapter folder's configuration.
///
/// # Errors
/// When it is missing or malformed, or asks for something that would change the result and is not supported.
pub fn adapter_config(folder: impl AsRef<Path>) -> Result<AdapterConfig> {
    let path = folder.as_ref().join(CONFIG);
    if !path.exists() {
        return Err(Error::file(&path, "is missing; an adapter folder needs it"));
    }
    AdapterConfig::parse(&path, &read_json(&path)?)
}

impl AdapterConfig {
    /// Parses `adapter_config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`adapter_config`].
    pub fn parse(path: impl AsRef<Path>, json: &[u8]) -> Result<Self> {
        let path = path.as_ref();
        let raw: Raw = serde_json::from_slice(json).map_err(|e| Error::file(path, e))?;
        let untied = raw.ensure_weight_tying && !raw.modules_to_save.is_empty();
        // By all others PEFT takes something away from the base's weights before it loads the matrices (`LoraLayer.update_layer`).
        let of_the_base = |init: &Value| matches!(init.as_str(), Some(init) if !BESIDE_THE_BASE.contains(&init));
        let unsupported = [
            ("peft_type", raw.peft_type != "LORA"),
            ("init_lora_weights", raw.init_lora_weights.as_ref().is_some_and(of_the_base)),
            ("alora_invocation_tokens", raw.alora_invocation_tokens.is_some()),
            ("use_qalora", raw.use_qalora),
            ("arrow_config", raw.arrow_config.is_some()),
            ("fan_in_fan_out", raw.fan_in_fan_out),
            ("bias", raw.bias.as_deref().is_some_and(|bias| bias != "none")),
            ("lora_bias", raw.lora_bias),
            ("ensure_weight_tying", untied),
            ("target_parameters", !raw.target_parameters.is_empty()),
            ("layer_replication", raw.layer_replication.is_some()),
            ("trainable_token_indices", raw.trainable_token_indices.is_some()),
        ];
        if let Some((key, _)) = unsupported.iter().find(|(_, asked)| *asked) {
            let reason = "this kind of adapter is not supported; LoRA, rsLoRA and DoRA on linear layers are";
            return Err(Error::key(path, *key, reason));
        }
        let lora = LoraConfig {
            r: raw.r,
            lora_alpha: raw.lora_alpha,
            lora_dropout: raw.lora_dropout,
            target_modules: raw.target_modules.unwrap_or(Targets::Names(Vec::new())),
            use_rslora: raw.use_rslora,
            use_dora: raw.use_dora,
            layers_to_transform: raw.layers_to_transform,
            layers_pattern: raw.layers_pattern,
            modules_to_save: raw.modules_to_save,
            rank_pattern: of_text(raw.rank_pattern),
            alpha_pattern: of_text(raw.alpha_pattern),
        };
        Layers::new(&lora).map_err(|e| Error::file(path, e))?;
        Ok(Self { base_model_name_or_path: raw.base_model_name_or_path, lora })
    }

    /// The hyperparameters as a recipe holds them.
    pub fn lora(&self) -> LoraConfig {
        self.lora.clone()
    }
}

/// A pattern by layers of the text model.
fn of_text<T>(pattern: Option<BTreeMap<String, T>>) -> BTreeMap<String, T> {
    let plain = |(key, value): (String, T)| (text_path(&key).unwrap_or(key), value);
    pattern.unwrap_or_default().into_iter().map(plain).collect()
}

/// One layer's adapter on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrices {
    /// `[r, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, r]`, row-major.
    pub b: Vec<f32>,
    /// `[out, in]`, the adapted weight's shape.
    pub shape: [usize; 2],
    /// Rank.
    pub rank: usize,
    /// Multiplies `B A`.
    pub scaling: f64,
    /// `[out]`, for DoRA.
    pub magnitude: Option<Vec<f32>>,
}

/// An adapter folder: its configuration, and its tensors read one layer at a time. Paths are those of the text model, also
/// where the adapter is for a multi-modal one.
pub struct AdapterFile {
    /// What `adapter_config.json` says.
    pub config: AdapterConfig,
    file: Checkpoint,
    /// The name in the file of what a path and its ending stand for.
    names: BTreeMap<String, String>,
}

impl AdapterFile {
    /// Opens an adapter folder.
    ///
    /// # Errors
    /// When a file is missing or broken, or a tensor is no part of an adapter of its configuration.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        Self::new(adapter_config(folder)?, Checkpoint::open_file(folder.join(WEIGHTS))?)
    }

    /// From parts that are in memory.
    ///
    /// # Errors
    /// When a tensor is no part of an adapter of this configuration.
    pub fn new(config: AdapterConfig, file: Checkpoint) -> Result<Self> {
        let of_adapter = |path: &str| {
            let dora = config.lora.use_dora && path.ends_with(MAGNITUDE);
            path.ends_with(A) || path.ends_with(B) || dora || is_saved(path, &config.lora.modules_to_save)
        };
        let path_of = |name: &str| {
            let module = name.strip_prefix(PREFIX)?;
            Some(text_path(module).unwrap_or(module.to_string())).filter(|path| of_adapter(path))
        };
        let all = file.names();
        let names: BTreeMap<String, String> =
            all.iter().filter_map(|name| Some((path_of(name)?, name.to_string()))).collect();
        let stray = all.iter().find(|name| path_of(name).is_none()).copied();
        match stray.or(all.is_empty().then_some("nothing")) {
            Some(stray) => Err(Error::file(
                &file.path,
                format!("`{stray}` is no part of a LoRA adapter with this {CONFIG}; were the two written together?"),
            )),
            None => Ok(Self { config, file, names }),
        }
    }

    /// What stands in the file's names before the text model's own; nothing but for an adapter of a multi-modal model.
    pub(super) fn prefix(&self) -> &'static str {
        let modules = self.names.values().filter_map(|name| name.strip_prefix(PREFIX));
        modules.map(prefix_of).find(|prefix| !prefix.is_empty()).unwrap_or_default()
    }

    /// The name in the file of a path and its ending; where there is none, the one that it would have.
    fn name(&self, path: &str) -> String {
        self.names.get(path).cloned().unwrap_or_else(|| format!("{PREFIX}{path}"))
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The paths of the adapted layers, in order.
    pub fn layers(&self) -> Vec<String> {
        let layer =
            |path: &String| [A, B, MAGNITUDE].iter().find_map(|part| path.strip_suffix(part)).map(str::to_string);
        let mut paths: Vec<String> = self.names.keys().filter_map(layer).collect();
        paths.dedup();
        paths
    }

    /// The paths of the parameters that were trained in full, in order.
    pub fn saved(&self) -> Vec<String> {
        let saved = self.names.keys().filter(|path| ![A, B, MAGNITUDE].iter().any(|part| path.ends_with(part)));
        saved.cloned().collect()
    }

    /// The values of a parameter that was trained in full, of this shape.
    ///
    /// # Errors
    /// When it is missing or of another shape.
    pub fn saved_values(&self, path: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.file.floats(&self.name(path), shape)
    }

    /// The adapter of the layer at `path`, if it has one; `shape` is that of its weight, taken from the matrices where it is
    /// not known.
    ///
    /// # Errors
    /// When a matrix is missing, does not fit the shape or holds what is no number, or its rank is not the configuration's.
    pub fn matrices(&self, path: &str, shape: Option<[usize; 2]>) -> Result<Option<Matrices>> {
        let name = |part: &str| self.name(&format!("{path}{part}"));
        let (a, b) = (name(A), name(B));
        if !self.file.contains(&a) && !self.file.contains(&b) {
            return Ok(None);
        }
        let lora = &self.config.lora;
        let layers = Layers::new(lora)?;
        let rank = layers.rank(path);
        let shape = match shape {
            Some(shape) => shape,
            None => {
                let side = |name: &str, at: usize| {
                    self.file
                        .tensor(name)?
                        .shape
                        .get(at)
                        .copied()
                        .ok_or_else(|| Error::file(&self.file.path, format!("tensor `{name}` is no matrix")))
                };
                [side(&b, 0)?, side(&a, 1)?]
            }
        };
        let magnitude = lora.use_dora.then(|| self.file.floats(&name(MAGNITUDE), &[shape[0]])).transpose()?;
        let finite = |name: &str, shape: [usize; 2]| {
            let values = self.file.floats(name, &shape)?;
            match values.iter().all(|value| value.is_finite()) {
                true => Ok(values),
                false => Err(Error::file(&self.file.path, format!("tensor `{name}` holds NaN or infinite values"))),
            }
        };
        Ok(Some(Matrices {
            a: finite(&a, [rank, shape[1]])?,
            b: finite(&b, [shape[0], rank])?,
            shape,
            rank,
            scaling: layers.scaling(path),
            magnitude,
        }))
    }
}
