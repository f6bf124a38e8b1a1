//! An adapter as the programs that serve it read it, each of which ignores a part of PEFT's configuration.
//!
//! vLLM knows `r`, `lora_alpha` and `use_rslora`; SGLang and llama.cpp scale by `lora_alpha / r`; none of them knows the
//! patterns. What one would ignore is worked into the matrices, so that the result is the same, or is refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::adapter::{A, B};
use super::gguf::{self, Field, Matrix};
use super::json::read_json;
use super::peft::{Stored, write_adapter};
use super::shards::must_be_new;
use super::{AdapterFile, Matrices, replace_folder, write_atomic};
use crate::lora::{LoraConfig, Targets};
use crate::model::{ModelConfig, in_layer};
use crate::{Error, Result};

/// Who is to read the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumer {
    /// vLLM: PEFT's folder.
    Vllm,
    /// SGLang: PEFT's folder.
    Sglang,
    /// llama.cpp: `adapter.gguf`.
    LlamaCpp,
    /// Ollama: `adapter.gguf` and a `Modelfile`.
    Ollama,
}

impl Consumer {
    fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::LlamaCpp => "llama.cpp",
            Self::Ollama => "Ollama",
        }
    }
}

/// Rewrites the adapter in `folder` for `consumer` into `output`, and says in sentences what was changed. `base` is the
/// folder of the base model, whose `config.json` a GGUF file follows; without it the adapter's own record of it is taken.
///
/// ```no_run
/// use std::path::Path;
///
/// use halfbyte::files::{Consumer, export_adapter};
///
/// # fn main() -> halfbyte::Result<()> {
/// for change in export_adapter(Path::new("adapter"), Path::new("for-vllm"), Consumer::Vllm, None)? {
///     println!("{change}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When the adapter is broken, or of a kind that the consumer cannot serve, or `output` is there already.
pub fn export_adapter(folder: &Path, output: &Path, consumer: Consumer, base: Option<&Path>) -> Result<Vec<String>> {
    must_be_new(output)?;
    let file = AdapterFile::open(folder)?;
    let lora = file.config.lora();
    let refused = [("use_dora", lora.use_dora), ("modules_to_save", !lora.modules_to_save.is_empty())];
    if let Some((key, _)) = refused.iter().find(|(_, used)| *used) {
        let reason =
            format!("{} does not serve such an adapter; merge it: halfbyte merge MODEL ADAPTER OUT", consumer.name());
        return Err(Error::key(folder.join("adapter_config.json"), *key, reason));
    }
    let recorded = file.config.base_model_name_or_path.clone().unwrap_or_default();
    let base = base.map_or(recorded, |base| base.display().to_string());
    let mut layers = Vec::new();
    for path in file.layers() {
        match file.matrices(&path, None)? {
            Some(matrices) => layers.push((path, matrices)),
            None => return Err(Error::file(file.path(), format!("`{path}` has a magnitude and no matrices"))),
        }
    }
    if Path::new(&base).join("config.json").exists() {
        fits(&layers, &ModelConfig::from_folder(Path::new(&base))?, &file, &base)?;
    }
    // Where all layers have one scale it is the adapter's; else each layer's is worked into its B.
    let scalings = layers.iter().map(|(_, matrices)| matrices.scaling);
    let common = scalings.clone().next().filter(|first| scalings.clone().all(|other| other == *first));
    // A scale of zero cannot be divided by, and is read as none at all by some.
    let first = layers.iter().map(|(_, matrices)| matrices.scaling).find(|scaling| *scaling != 0.0);
    let Some(first) = first else {
        return Err(Error::file(file.path(), "lora_alpha is 0 in every layer: the adapter does nothing"));
    };
    let scaling = common.unwrap_or(if lora.scaling() != 0.0 { lora.scaling() } else { first });
    let mut notes = Vec::new();
    if common.is_none() {
        for (_, matrices) in &mut layers {
            let ratio = (matrices.scaling / scaling) as f32;
            matrices.b.iter_mut().for_each(|value| *value *= ratio);
            matrices.scaling = scaling;
        }
        notes.push(format!("scales that differ between layers are now in lora_B; all are scaled by {scaling}"));
    }
    match consumer {
        Consumer::Vllm | Consumer::Sglang => {
            let prefix = file.prefix();
            uniform(&lora, consumer, scaling, layers, &mut notes, |config, names, tensors| {
                write_adapter(output, &base, config, (prefix, names), tensors)
            })?;
        }
        Consumer::LlamaCpp | Consumer::Ollama => {
            let bytes = adapter_gguf(Path::new(&base), &lora, scaling, layers, &mut notes)?;
            replace_folder(output, |folder| {
                write_atomic(folder.join("adapter.gguf"), &bytes)?;
                if consumer == Consumer::Ollama {
                    // Ollama reads paths from where the Modelfile lies, and takes the template from the base.
                    let from = std::fs::canonicalize(&base).map_or(base.clone(), |path| path.display().to_string());
                    let text = format!("FROM {from}\nADAPTER ./adapter.gguf\n");
                    write_atomic(folder.join("Modelfile"), text.as_bytes())?;
                }
                Ok(())
            })?;
        }
    }
    Ok(notes)
}

/// Whether the layers are the base's.
fn fits(layers: &[(String, Matrices)], config: &ModelConfig, file: &AdapterFile, base: &str) -> Result<()> {
    let known = config.linears();
    let fits = |(path, matrices): &&(String, Matrices)| {
        let Some((index, name)) = in_layer(path) else { return false };
        index < config.layer_kinds.len()
            && known.iter().any(|(known, shape, _)| *known == name && *shape == matrices.shape)
    };
    match layers.iter().find(|layer| !fits(layer)) {
        None => Ok(()),
        Some((path, Matrices { shape, .. })) => {
            let reason =
                format!("{base} has no layer `{path}` of the shape {shape:?}; is this adapter for another model?");
            Err(Error::file(file.path(), reason))
        }
    }
}

/// How much larger an adapter may become where one rank is that of the largest; beyond, its ranks are no one's intent.
const GROWTH: usize = 64;

/// One rank and one scale for all layers, handed to `write` with the layers' last names and the tensors.
fn uniform(
    lora: &LoraConfig,
    consumer: Consumer,
    scaling: f64,
    layers: Vec<(String, Matrices)>,
    notes: &mut Vec<String>,
    write: impl FnOnce(&LoraConfig, Vec<String>, &BTreeMap<String, Stored>) -> Result<()>,
) -> Result<()> {
    let rank = layers.iter().map(|(_, matrices)| matrices.rank).max().unwrap_or(lora.r);
    let padded = layers.iter().filter(|(_, matrices)| matrices.rank < rank).count();
    if padded > 0 {
        notes.push(format!("{padded} layers of a lower rank are filled up with zeros to r = {rank}"));
    }
    let size = |rank: usize, [out, input]: [usize; 2]| rank.saturating_mul(out.saturating_add(input));
    let before: usize = layers.iter().map(|(_, matrices)| size(matrices.rank, matrices.shape)).sum();
    let after = layers.iter().fold(0usize, |sum, (_, matrices)| sum.saturating_add(size(rank, matrices.shape)));
    if after > before.saturating_mul(GROWTH) {
        let reason =
            format!("filled up to one rank, {rank}, the adapter would be more than {GROWTH} times as large; merge it");
        return Err(Error::Invalid(format!("rank_pattern: {reason}")));
    }
    // vLLM reads use_rslora, so that an adapter without patterns is left as it is.
    let as_it_is = consumer == Consumer::Vllm && rank == lora.r && scaling == lora.scaling();
    let (use_rslora, lora_alpha) =
        if as_it_is { (lora.use_rslora, lora.lora_alpha) } else { (false, scaling * rank as f64) };
    if lora.use_rslora && !use_rslora {
        notes.push(format!("the scale of rsLoRA is now in lora_alpha = {lora_alpha}"));
    }
    let mut names: Vec<String> = Vec::new();
    let mut tensors = BTreeMap::new();
    for (path, matrices) in layers {
        let [out, input] = matrices.shape;
        let mut a = matrices.a;
        a.resize(rank * input, 0.0);
        let b = matrices.b.chunks(matrices.rank).flat_map(|row| (0..rank).map(|k| row.get(k).copied().unwrap_or(0.0)));
        tensors.insert(format!("{path}{B}"), Stored::new(vec![out, rank], &b.collect::<Vec<f32>>()));
        tensors.insert(format!("{path}{A}"), Stored::new(vec![rank, input], &a));
        names.push(path.rsplit('.').next().unwrap_or_default().to_string());
    }
    names.sort();
    names.dedup();
    let config = LoraConfig {
        r: rank,
        lora_alpha,
        use_rslora,
        lora_dropout: lora.lora_dropout,
        target_modules: Targets::Names(names.clone()),
        ..LoraConfig::default()
    };
    write(&config, names, &tensors)
}

/// The keys of the base's `config.json` that decide how llama.cpp lays out its weights.
#[derive(Deserialize)]
struct Base {
    model_type: String,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
}

/// `model_type` in a `config.json`, the architecture in llama.cpp, and whether the rows of q and k are interleaved there: its
/// Llama turns neighbours where Hugging Face's turns halves.
const ARCHITECTURES: [(&str, &str, bool); 8] = [
    ("llama", "llama", true),
    ("mistral", "llama", true),
    ("qwen2", "qwen2", false),
    ("qwen3", "qwen3", false),
    ("gemma2", "gemma2", false),
    ("gemma3", "gemma3", false),
    ("gemma3_text", "gemma3", false),
    ("phi3", "phi3", false),
];

/// llama.cpp's names of the linear layers inside a block (gguf-py, `tensor_mapping.py`).
const NAMES: [(&str, &str); 9] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The adapter as `convert_lora_to_gguf.py` of llama.cpp lays it out: it scales each layer by `adapter.lora.alpha` over the
/// layer's own rank, so that ranks may differ once the scales are worked into B.
fn adapter_gguf(
    base: &Path,
    lora: &LoraConfig,
    scaling: f64,
    layers: Vec<(String, Matrices)>,
    notes: &mut Vec<String>,
) -> Result<Vec<u8>> {
    let path = base.join("config.json");
    if !path.exists() {
        let reason = "is missing; name the folder of the base model (--base), which says how its rows are laid out";
        return Err(Error::file(&path, reason));
    }
    let config: Base = serde_json::from_slice(&read_json(&path)?).map_err(|e| Error::file(&path, e))?;
    let known = ARCHITECTURES.iter().find(|(model_type, ..)| *model_type == config.model_type);
    let Some((_, architecture, interleaved)) = known.copied() else {
        let known = ARCHITECTURES.map(|(model_type, ..)| model_type).join(", ");
        let reason = format!("`{}` cannot be exported to GGUF; these can: {known}", config.model_type);
        return Err(Error::key(&path, "model_type", reason));
    };
    let rank = layers.iter().map(|(_, matrices)| matrices.rank).max().unwrap_or(lora.r);
    let alpha = scaling * rank as f64;
    if lora.use_rslora {
        notes.push(format!("the scale of rsLoRA is now in adapter.lora.alpha = {alpha}"));
    }
    let mut tensors = Vec::new();
    for (layer, mut matrices) in layers {
        let name = gguf_name(&layer).ok_or_else(|| {
            Error::Invalid(format!("`{layer}` has no name in llama.cpp's {architecture} models; merge the adapter"))
        })?;
        let [out, input] = matrices.shape;
        // llama.cpp divides alpha by this layer's rank; a lower one would scale it up.
        let ratio = matrices.rank as f32 / rank as f32;
        matrices.b.iter_mut().for_each(|value| *value *= ratio);
        let heads = match &layer {
            q if q.ends_with(".q_proj") => config.num_attention_heads,
            k if k.ends_with(".k_proj") => config.num_key_value_heads.or(config.num_attention_heads),
            _ => Some(0),
        };
        let heads = heads.ok_or_else(|| Error::key(&path, "num_attention_heads", "is missing"))?;
        let b = match interleaved && heads > 0 {
            true => interleave(&matrices.b, matrices.rank, heads).ok_or_else(|| {
                Error::key(
                    &path,
                    "num_attention_heads",
                    format!("{heads} heads do not divide the {out} rows of `{layer}`"),
                )
            })?,
            false => matrices.b,
        };
        tensors.push(Matrix { name: format!("{name}.lora_a"), shape: [matrices.rank, input], values: matrices.a });
        tensors.push(Matrix { name: format!("{name}.lora_b"), shape: [out, matrices.rank], values: b });
    }
    let fields = [
        ("general.architecture", Field::Text(architecture.into())),
        ("general.type", Field::Text("adapter".into())),
        ("adapter.type", Field::Text("lora".into())),
        ("adapter.lora.alpha", Field::Float(alpha as f32)),
    ];
    Ok(gguf::encode(&fields, &tensors))
}

/// `blk.N.NAME.weight` of a layer's path.
fn gguf_name(path: &str) -> Option<String> {
    let (number, module) = in_layer(path)?;
    let (_, name) = NAMES.iter().find(|(known, _)| *known == module)?;
    Some(format!("blk.{number}.{name}.weight"))
}

/// The rows of `b` `[out, r]` in llama.cpp's order: in each head, rows of the two halves in turn (`LlamaModel.permute`).
/// None where the heads do not divide the rows.
fn interleave(b: &[f32], rank: usize, heads: usize) -> Option<Vec<f32>> {
    let rows = b.len() / rank;
    if heads == 0 || heads > rows || !rows.is_multiple_of(2 * heads) {
        return None;
    }
    let half = rows / heads / 2;
    let order = (0..rows).map(|row| {
        let (head, within) = (row / (2 * half), row % (2 * half));
        head * 2 * half + (within % 2) * half + within / 2
    });
    Some(order.flat_map(|row| &b[row * rank..(row + 1) * rank]).copied().collect())
}
