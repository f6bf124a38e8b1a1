//! Writing a model folder: tensors one after another into shards of bounded size, and the files beside the weights.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::json::{read_json, write_json};
use super::{write_atomic, write_tensors};
use crate::{Error, Result};

/// Bytes after which a new shard begins: what a host can hold in memory beside a layer, and transformers' order of size.
pub(super) const SHARD: usize = 4 << 30;

/// A tensor to be written: its name, dtype, shape and bytes.
pub(super) type Named = (String, Dtype, Vec<usize>, Vec<u8>);

/// Shards on their way to a folder.
pub(super) struct Shards<'a> {
    folder: &'a Path,
    limit: usize,
    pending: Vec<Named>,
    bytes: usize,
    total: usize,
    weight_map: Vec<(String, usize)>,
    written: usize,
}

impl<'a> Shards<'a> {
    /// Shards of about `limit` bytes.
    pub(super) fn new(folder: &'a Path, limit: usize) -> Self {
        Self { folder, limit, pending: vec![], bytes: 0, total: 0, weight_map: vec![], written: 0 }
    }

    /// Adds a tensor; the shard is written once it is full.
    pub(super) fn push(&mut self, tensor: Named) -> Result<()> {
        self.bytes += tensor.3.len();
        self.pending.push(tensor);
        if self.bytes >= self.limit { self.flush() } else { Ok(()) }
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
        write_tensors(views?, Some(metadata), &path)?;
        self.weight_map.extend(self.pending.drain(..).map(|(name, ..)| (name, self.written)));
        self.total += std::mem::take(&mut self.bytes);
        Ok(())
    }

    /// Gives the shards their final names, and an index where there are several.
    pub(super) fn finish(mut self) -> Result<()> {
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

/// Refuses a folder or file that is there already: whatever is in it may be somebody's.
///
/// # Errors
/// When it is there.
pub fn must_be_new(output: &Path) -> Result<()> {
    match output.exists() {
        true => Err(Error::file(output, "is there already; name a folder that is not, or remove it")),
        false => Ok(()),
    }
}

/// `config.json` of a model folder, as its keys.
pub(super) fn read_config(folder: &Path) -> Result<serde_json::Map<String, Value>> {
    let path = folder.join("config.json");
    let value: Value = serde_json::from_slice(&read_json(&path)?).map_err(|e| Error::file(&path, e))?;
    match value {
        Value::Object(keys) => Ok(keys),
        _ => Err(Error::file(&path, "is not a JSON object")),
    }
}

/// What transformers, and the programs that convert a folder, read beside configuration and weights.
pub(super) const BESIDE: [&str; 12] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// Copies what a model folder holds beside its weights and its configuration.
pub(super) fn copy_beside(input: &Path, folder: &Path) -> Result<()> {
    for name in BESIDE {
        let from = input.join(name);
        if from.exists() {
            let bytes = std::fs::read(&from).map_err(|e| Error::file(&from, e))?;
            write_atomic(folder.join(name), &bytes)?;
        }
    }
    Ok(())
}
