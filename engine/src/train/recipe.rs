//! Recipes: a run as a TOML file that a person can read, copy and change.

use std::path::Path;

use burn::tensor::FloatDType;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::checkpoint::CheckpointConfig;
use super::config::TrainerConfig;
use super::devices::Devices;
use super::evaluation::EvaluationConfig;
use crate::data::DataConfig;
use crate::lora::LoraConfig;
use crate::model::{Base, BaseWeights};
use crate::ops::ComputeDtype;
use crate::optim::DeviceBudget;
use crate::{Error, Result};

/// A fine-tuning run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Folder of the base model.
    pub model: String,
    /// Folder that the run writes into.
    pub output: String,
    /// Seed of the adapter's initial values, the order of the data and dropout.
    pub seed: u64,
    /// `auto`, `cuda`, `wgpu` or `cpu`.
    pub device: String,
    /// Which devices of that kind hold the model.
    pub devices: Devices,
    /// Memory that the run may take from each device, or of the host on the CPU: `"unlimited"`, or a size such as `"48GiB"`.
    pub memory_limit: DeviceBudget,
    /// What is trained on.
    pub data: DataConfig,
    /// How the base model is held.
    pub quantization: QuantizationConfig,
    /// The adapter.
    pub lora: LoraConfig,
    /// The loop.
    pub training: TrainerConfig,
    /// Evaluation while training.
    pub evaluation: EvaluationConfig,
    /// What is saved while training.
    pub checkpoints: CheckpointConfig,
    /// Questions that are answered before and after.
    pub show: ShowConfig,
}

/// How the base model's linear layers are held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizationConfig {
    /// In NF4; otherwise in f32, which is plain LoRA.
    pub load_in_4bit: bool,
    /// Whether block scales are quantized again.
    pub double_quant: bool,
    /// Elements that share a scale.
    pub block_size: usize,
    /// Type of the embedding and the head on the device.
    pub embedding_dtype: EmbeddingDtype,
    /// What the operands of products are rounded to; all else is f32.
    pub compute_dtype: ComputeDtype,
}

/// What embedding and head are held in. In 16 bits they are widened where they are used, so that all arithmetic is f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingDtype {
    /// What `config.json` says that the model's files hold them in (transformers, `dtype="auto"`), of which nothing is lost; f32 where it
    /// says nothing, and for a base that is not in 4 bits.
    #[default]
    Auto,
    /// Whatever they come in.
    F32,
    /// Half of the memory.
    Bf16,
    /// The same.
    F16,
}

impl QuantizationConfig {
    /// How the model is held.
    pub fn base(&self) -> Base {
        let linears = match self.load_in_4bit {
            true => BaseWeights::Nf4 { block_size: self.block_size, double_quant: self.double_quant },
            false => BaseWeights::Full,
        };
        let tables = match self.embedding_dtype {
            EmbeddingDtype::Auto => linears.as_stored().tables,
            EmbeddingDtype::F32 => Some(FloatDType::F32),
            EmbeddingDtype::Bf16 => Some(FloatDType::BF16),
            EmbeddingDtype::F16 => Some(FloatDType::F16),
        };
        Base { linears, tables, compute: self.compute_dtype }
    }
}

/// What a run shows of its effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShowConfig {
    /// User messages.
    pub questions: Vec<String>,
    /// Tokens after which an answer is cut.
    pub max_new_tokens: usize,
}

/// A pretraining run: every parameter of a new model, trained on plain text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainRecipe {
    /// Folder with `config.json` and `tokenizer.json`; `model.safetensors` is written there.
    pub model: String,
    /// Folder for metrics.
    pub output: String,
    /// Seed of the initial weights and the order of the data.
    pub seed: u64,
    /// `auto`, `cuda`, `wgpu` or `cpu`.
    pub device: String,
    /// Data file of `text` documents.
    pub train: String,
    /// Data file of documents held out.
    pub test: String,
    /// Tokens of a training window.
    pub length: usize,
    /// The loop.
    pub training: TrainerConfig,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: String::new(),
            output: "out".into(),
            seed: 42,
            device: "auto".into(),
            devices: Devices::default(),
            memory_limit: DeviceBudget::default(),
            data: DataConfig::default(),
            quantization: QuantizationConfig::default(),
            lora: LoraConfig::default(),
            training: TrainerConfig::default(),
            evaluation: EvaluationConfig::default(),
            checkpoints: CheckpointConfig::default(),
            show: ShowConfig::default(),
        }
    }
}

impl Default for QuantizationConfig {
    fn default() -> Self {
        Self {
            load_in_4bit: true,
            double_quant: true,
            block_size: crate::nf4::BLOCK_SIZE,
            embedding_dtype: EmbeddingDtype::default(),
            compute_dtype: ComputeDtype::default(),
        }
    }
}

impl Default for ShowConfig {
    fn default() -> Self {
        Self { questions: vec![], max_new_tokens: 64 }
    }
}

impl Default for PretrainRecipe {
    fn default() -> Self {
        Self {
            model: String::new(),
            output: "out".into(),
            seed: 42,
            device: "auto".into(),
            train: String::new(),
            test: String::new(),
            length: 256,
            training: TrainerConfig::default(),
        }
    }
}

/// Reads a recipe, with `overrides` (dotted key, value) in place of what the file says.
///
/// # Errors
/// On a file that is missing or no TOML, an unknown key (the nearest known one is named) or a value of the wrong kind.
pub fn load_recipe<R>(path: &Path, overrides: &[(String, Value)]) -> Result<R>
where
    R: Default + Serialize + DeserializeOwned,
{
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    parse_recipe(path, &text, overrides)
}

/// [`load_recipe`] from text; `path` is for messages.
///
/// # Errors
/// As [`load_recipe`].
pub fn parse_recipe<R>(path: &Path, text: &str, overrides: &[(String, Value)]) -> Result<R>
where
    R: Default + Serialize + DeserializeOwned,
{
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| Error::file(path, e))?;
    for (key, value) in overrides {
        set(&mut table, key, value.clone()).map_err(|reason| Error::key(path, key, reason))?;
    }
    let known = Table::try_from(R::default()).map_err(|e| Error::file(path, e))?;
    check_keys(path, "", &table, &known)?;
    Value::Table(table).try_into().map_err(|e| Error::file(path, e))
}

/// Reads `key=value`, the value as TOML, or as a string where it is none.
///
/// # Errors
/// When there is no `=`.
pub fn parse_override(text: &str) -> Result<(String, Value)> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Error::Invalid(format!("`{text}`: write KEY=VALUE, for example lora.r=8")))?;
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    Ok((key.trim().to_string(), parsed.unwrap_or_else(|| Value::String(value.to_string()))))
}

fn set(table: &mut Table, key: &str, value: Value) -> std::result::Result<(), String> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_string(), value);
            Ok(())
        }
        Some((section, rest)) => match table.entry(section).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => set(inner, rest, value),
            _ => Err(format!("`{section}` is not a section")),
        },
    }
}

fn check_keys(path: &Path, prefix: &str, table: &Table, known: &Table) -> Result<()> {
    for (key, value) in table {
        let full = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (known.get(key), value) {
            (None, _) => return Err(Error::key(path, &full, unknown(key, known))),
            // A table that is empty by default holds names of the user's own, such as `lora.rank_pattern`.
            (Some(Value::Table(known)), Value::Table(table)) if !known.is_empty() => {
                check_keys(path, &full, table, known)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Why a key is refused, with the nearest one that is known.
fn unknown(key: &str, known: &Table) -> String {
    let nearest = known.keys().map(|k| (strsim::jaro_winkler(key, k), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness > 0.75 => format!("unknown key; did you mean `{name}`?"),
        _ => format!("unknown key; known here are: {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str, overrides: &[&str]) -> Result<Recipe> {
        let overrides: Vec<_> = overrides.iter().map(|o| parse_override(o).unwrap()).collect();
        parse_recipe(Path::new("r.toml"), text, &overrides)
    }

    #[test]
    fn overrides_win_and_absent_keys_have_defaults() {
        let recipe = parse("model = 'm'\n[lora]\nr = 8", &["lora.r=4", "training.learning_rate=1e-3", "output=there"]);
        let recipe = recipe.unwrap();
        assert_eq!((recipe.lora.r, recipe.training.learning_rate, recipe.output.as_str()), (4, 1e-3, "there"));
        assert!(recipe.quantization.load_in_4bit);
    }

    #[test]
    fn unknown_keys_suggest_the_right_one() {
        let error = parse("[training]\nlearnin_rate = 1.0", &[]).unwrap_err().to_string();
        assert_eq!(error, "r.toml: `training.learnin_rate`: unknown key; did you mean `learning_rate`?");
        assert!(parse("", &["lora.rank=3"]).unwrap_err().to_string().contains("`lora.rank`: unknown key"));
        assert!(parse("lora = 3", &[]).is_err());
        assert!(parse("", &["seed.x=3"]).is_err());
    }
}
