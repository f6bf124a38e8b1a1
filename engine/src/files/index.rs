//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

/// The name of the file.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// What an index says; every shard is a file of the index's own folder.
#[derive(Clone, Debug, Deserialize)]
pub struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Parses an index; `path` is for messages.
    ///
    /// # Errors
    /// When it is malformed, or names anything but safetensors files of its own folder.
    pub fn parse(path: impl AsRef<Path>, json: &[u8]) -> Result<Self> {
        let path = path.as_ref();
        let index: Self = serde_json::from_slice(json).map_err(|e| Error::file(path, e))?;
        let beside = |name: &String| {
            let hidden = name.starts_with('.') || name.contains(['/', '\\', ':']) || name.contains(char::is_control);
            name.ends_with(".safetensors") && !hidden
        };
        match index.weight_map.values().find(|name| !beside(name)) {
            Some(name) => {
                Err(Error::key(path, "weight_map", format!("`{name}` is not a safetensors file of this folder")))
            }
            None => Ok(index),
        }
    }

    /// The names of the shards, in order.
    pub fn shards(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The names of the tensors, in order.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.weight_map.keys().map(String::as_str)
    }
}
