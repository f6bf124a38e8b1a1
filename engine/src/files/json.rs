//! JSON files of a model folder: read up to a size that none of them reaches, written all or nothing.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use super::write_atomic;
use crate::{Error, Result};

/// The index of a model with a million tensors would be smaller.
const LIMIT: u64 = 64 << 20;

/// The bytes of a JSON file.
///
/// # Errors
/// When it cannot be read, or is larger than such a file ever is.
pub(crate) fn read_json(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(|e| Error::file(path, e))?;
    match bytes.len() as u64 {
        0..=LIMIT => Ok(bytes),
        _ => Err(Error::file(path, format!("is larger than {} MiB, which no such file is", LIMIT >> 20))),
    }
}

/// Writes a value with indentation.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    write_atomic(path, text.as_bytes())
}
