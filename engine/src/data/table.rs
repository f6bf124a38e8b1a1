//! CSV files: a header that names the keys, and a record in each row.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::read::{Sink, emit};
use crate::{Error, Result};

/// Columns that hold JSON, as `pandas` and spreadsheets keep lists.
const LISTS: [&str; 2] = ["messages", "conversations"];

/// Hands on each row; its place is the line that it begins on.
pub(super) fn csv(path: &Path, reader: impl Read, sink: &mut Sink) -> Result<()> {
    let mut reader = ::csv::Reader::from_reader(reader);
    let header = reader.headers().map_err(|e| failed(path, &e))?.clone();
    let mut row = ::csv::StringRecord::new();
    while reader.read_record(&mut row).map_err(|e| failed(path, &e))? {
        let place = row.position().map_or(0, |position| position.line() as usize);
        let mut object = Map::new();
        for (key, cell) in header.iter().zip(&row) {
            let value = match LISTS.contains(&key) {
                true => serde_json::from_str(cell)
                    .map_err(|e| Error::line(path, place, format!("`{key}` must hold a JSON list: {e}")))?,
                false => Value::String(cell.to_string()),
            };
            object.insert(key.to_string(), value);
        }
        emit(path, place, Value::Object(object), sink)?;
    }
    Ok(())
}

fn failed(path: &Path, error: &::csv::Error) -> Error {
    let reason = match error.kind() {
        ::csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("has {len} cells where the header has {expected_len}; quote cells with commas or line ends")
        }
        ::csv::ErrorKind::Utf8 { err, .. } => format!("is not UTF-8: {err}"),
        _ => error.to_string(),
    };
    match error.position() {
        Some(position) => Error::line(path, position.line() as usize, reason),
        None => Error::file(path, reason),
    }
}
