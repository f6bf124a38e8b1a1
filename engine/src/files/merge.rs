//! An adapter worked into its base: a model folder in 16 or 32 bits, written one tensor at a time, and how far each weight
//! is from the one that was trained.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::bnb::{is_quantized, quantized_part};
use super::json::{read_json, write_json};
use super::shards::{Named, SHARD, Shards, copy_beside, must_be_new, read_config};
use super::{AdapterFile, Checkpoint, Matrices, encode_f32, replace_folder, stored_weight};
use crate::lab::relative_error;
use crate::lora::is_saved;
use crate::model::{BaseWeights, ModelConfig};
use crate::nf4;
use crate::{Error, Result};

/// Which weights the adapter is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeBase {
    /// The weights that it was trained on, decoded where they were in 4 bits: the merged model is the trained one.
    Dequantized,
    /// The weights before quantization: nearer to the original model, and not quite what was trained.
    Original,
}

/// Element type of the merged weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeDtype {
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl MergeDtype {
    /// The name that `config.json` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    /// A value as it reads back.
    fn round(self, value: f32) -> f32 {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_f32(),
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::F32 => value,
        }
    }

    /// Little-endian bytes; the values must have been rounded.
    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::F32 => encode_f32(values),
        }
    }
}

/// How to merge.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    /// Which weights the adapter is added to.
    pub base: MergeBase,
    /// Element type of the result.
    pub dtype: MergeDtype,
    /// How the base was held in training, where it is not in 4 bits on the disk.
    pub trained_on: BaseWeights,
    /// Bytes after which a new shard begins; 0 for the usual size.
    pub shard: usize,
}

/// How far a merged weight is from the one that was trained: the base's as it was held then, with its adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightDrift {
    /// Path of the linear layer.
    pub layer: String,
    /// `‖merged - trained‖ / ‖trained‖`, Frobenius norms. For activations without direction it is also that of the outputs.
    pub error: f64,
    /// Whether the layer has an adapter.
    pub adapted: bool,
}

/// Merges the adapter in the folder `adapter` into the model in `model` and writes the result to `output`; `progress` gets
/// each tensor's name. Nothing but one shard and a few copies of one weight is in memory.
///
/// ```no_run
/// use std::path::Path;
///
/// use halfbyte::files::{MergeBase, MergeDtype, MergeOptions, adapter_base, merge_folder};
/// use halfbyte::model::BaseWeights;
///
/// # fn main() -> halfbyte::Result<()> {
/// let [model, adapter, output] = ["models/wordnet-4m", "out/kinds/adapter", "merged"].map(Path::new);
/// let trained_on = adapter_base(adapter)?.unwrap_or(BaseWeights::Nf4 { block_size: 64, double_quant: true });
/// let options = MergeOptions { base: MergeBase::Dequantized, dtype: MergeDtype::Bf16, trained_on, shard: 0 };
/// for drift in merge_folder(model, adapter, output, &options, &mut |_| {})? {
///     println!("{}: {:.1e} from what was trained", drift.layer, drift.error);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When a folder is broken, the adapter is for another model, a value does not fit the element type, the original is asked
/// for and `model` holds 4-bit weights, or `output` is there already.
pub fn merge_folder(
    model: &Path,
    adapter: &Path,
    output: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<WeightDrift>> {
    must_be_new(output)?;
    let (file, adapter) = (Checkpoint::open(model)?, AdapterFile::open(adapter)?);
    let mut config = read_config(model)?;
    let quantized = is_quantized(&file);
    if quantized && options.base == MergeBase::Original {
        let reason = "holds 4-bit weights, not the original ones; name the folder that they were quantized from";
        return Err(Error::file(model, reason));
    }
    let config_path = model.join("config.json");
    let parsed = ModelConfig::parse(&config_path, &read_json(&config_path)?)?;
    // What each path of the text model is called; the other parts of a multi-modal one are copied.
    let names: BTreeMap<String, &str> =
        file.names().into_iter().filter_map(|name| Some((parsed.path_of(name)?, name))).collect();
    // A tied model's file may hold a head all the same, which no loader reads.
    let tied = parsed.tied || !names.contains_key(HEAD);
    let saved = adapter.saved();
    let merge = Merge { file: &file, adapter: &adapter, quantized, options };
    let linear = |path: &str| names.get(path).is_some_and(|name| merge.is_linear(path, name).unwrap_or(false));
    let mut weights = adapter.layers().into_iter().map(|layer| format!("{layer}.weight"));
    if let Some(stray) = weights.find(|path| !linear(path)) {
        let reason = format!("`{stray}` is no linear layer of the decoder of {}", model.display());
        return Err(Error::file(adapter.path(), reason));
    }
    if let Some(stray) = saved.iter().find(|path| !(names.contains_key(*path) || tied && *path == HEAD)) {
        let reason = format!("`{stray}` is not in {}; is this adapter for another model?", model.display());
        return Err(Error::file(adapter.path(), reason));
    }
    let trained = |path: &&str| is_saved(path, &adapter.config.lora().modules_to_save);
    let of_model = names.keys().map(String::as_str).chain(tied.then_some(HEAD));
    if let Some(missing) = of_model.filter(trained).find(|path| !saved.iter().any(|saved| saved == path)) {
        let reason = format!("tensor `{missing}` is missing, which modules_to_save names");
        return Err(Error::file(adapter.path(), reason));
    }
    let mut drift = Vec::new();
    replace_folder(output, |folder| {
        let mut shards = Shards::new(folder, if options.shard == 0 { SHARD } else { options.shard });
        for name in file.names().into_iter().filter(|name| quantized_part(name).is_none()) {
            let path = parsed.path_of(name);
            let path = path.as_deref().unwrap_or_default();
            progress(name);
            match path.strip_suffix(".weight") {
                _ if tied && path == HEAD => {}
                _ if saved.iter().any(|saved| saved == path) => shards.push(merge.saved(path, name, name)?)?,
                Some(layer) if merge.is_linear(path, name)? => {
                    let (tensor, of_layer) = merge.linear(layer, name)?;
                    shards.push(tensor)?;
                    drift.push(of_layer);
                }
                _ => shards.push(merge.copy(name)?)?,
            }
        }
        // A head or embedding that was trained on its own is no longer the other one.
        let untied = tied && [HEAD, EMBEDDING].iter().any(|path| saved.iter().any(|saved| saved == path));
        if untied {
            let embedding = names.get(EMBEDDING).copied().unwrap_or(EMBEDDING);
            // Of the two ways of naming, the embedding's.
            let [older, newer] = parsed.names_in_files(HEAD);
            let head = if embedding.starts_with(parsed.prefix) { older } else { newer };
            shards.push(match saved.iter().any(|saved| saved == HEAD) {
                true => merge.saved(HEAD, &head, embedding)?,
                false => {
                    let (_, dtype, shape, bytes) = merge.copy(embedding)?;
                    (head, dtype, shape, bytes)
                }
            })?;
        }
        shards.finish()?;
        config.shift_remove("quantization_config");
        describe(&mut config, options.dtype, untied);
        write_json(&folder.join("config.json"), &config)?;
        copy_beside(model, folder)
    })?;
    Ok(drift)
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = crate::model::EMBEDDING;

/// Says in `config.json`, and in the part of it that is the text model's, what was written.
fn describe(config: &mut Map<String, Value>, dtype: MergeDtype, untied: bool) {
    config.shift_remove("dtype");
    config.insert("torch_dtype".into(), json!(dtype.name()));
    if untied {
        config.insert("tie_word_embeddings".into(), json!(false));
    }
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        describe(text, dtype, untied);
    }
}

struct Merge<'a> {
    file: &'a Checkpoint,
    adapter: &'a AdapterFile,
    quantized: bool,
    options: &'a MergeOptions,
}

impl Merge<'_> {
    /// Whether the tensor `name`, at `path` of the text model, is the weight of a linear layer of the decoder: a matrix there
    /// that is no norm.
    fn is_linear(&self, path: &str, name: &str) -> Result<bool> {
        let matrix = self.file.tensor(name)?.shape.len() == 2;
        Ok(matrix && path.starts_with("model.layers.") && !path.contains("norm"))
    }

    /// A tensor for the shards, every value of which fits its type.
    fn encode(&self, name: &str, shape: Vec<usize>, mut values: Vec<f32>) -> Result<Named> {
        let dtype = self.options.dtype;
        values.iter_mut().for_each(|value| *value = dtype.round(*value));
        match values.iter().all(|value| value.is_finite()) {
            true => Ok((name.to_string(), dtype.dtype(), shape, dtype.encode(&values))),
            false => {
                let reason = format!("tensor `{name}` has values that do not fit {}; use bf16 or f32", dtype.name());
                Err(Error::file(&self.file.path, reason))
            }
        }
    }

    /// A tensor of the base in the new type; one of whole numbers stays as it is.
    fn copy(&self, name: &str) -> Result<Named> {
        let tensor = self.file.tensor(name)?;
        match tensor.to_f32() {
            Some(values) => self.encode(name, tensor.shape.to_vec(), values),
            None => Ok((name.to_string(), tensor.dtype, tensor.shape.to_vec(), tensor.bytes.to_vec())),
        }
    }

    /// The parameter at `path`, which was trained in full, under `name` and shaped like a tensor of the base.
    fn saved(&self, path: &str, name: &str, like: &str) -> Result<Named> {
        let shape = self.file.tensor(like)?.shape.to_vec();
        let values = self.adapter.saved_values(path, &shape)?;
        self.encode(name, shape, values)
    }

    /// A linear layer's weight with its adapter, and how far it is from the one that was trained.
    fn linear(&self, layer: &str, name: &str) -> Result<(Named, WeightDrift)> {
        let original = || -> Result<(Vec<f32>, [usize; 2])> {
            let shape = self.file.tensor(name)?.shape;
            Ok((self.file.floats(name, shape)?, [shape[0], shape[1]]))
        };
        let (mut trained, shape) = match (stored_weight(self.file, name)?, self.options.trained_on) {
            (Some(data), _) => (data.dequantize(), data.shape),
            (None, BaseWeights::Nf4 { block_size, double_quant }) if !self.quantized => {
                let (values, shape) = original()?;
                let data = nf4::quantize(&values, shape, block_size, double_quant)
                    .map_err(|e| Error::file(&self.file.path, format!("tensor `{name}`: {e}")))?;
                (data.dequantize(), shape)
            }
            (None, _) => original()?,
        };
        if shape.contains(&0) {
            return Err(Error::file(&self.file.path, format!("tensor `{name}` of shape {shape:?} is empty")));
        }
        let matrices = self.adapter.matrices(layer, Some(shape))?;
        let add = |values: &mut [f32]| {
            if let Some(matrices) = &matrices {
                add(values, matrices);
            }
        };
        add(&mut trained);
        let mut merged = match self.options.base {
            MergeBase::Dequantized => trained.clone(),
            MergeBase::Original => {
                let (mut values, _) = original()?;
                add(&mut values);
                values
            }
        };
        let dtype = self.options.dtype;
        merged.iter_mut().for_each(|value| *value = dtype.round(*value));
        let drift = WeightDrift {
            layer: layer.to_string(),
            error: relative_error(&merged, &trained),
            adapted: matrices.is_some(),
        };
        Ok((self.encode(name, shape.to_vec(), merged)?, drift))
    }
}

/// `W + s B A`, its rows brought to the trained lengths for DoRA, in place.
fn add(weight: &mut [f32], matrices: &Matrices) {
    let Matrices { a, b, shape: [_, input], rank, scaling, magnitude } = matrices;
    let row = |(i, row): (usize, &mut [f32])| {
        for (b, a) in b[i * rank..(i + 1) * rank].iter().zip(a.chunks_exact(*input)) {
            let factor = (scaling * f64::from(*b)) as f32;
            row.iter_mut().zip(a).for_each(|(value, a)| *value += factor * a);
        }
        if let Some(lengths) = magnitude {
            let length = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            let factor = (f64::from(lengths[i]) / length.max(1e-15)) as f32;
            row.iter_mut().for_each(|value| *value *= factor);
        }
    };
    #[cfg(feature = "cpu")]
    {
        use rayon::prelude::*;
        weight.par_chunks_mut(*input).enumerate().for_each(row);
    }
    #[cfg(not(feature = "cpu"))]
    weight.chunks_mut(*input).enumerate().for_each(row);
}
