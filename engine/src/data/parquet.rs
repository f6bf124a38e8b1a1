//! Parquet files, as the hub keeps data sets: rows with nested lists, one row group in memory at a time.

use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::{Type, TypePtr};

use super::read::{Sink, emit};
use super::record::{ACCEPTED, KEYS};
use crate::failure::unless_it_panics;
use crate::{Error, Result};

/// Hands on each row; its place is counted from 1. Only the columns that a record is read from are decoded.
pub(super) fn rows(path: &Path, file: impl ChunkReader + 'static, sink: &mut Sink) -> Result<()> {
    let mut rows = guarded(|| {
        let file = SerializedFileReader::new(file)?;
        let columns = columns(file.metadata().file_metadata().schema());
        Ok(columns.map(|columns| RowIter::from_file_into(Box::new(file)).project(Some(columns))))
    })
    .and_then(|rows| rows?.map_err(|e| reason(&e)))
    .map_err(|reason| Error::file(path, reason))?;
    let mut place = 0;
    loop {
        place += 1;
        let value = guarded(|| rows.next().transpose().map(|row| row.map(|row| row.to_json_value())));
        match value.map_err(|e| Error::line(path, place, e))? {
            Some(value) => emit(path, place, value, sink)?,
            None => return Ok(()),
        }
    }
}

/// The part of a schema that records are read from.
fn columns(schema: &Type) -> std::result::Result<Type, String> {
    let known: Vec<TypePtr> =
        schema.get_fields().iter().filter(|field| KEYS.contains(&field.name())).map(Arc::clone).collect();
    if known.is_empty() {
        let found: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        return Err(format!("has the columns [{}]; expected {ACCEPTED}", found.join(", ")));
    }
    Type::group_type_builder(schema.name()).with_fields(known).build().map_err(|e| e.to_string())
}

/// The library answers some damaged files with a panic; here each is an error.
fn guarded<T>(run: impl FnOnce() -> std::result::Result<T, ParquetError>) -> std::result::Result<T, String> {
    let read = unless_it_panics(run).ok_or("is a damaged Parquet file; fetch or write it again")?;
    read.map_err(|e| reason(&e))
}

fn reason(error: &ParquetError) -> String {
    let message = error.to_string();
    let cure = match message.to_lowercase() {
        m if m.contains("disabled feature") => {
            "; write it with compression=\"snappy\" (pandas' and pyarrow's default), zstd, gzip or none"
        }
        _ => "; is it a whole Parquet file?",
    };
    format!("{message}{cure}")
}
