//! LoRA adapters in PEFT's folder format on a model: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::adapter::{self, AdapterConfig, AdapterFile, CONFIG, MAGNITUDE, PREFIX, WEIGHTS};
use super::held::{self, HELD};
use super::{encode_f32, read, replace_folder, write_atomic};
use crate::lora::{Dora, LoraBranch, LoraConfig, is_saved, place, set_trainable};
use crate::model::{Parameter, Transformer, module_path, stored_shape};
use crate::ops::Ops;
use crate::{Error, Result};

/// Attaches the adapter in `folder` to `model`, in place of any that it has. The layers are those whose tensors the
/// file holds. Modules that were trained in full take the place of the base model's.
///
/// # Errors
/// When a file is missing or broken, or a tensor fits no layer of the model.
pub fn load_adapter<B: Ops>(
    model: &mut Transformer<B>,
    folder: impl AsRef<Path>,
    trainable: bool,
) -> Result<AdapterConfig> {
    let file = AdapterFile::open(folder)?;
    attach_file(model, &file, trainable)?;
    Ok(file.config)
}

/// [`load_adapter`] of one that is open.
///
/// # Errors
/// When a tensor fits no layer of the model.
pub fn attach_file<B: Ops>(model: &mut Transformer<B>, file: &AdapterFile, trainable: bool) -> Result<()> {
    let lora = file.config.lora();
    let parameter = |values: Vec<f32>, shape: [usize; 2], device: &B::Device| -> Parameter<B> {
        Parameter { value: Tensor::from_data(TensorData::new(values, shape), device), trainable }
    };
    let linears: Vec<String> = model.linears_mut().map(|(path, _)| path).collect();
    if let Some(stray) = file.layers().iter().find(|layer| !linears.contains(layer)) {
        let reason = format!("`{stray}` is no linear layer of the base model; is this adapter for another model?");
        return Err(Error::file(file.path(), reason));
    }
    set_trainable(model, &lora.modules_to_save, trainable).map_err(|e| Error::file(file.path(), e))?;
    let mut saved = read_saved(model, file, &lora)?;
    for (layer, linear) in model.linears_mut() {
        let found = file.matrices(&layer, Some(linear.weight.shape()))?;
        let device = linear.weight.device();
        linear.lora = found.map(|found| {
            let ([out, input], rank) = (found.shape, found.rank);
            LoraBranch {
                a: parameter(found.a, [rank, input], &device),
                b: parameter(found.b, [out, rank], &device),
                dora: found.magnitude.map(|values| Dora::with(parameter(values, [1, out], &device), &linear.weight)),
                scaling: found.scaling,
                dropout: lora.lora_dropout,
                place: place(&layer),
            }
        });
    }
    if !saved.is_empty() {
        *model = model.map(|path, old| match saved.remove(path) {
            Some(values) => parameter(values, old.value.dims(), &old.value.device()),
            None => old.clone(),
        });
    }
    Ok(())
}

/// The values of the modules that were trained in full, by path.
fn read_saved<B: Ops>(
    model: &Transformer<B>,
    file: &AdapterFile,
    lora: &LoraConfig,
) -> Result<HashMap<String, Vec<f32>>> {
    let mut shapes = HashMap::new();
    model.visit(|path, parameter| {
        if is_saved(path, &lora.modules_to_save) && !path.contains(".lora_") {
            shapes.insert(path.to_string(), stored_shape(path, parameter.value.dims()));
        }
    });
    if let Some(stray) = file.saved().iter().find(|path| !shapes.contains_key(*path)) {
        let reason = format!("`{stray}` is no module of the base model; is this adapter for another model?");
        return Err(Error::file(file.path(), reason));
    }
    let read = |(path, shape): (String, Vec<usize>)| {
        let values = file.saved_values(&path, &shape)?;
        Ok((path, values))
    };
    shapes.into_iter().map(read).collect()
}

/// Writes the model's adapter as PEFT would, and how its base is held, all or nothing.
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
    write_files(folder.as_ref(), &files)
}

/// The files of an adapter, by name.
pub type AdapterFiles = Vec<(&'static str, Vec<u8>)>;

/// The files of the model's adapter as PEFT would write them, and one that says how its base is held.
///
/// # Errors
/// When the model has no adapter, or the device cannot be read.
pub async fn adapter_files<B: Ops>(
    model: &mut Transformer<B>,
    config: &LoraConfig,
    base: &str,
) -> Result<AdapterFiles> {
    let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
    let mut modules: Vec<String> = Vec::new();
    for (layer, linear) in model.linears_mut() {
        let Some(lora) = &linear.lora else { continue };
        modules.push(layer.rsplit('.').next().unwrap_or_default().to_string());
        let magnitude = lora.dora.as_ref().map(|dora| (MAGNITUDE, &dora.magnitude));
        for (part, parameter) in [(adapter::A, &lora.a), (adapter::B, &lora.b)].into_iter().chain(magnitude) {
            let dims = parameter.value.dims();
            let shape = if part == MAGNITUDE { vec![dims[1]] } else { dims.to_vec() };
            let values = read(parameter.value.clone()).await?;
            tensors.insert(format!("{layer}{part}"), Stored::new(shape, &values));
        }
    }
    if tensors.is_empty() {
        return Err(Error::Invalid("the model has no adapter to save".into()));
    }
    let mut saved: Vec<(String, Parameter<B>)> = Vec::new();
    model.visit(|path, parameter| {
        if is_saved(path, &config.modules_to_save) && !path.contains(".lora_") {
            saved.push((path.to_string(), parameter.clone()));
        }
    });
    for (path, parameter) in saved {
        let shape = stored_shape(&path, parameter.value.dims());
        let values = read(parameter.value).await?;
        tensors.insert(path, Stored::new(shape, &values));
    }
    let mut files = encode(base, config, (model.config.prefix, modules), &tensors)?;
    files.push((HELD, held::encode(model.base_weights)?));
    Ok(files)
}

/// A tensor to be written, encoded.
pub(super) struct Stored {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    pub(super) fn new(shape: Vec<usize>, values: &[f32]) -> Self {
        Self { shape, bytes: encode_f32(values) }
    }
}

/// Writes an adapter folder: tensors by their paths in the text model. `modules` are the base's
/// [`prefix`](crate::model::ModelConfig::prefix) and the last names of the adapted layers.
///
/// # Errors
/// When the folder cannot be written; what stood there before is then untouched.
pub(super) fn write_adapter(
    folder: &Path,
    base: &str,
    config: &LoraConfig,
    modules: (&str, Vec<String>),
    tensors: &BTreeMap<String, Stored>,
) -> Result<()> {
    write_files(folder, &encode(base, config, modules, tensors)?)
}

fn write_files(folder: &Path, files: &AdapterFiles) -> Result<()> {
    replace_folder(folder, |folder| files.iter().try_for_each(|(name, bytes)| write_atomic(folder.join(name), bytes)))
}

fn encode(
    base: &str,
    config: &LoraConfig,
    (prefix, mut modules): (&str, Vec<String>),
    tensors: &BTreeMap<String, Stored>,
) -> Result<AdapterFiles> {
    modules.sort();
    modules.dedup();
    // PEFT resolves "all-linear" to the names before it saves; consumers expect names or an expression.
    let target_modules = match &config.target_modules {
        _ if !prefix.is_empty() => json!(expression(prefix, &config.layers_to_transform, &modules)),
        all if all.is_all() => json!(modules),
        targets => json!(targets),
    };
    // PEFT takes a list of layers beside names only; an expression says them itself.
    let (layers_pattern, layers_to_transform) = match prefix {
        "" => (json!(config.layers_pattern), json!(config.layers_to_transform)),
        _ => (Value::Null, Value::Null),
    };
    // PEFT writes null for a list that is not used.
    let list = |values: Value| if values.as_array().is_some_and(Vec::is_empty) { Value::Null } else { values };
    let alphas = config.alpha_pattern.iter().map(|(k, v)| (module_path(prefix, k), number(*v)));
    let alphas: BTreeMap<String, Value> = alphas.collect();
    let ranks: BTreeMap<String, usize> =
        config.rank_pattern.iter().map(|(k, v)| (module_path(prefix, k), *v)).collect();
    let keys: BTreeMap<&str, Value> = BTreeMap::from([
        ("alpha_pattern", json!(alphas)),
        ("base_model_name_or_path", json!(base)),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("layers_pattern", list(layers_pattern)),
        ("layers_to_transform", list(layers_to_transform)),
        ("lora_alpha", number(config.lora_alpha)),
        ("lora_dropout", json!(config.lora_dropout)),
        ("modules_to_save", list(json!(config.modules_to_save))),
        ("peft_type", json!("LORA")),
        ("r", json!(config.r)),
        ("rank_pattern", json!(ranks)),
        ("target_modules", target_modules),
        ("task_type", json!("CAUSAL_LM")),
        ("use_dora", json!(config.use_dora)),
        ("use_rslora", json!(config.use_rslora)),
    ]);
    let failed = |e: &dyn std::fmt::Display| Error::Invalid(format!("cannot encode the adapter: {e}"));
    let text = serde_json::to_string_pretty(&keys).map_err(|e| failed(&e))?;
    let views: Result<Vec<(String, TensorView)>> = tensors
        .iter()
        .map(|(path, tensor)| {
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), &tensor.bytes).map_err(|e| failed(&e))?;
            Ok((format!("{PREFIX}{}", module_path(prefix, path)), view))
        })
        .collect();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let weights = safetensors::serialize(views?, Some(metadata)).map_err(|e| failed(&e))?;
    Ok(vec![(CONFIG, text.into_bytes()), (WEIGHTS, weights)])
}

/// The adapted layers of the text part of a multi-modal model, whose other parts have layers of the same names.
fn expression(prefix: &str, layers: &[usize], modules: &[String]) -> String {
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    let layers = if layers.is_empty() { String::new() } else { format!(r"layers\.({})\.", layers.join("|")) };
    format!(r"model\.{}{layers}.*\.({})", prefix.replace('.', r"\."), modules.join("|"))
}

/// A whole number without a decimal point, as PEFT writes `lora_alpha`.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}
