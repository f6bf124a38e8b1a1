//! LoRA adapters in PEFT's folder format: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Checkpoint, encode_f32, read, replace_folder, write_atomic};
use crate::lora::{LoraBranch, LoraConfig, Targets, place};
use crate::model::{Parameter, Transformer};
use crate::ops::Ops;
use crate::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts in front of a module's path in the Hugging Face model.
const PREFIX: &str = "base_model.model.";

/// The keys of `adapter_config.json` that this engine acts on; others are PEFT's bookkeeping.
#[derive(Clone, Debug, Deserialize)]
pub struct AdapterConfig {
    /// Must be `LORA`.
    pub peft_type: String,
    /// The base model that the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: usize,
    /// Numerator of the scaling.
    pub lora_alpha: f64,
    /// Dropout of the training run.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Adapted modules.
    pub target_modules: Targets,
    /// `alpha / sqrt(r)`.
    #[serde(default)]
    pub use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, Value>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, Value>,
}

/// Reads an adapter folder's configuration.
///
/// # Errors
/// When it is missing or malformed, or asks for something that would change the result and is not supported.
pub fn adapter_config(folder: impl AsRef<Path>) -> Result<AdapterConfig> {
    let path = folder.as_ref().join(CONFIG);
    let json = std::fs::read(&path).map_err(|e| Error::file(&path, format!("{e}; an adapter folder needs it")))?;
    let config: AdapterConfig = serde_json::from_slice(&json).map_err(|e| Error::file(&path, e))?;
    let unsupported = [
        ("peft_type", config.peft_type != "LORA"),
        ("use_dora", config.use_dora),
        ("fan_in_fan_out", config.fan_in_fan_out),
        ("bias", config.bias.as_deref().is_some_and(|bias| bias != "none")),
        ("modules_to_save", config.modules_to_save.as_ref().is_some_and(|modules| !modules.is_empty())),
        ("rank_pattern", !config.rank_pattern.is_empty()),
        ("alpha_pattern", !config.alpha_pattern.is_empty()),
    ];
    match unsupported.iter().find(|(_, asked)| *asked) {
        Some((key, _)) => Err(Error::key(&path, *key, "this kind of adapter is not supported; plain LoRA is")),
        None if config.r == 0 => Err(Error::key(&path, "r", "0 is no rank")),
        None => Ok(config),
    }
}

impl AdapterConfig {
    /// The hyperparameters as a recipe holds them.
    pub fn lora(&self) -> LoraConfig {
        LoraConfig {
            r: self.r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            target_modules: self.target_modules.clone(),
            use_rslora: self.use_rslora,
        }
    }
}

/// Attaches the adapter in `folder` to `model`, in place of any that it has. The layers are those whose tensors the
/// file holds.
///
/// # Errors
/// When a file is missing or broken, or a tensor fits no layer of the model.
pub fn load_adapter<B: Ops>(
    model: &mut Transformer<B>,
    folder: impl AsRef<Path>,
    trainable: bool,
) -> Result<AdapterConfig> {
    let folder = folder.as_ref();
    let config = adapter_config(folder)?;
    let lora = config.lora();
    let path = folder.join(WEIGHTS);
    let file = Checkpoint::open_file(&path)?;
    let device = model.device();
    let mut used = 0;
    for (layer, linear) in model.linears_mut() {
        let name = |matrix: &str| format!("{PREFIX}{layer}.{matrix}.weight");
        let (a, b) = (name("lora_A"), name("lora_B"));
        if !file.contains(&a) && !file.contains(&b) {
            linear.lora = None;
            continue;
        }
        let [out, input] = linear.weight.shape();
        let parameter = |name: &str, shape: [usize; 2]| -> Result<Parameter<B>> {
            let value = Tensor::from_data(TensorData::new(file.floats(name, &shape)?, shape), &device);
            Ok(Parameter { value, trainable })
        };
        linear.lora = Some(LoraBranch {
            a: parameter(&a, [lora.r, input])?,
            b: parameter(&b, [out, lora.r])?,
            scaling: lora.scaling(),
            dropout: lora.lora_dropout,
            place: place(&layer),
        });
        used += 2;
    }
    let names = file.names();
    if used != names.len() || used == 0 {
        let known: Vec<String> = model.linears_mut().map(|(layer, _)| format!("{PREFIX}{layer}.")).collect();
        let stray = names.iter().find(|name| !known.iter().any(|prefix| name.starts_with(prefix)));
        let stray = stray.or(names.first()).copied().unwrap_or("nothing");
        let reason = format!("`{stray}` fits no linear layer of the base model; is this adapter for another model?");
        return Err(Error::file(&path, reason));
    }
    Ok(config)
}

/// Writes the model's adapter as PEFT would, all or nothing.
///
/// # Errors
/// When the model has no adapter, or the folder cannot be written; what stood there before is then untouched.
pub async fn save_adapter<B: Ops>(
    model: &mut Transformer<B>,
    config: &LoraConfig,
    base: &str,
    folder: impl AsRef<Path>,
) -> Result<()> {
    let files = adapter_files(model, config, base).await?;
    replace_folder(folder.as_ref(), |folder| {
        files.iter().try_for_each(|(name, bytes)| write_atomic(folder.join(name), bytes))
    })
}

/// The files of the model's adapter, by name, as PEFT would write them.
///
/// # Errors
/// When the model has no adapter, or the device cannot be read.
pub async fn adapter_files<B: Ops>(
    model: &mut Transformer<B>,
    config: &LoraConfig,
    base: &str,
) -> Result<[(&'static str, Vec<u8>); 2]> {
    let mut tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = HashMap::new();
    let mut modules: Vec<String> = Vec::new();
    for (layer, linear) in model.linears_mut() {
        let Some(lora) = &linear.lora else { continue };
        modules.push(layer.rsplit('.').next().unwrap_or_default().to_string());
        for (matrix, parameter) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
            let values = read(parameter.value.clone()).await?;
            let shape = parameter.value.dims().to_vec();
            tensors.insert(format!("{PREFIX}{layer}.{matrix}.weight"), (shape, encode_f32(&values)));
        }
    }
    if tensors.is_empty() {
        return Err(Error::Invalid("the model has no adapter to save".into()));
    }
    modules.sort();
    modules.dedup();
    // PEFT resolves "all-linear" to the names before it saves; consumers expect names or an expression.
    let target_modules = match &config.target_modules {
        Targets::Pattern(all) if all.eq_ignore_ascii_case("all-linear") => json!(modules),
        targets => json!(targets),
    };
    let config: BTreeMap<&str, Value> = BTreeMap::from([
        ("alpha_pattern", json!({})),
        ("base_model_name_or_path", json!(base)),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("layers_to_transform", Value::Null),
        ("lora_alpha", number(config.lora_alpha)),
        ("lora_dropout", json!(config.lora_dropout)),
        ("modules_to_save", Value::Null),
        ("peft_type", json!("LORA")),
        ("r", json!(config.r)),
        ("rank_pattern", json!({})),
        ("target_modules", target_modules),
        ("task_type", json!("CAUSAL_LM")),
        ("use_dora", json!(false)),
        ("use_rslora", json!(config.use_rslora)),
    ]);
    let failed = |e: &dyn std::fmt::Display| Error::Invalid(format!("cannot encode the adapter: {e}"));
    let text = serde_json::to_string_pretty(&config).map_err(|e| failed(&e))?;
    let views: Result<Vec<(String, TensorView)>> = tensors
        .iter()
        .map(|(name, (shape, bytes))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| failed(&e))?;
            Ok((name.clone(), view))
        })
        .collect();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let weights = safetensors::serialize(views?, Some(metadata)).map_err(|e| failed(&e))?;
    Ok([(CONFIG, text.into_bytes()), (WEIGHTS, weights)])
}

/// A whole number without a decimal point, as PEFT writes `lora_alpha`.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}
