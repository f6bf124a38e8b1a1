//! Writes files, makes their folders, and names the path when that fails.

use std::path::Path;

use anyhow::{Context, Result};

/// Writes `text` to `path`, making the folder first.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes one JSON value per line.
pub(crate) fn write_jsonl(path: &Path, lines: impl Iterator<Item = serde_json::Value>) -> Result<()> {
    write(path, &lines.map(|line| format!("{line}\n")).collect::<String>())
}

/// Writes a JSON file as people like to read it: indented by two spaces, ending in a newline.
pub(crate) fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    write(path, &format!("{value:#}\n"))
}
