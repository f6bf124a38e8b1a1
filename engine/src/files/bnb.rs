//! 4-bit checkpoints in the format that transformers writes and reads with bitsandbytes.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::json::{read_json, write_json};
use super::shards::{Named, SHARD, Shards, copy_beside, must_be_new, read_config};
use super::{Checkpoint, encode_f32, quantized, replace_folder};
use crate::model::ModelConfig;
use crate::nf4::{Absmax, NESTED_BLOCK_SIZE, NF4_TABLE, Nf4Data, dynamic_map};
use crate::{Error, Result};

/// The tensor that marks a weight as quantized, after the weight's name.
const STATE: &str = "quant_state.bitsandbytes__nf4";
/// The same for bitsandbytes' other 4-bit type.
const FP4_STATE: &str = "quant_state.bitsandbytes__fp4";

/// The module that transformers leaves as it is.
const HEAD: &str = "lm_head";

/// The JSON inside the quantization state.
#[derive(Serialize, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f32>,
}

/// Whether a checkpoint holds 4-bit weights. What is not in 4 bits there was left out on purpose, by
/// `llm_int8_skip_modules`.
pub(crate) fn is_quantized(file: &Checkpoint) -> bool {
    file.names().iter().any(|name| name.ends_with(STATE) || name.ends_with(FP4_STATE))
}

/// The weight that a tensor is a part of, if it is one of a weight in 4 bits other than the codes.
pub(crate) fn quantized_part(name: &str) -> Option<&str> {
    let parts = ["absmax", "quant_map", "nested_absmax", "nested_quant_map", STATE, FP4_STATE];
    parts.iter().find_map(|part| name.strip_suffix(part)?.strip_suffix('.')).filter(|name| name.ends_with("weight"))
}

/// The weight `name` of a checkpoint, if it is stored in 4 bits there.
///
/// # Errors
/// When its parts are missing, of another kind than NF4, or do not fit `shape`.
pub fn nf4_weight(file: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<Option<Nf4Data>> {
    match stored_weight(file, name)? {
        Some(data) if data.shape != shape => {
            let found = data.shape;
            let reason = format!("tensor `{name}`: the shape is {found:?}; the configuration asks for {shape:?}");
            Err(Error::file(&file.path, reason))
        }
        data => Ok(data),
    }
}

/// [`nf4_weight`] of whatever shape it says that it has.
///
/// # Errors
/// When its parts are missing, of another kind than NF4, or do not fit each other.
pub fn stored_weight(file: &Checkpoint, name: &str) -> Result<Option<Nf4Data>> {
    let state_name = format!("{name}.{STATE}");
    if file.contains(&format!("{name}.{FP4_STATE}")) {
        let reason = "is in fp4, which is not supported; quantize the original with bnb_4bit_quant_type = nf4";
        return Err(Error::file(&file.path, format!("tensor `{name}` {reason}")));
    }
    if !file.contains(&state_name) {
        return Ok(None);
    }
    let failed = |reason: String| Error::file(&file.path, format!("tensor `{state_name}`: {reason}"));
    let state: State = serde_json::from_slice(&file.tensor(&state_name)?.bytes).map_err(|e| failed(e.to_string()))?;
    if state.quant_type != "nf4" {
        return Err(failed(format!("quant_type `{}` is not supported; nf4 is", state.quant_type)));
    }
    let absmax = file.tensor(&format!("{name}.absmax"))?;
    let absmax = match absmax.to_f32() {
        Some(values) => Absmax::Plain(values),
        None => {
            let nested = format!("{name}.nested_absmax");
            let blocks = absmax.bytes.len().div_ceil(NESTED_BLOCK_SIZE);
            if state.nested_blocksize != Some(NESTED_BLOCK_SIZE) {
                return Err(failed(format!("nested_blocksize must be {NESTED_BLOCK_SIZE}")));
            }
            Absmax::Double {
                codes: absmax.bytes.to_vec(),
                nested: file.floats(&nested, &[blocks])?,
                offset: state.nested_offset.ok_or_else(|| failed("nested_offset is missing".into()))?,
            }
        }
    };
    for (part, expected) in [("quant_map", &NF4_TABLE[..]), ("nested_quant_map", &dynamic_map()[..])] {
        let part = format!("{name}.{part}");
        if file.contains(&part) && file.floats(&part, &[expected.len()])? != expected {
            return Err(failed(format!(
                "`{part}` is not the map of NF4 that bitsandbytes writes; nothing else is supported"
            )));
        }
    }
    // The bytes are the same whatever bnb_4bit_quant_storage calls them.
    let packed = file.shared(name, file.tensor(name)?)?;
    let data = Nf4Data { shape: state.shape, block_size: state.blocksize, packed, absmax };
    data.validate().map_err(|e| failed(e.to_string()))?;
    Ok(Some(data))
}

/// The tensors that a quantized weight is stored as.
fn encode(name: &str, data: &Nf4Data, dtype: &str) -> Result<Vec<Named>> {
    let mut state = State {
        quant_type: "nf4".into(),
        blocksize: data.block_size,
        dtype: dtype.into(),
        shape: data.shape,
        nested_blocksize: None,
        nested_dtype: None,
        nested_offset: None,
    };
    let part = |suffix: &str| format!("{name}.{suffix}");
    let mut tensors = vec![
        (name.to_string(), Dtype::U8, vec![data.packed.len(), 1], data.packed.to_vec()),
        (part("quant_map"), Dtype::F32, vec![16], encode_f32(&NF4_TABLE)),
    ];
    match &data.absmax {
        Absmax::Plain(values) => tensors.push((part("absmax"), Dtype::F32, vec![values.len()], encode_f32(values))),
        Absmax::Double { codes, nested, offset } => {
            state.nested_blocksize = Some(NESTED_BLOCK_SIZE);
            state.nested_dtype = Some("float32".into());
            state.nested_offset = Some(*offset);
            tensors.push((part("absmax"), Dtype::U8, vec![codes.len()], codes.clone()));
            tensors.push((part("nested_absmax"), Dtype::F32, vec![nested.len()], encode_f32(nested)));
            tensors.push((part("nested_quant_map"), Dtype::F32, vec![256], encode_f32(dynamic_map())));
        }
    }
    let json = serde_json::to_vec(&state).map_err(|e| Error::Invalid(format!("{name}: {e}")))?;
    tensors.push((part(STATE), Dtype::U8, vec![json.len()], json));
    Ok(tensors)
}

/// Whether transformers leaves the module at `path` alone for one of these names: its own last name, its whole path, or a
/// name followed by `.` somewhere in the path (`_replace_with_bnb_linear`).
fn is_skipped(path: &str, skip: &[&str]) -> bool {
    let last = path.rsplit('.').next().unwrap_or_default();
    skip.iter().any(|name| *name == last || *name == path || path.contains(&format!("{name}.")))
}

/// Quantizes a model folder into another one that transformers loads as a 4-bit model: the linear layers of the decoder
/// become NF4, but for the modules to `skip`; every other tensor is copied; `progress` gets each tensor's name.
///
/// # Errors
/// When the folder is no model that is understood, or its weights hold NaN or infinity, a name to skip is not in it, or
/// `output` is there already: whatever is in it may be somebody's.
pub fn quantize_folder(
    input: &Path,
    output: &Path,
    (block_size, double_quant): (usize, bool),
    skip: &[String],
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let file = Checkpoint::open(input)?;
    quantize_shards(input, std::iter::once(Ok(file)), output, (block_size, double_quant), skip, progress)
}

/// [`quantize_folder`] for weights that come shard by shard and are let go of one after the other; `input` holds
/// `config.json` and the files of the tokenizer.
///
/// # Errors
/// As [`quantize_folder`], and those of `shards`; `output` is then not there.
pub fn quantize_shards(
    input: &Path,
    shards: impl Iterator<Item = Result<Checkpoint>>,
    output: &Path,
    (block_size, double_quant): (usize, bool),
    skip: &[String],
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    must_be_new(output)?;
    let config_path = input.join("config.json");
    let config = ModelConfig::parse(&config_path, &read_json(&config_path)?)?;
    if !config.prefix.is_empty() {
        let reason =
            "a multi-modal model is not written in 4 bits; train on the folder as it is, it is quantized on its way";
        return Err(Error::file(&config_path, reason));
    }
    let mut keys = read_config(input)?;
    // What is still to come: the linear layers of the decoder.
    let mut shapes = BTreeMap::new();
    for layer in 0..config.layers {
        for (name, shape, _) in config.linears() {
            shapes.insert(format!("model.layers.{layer}.{name}"), shape);
        }
    }
    // The head is never quantized, and a tied one has no weights of its own: to leave it as it is asks for nothing.
    let skip: Vec<&str> = skip.iter().map(String::as_str).filter(|name| *name != HEAD).collect();
    if let Some(name) = skip.iter().find(|name| !shapes.keys().any(|path| is_skipped(path, &[name]))) {
        return Err(Error::Invalid(format!("skip: `{name}` is no linear layer of {}", input.display())));
    }
    shapes.retain(|path, _| !is_skipped(path, &skip));
    let skipped = [&[HEAD], skip.as_slice()].concat();
    let quantization = json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": true,
        "load_in_8bit": false,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double_quant,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": skipped,
    });
    keys.insert("quantization_config".into(), quantization);
    replace_folder(output, |folder| {
        let mut written = Shards::new(folder, SHARD);
        for shard in shards {
            let file = shard?;
            if is_quantized(&file) {
                return Err(Error::file(input, "is quantized already"));
            }
            for name in file.names() {
                progress(name);
                let tensor = file.tensor(name)?;
                match name.strip_suffix(".weight").and_then(|path| shapes.remove(path)) {
                    Some(shape) => {
                        let data = quantized(&file.data(name, &shape)?, shape, block_size, double_quant)
                            .map_err(|e| Error::file(input, format!("tensor `{name}`: {e}")))?;
                        let dtype = match tensor.dtype {
                            Dtype::F16 => "float16",
                            Dtype::F32 => "float32",
                            _ => "bfloat16",
                        };
                        for part in encode(name, &data, dtype)? {
                            written.push(part)?;
                        }
                    }
                    None => written.push((name.into(), tensor.dtype, tensor.shape.to_vec(), tensor.bytes.to_vec()))?,
                }
            }
        }
        if let Some(missing) = shapes.keys().next() {
            return Err(Error::file(input, format!("tensor `{missing}.weight` is missing; is the download complete?")));
        }
        written.finish()?;
        write_json(&folder.join("config.json"), &keys)?;
        copy_beside(input, folder)
    })
}
