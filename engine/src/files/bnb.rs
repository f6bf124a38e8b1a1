//! 4-bit checkpoints in the format that transformers writes and reads with bitsandbytes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Checkpoint, encode_f32, replace_folder, write_atomic};
use crate::model::ModelConfig;
use crate::nf4::{self, Absmax, NESTED_BLOCK_SIZE, NF4_TABLE, Nf4Data, dynamic_map};
use crate::{Error, Result};

/// The tensor that marks a weight as quantized, after the weight's name.
const STATE: &str = "quant_state.bitsandbytes__nf4";
/// Bytes after which a new shard begins.
const SHARD: usize = 4 << 30;

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

/// The weight `name` of a checkpoint, if it is stored in 4 bits there.
///
/// # Errors
/// When its parts are missing, of another kind than NF4, or do not fit `shape`.
pub fn nf4_weight(file: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<Option<Nf4Data>> {
    let state_name = format!("{name}.{STATE}");
    if !file.contains(&state_name) {
        return Ok(None);
    }
    let failed = |reason: String| Error::file(&file.path, format!("tensor `{state_name}`: {reason}"));
    let state: State = serde_json::from_slice(file.tensor(&state_name)?.bytes).map_err(|e| failed(e.to_string()))?;
    if state.quant_type != "nf4" {
        return Err(failed(format!("quant_type `{}` is not supported; nf4 is", state.quant_type)));
    }
    if state.shape != shape {
        return Err(failed(format!("the shape is {:?}; the configuration asks for {shape:?}", state.shape)));
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
    let packed = file.tensor(name)?.bytes.to_vec();
    let data = Nf4Data { shape, block_size: state.blocksize, packed, absmax };
    data.validate().map_err(|e| failed(e.to_string()))?;
    Ok(Some(data))
}

/// A tensor to be written: its name, dtype, shape and bytes.
type Named = (String, Dtype, Vec<usize>, Vec<u8>);

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
        (name.to_string(), Dtype::U8, vec![data.packed.len(), 1], data.packed.clone()),
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

/// Shards on their way to a folder.
struct Shards<'a> {
    folder: &'a Path,
    pending: Vec<Named>,
    bytes: usize,
    total: usize,
    weight_map: Vec<(String, usize)>,
    written: usize,
}

impl Shards<'_> {
    fn push(&mut self, tensor: (String, Dtype, Vec<usize>, Vec<u8>)) -> Result<()> {
        self.bytes += tensor.3.len();
        self.pending.push(tensor);
        if self.bytes >= SHARD { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.written += 1;
        let path = self.folder.join(format!("part-{}", self.written));
        let failed = |e: safetensors::SafeTensorError| Error::file(&path, e);
        let views: Result<Vec<_>> = self
            .pending
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?))
            })
            .collect();
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize_to_file(views?, Some(metadata), &path).map_err(failed)?;
        std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(|e| Error::file(&path, e))?;
        self.weight_map.extend(self.pending.drain(..).map(|(name, ..)| (name, self.written)));
        self.total += std::mem::take(&mut self.bytes);
        Ok(())
    }

    /// Gives the shards their final names, and an index where there are several.
    fn finish(mut self) -> Result<()> {
        self.flush()?;
        let count = self.written;
        let name = |i: usize| match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{i:05}-of-{count:05}.safetensors"),
        };
        for i in 1..=count {
            let (from, to) = (self.folder.join(format!("part-{i}")), self.folder.join(name(i)));
            std::fs::rename(&from, &to).map_err(|e| Error::file(&to, e))?;
        }
        if count == 1 {
            return Ok(());
        }
        self.weight_map.sort();
        let map: serde_json::Map<String, Value> =
            self.weight_map.into_iter().map(|(tensor, i)| (tensor, json!(name(i)))).collect();
        let index = json!({"metadata": {"total_size": self.total}, "weight_map": map});
        write_json(&self.folder.join("model.safetensors.index.json"), &index)
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    write_atomic(path, text.as_bytes())
}

/// Quantizes a model folder into another one that transformers loads as a 4-bit model: the linear layers of the decoder
/// become NF4, every other tensor is copied; `progress` gets each tensor's name.
///
/// # Errors
/// When the folder is no model that is understood, or its weights hold NaN or infinity, or `output` is there already:
/// whatever is in it may be somebody's.
pub fn quantize_folder(input: &Path, output: &Path, kind: (usize, bool), progress: &mut dyn FnMut(&str)) -> Result<()> {
    let file = Checkpoint::open(input)?;
    quantize_shards(input, std::iter::once(Ok(file)), output, kind, progress)
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
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    if output.exists() {
        return Err(Error::file(output, "is there already; name a folder that is not, or remove it"));
    }
    let config_path = input.join("config.json");
    let json = std::fs::read(&config_path).map_err(|e| Error::file(&config_path, e))?;
    let config = ModelConfig::parse(&config_path, &json)?;
    let mut raw: Value = serde_json::from_slice(&json).map_err(|e| Error::file(&config_path, e))?;
    // What is still to come: the linear layers of the decoder.
    let mut expected = BTreeMap::new();
    for layer in 0..config.layers {
        for (name, shape, _) in config.linears() {
            expected.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let Some(keys) = raw.as_object_mut() else { return Err(Error::file(&config_path, "is not a JSON object")) };
    let quantization = json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": true,
        "load_in_8bit": false,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double_quant,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head"],
    });
    keys.insert("quantization_config".into(), quantization);
    replace_folder(output, |folder| {
        let mut written = Shards { folder, pending: vec![], bytes: 0, total: 0, weight_map: vec![], written: 0 };
        for shard in shards {
            let file = shard?;
            for name in file.names() {
                progress(name);
                let tensor = file.tensor(name)?;
                if file.contains(&format!("{name}.{STATE}")) {
                    return Err(Error::file(input, "is quantized already"));
                }
                match expected.remove(name) {
                    Some(shape) => {
                        let data = nf4::quantize(&file.floats(name, &shape)?, shape, block_size, double_quant)
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
        if let Some(missing) = expected.keys().next() {
            return Err(Error::file(input, format!("tensor `{missing}` is missing; is the download complete?")));
        }
        written.finish()?;
        write_json(&folder.join("config.json"), &raw)?;
        let beside = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
        for name in beside.iter().chain(&["special_tokens_map.json"]) {
            let from = input.join(name);
            if from.exists() {
                let bytes = std::fs::read(&from).map_err(|e| Error::file(&from, e))?;
                write_atomic(folder.join(name), &bytes)?;
            }
        }
        Ok(())
    })
}
