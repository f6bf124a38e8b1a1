//! Data files, record by record: JSON lines and JSON lists here, tables beside. No format holds more of a file than it must.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::record::{ACCEPTED, Format, Record};
use super::table;
use crate::{Error, Result};

/// Takes each record with its place: a line of JSON lines or CSV, else an element or a row, counted from 1.
pub type Sink<'a> = dyn FnMut(usize, Format, Record) -> Result<()> + 'a;

/// Bytes of a line after which it is refused: a file without line ends must not fill the memory.
const MAX_LINE: u64 = 16 << 20;
/// Extensions of files that can be read.
pub const EXTENSIONS: [&str; 5] = ["jsonl", "ndjson", "json", "csv", "parquet"];

/// Reads a file by its extension: `.jsonl`, `.json` (a list of records, an object with one such list, or lines after
/// all), `.csv` with a header, or `.parquet`.
///
/// # Errors
/// On the first record that is none, with its place, or what `sink` returns; when the file is missing or holds no record.
pub fn read_records(path: &Path, sink: &mut Sink) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    counted(path, sink, |sink| match extension(path).as_str() {
        #[cfg(not(target_arch = "wasm32"))]
        "parquet" => super::parquet::rows(path, file, sink),
        _ => text(path, BufReader::new(file), sink),
    })
}

/// [`read_records`] from bytes, for a place without files; `path` is for messages and the extension.
///
/// # Errors
/// As [`read_records`].
pub fn parse_records(path: &Path, bytes: &[u8], sink: &mut Sink) -> Result<()> {
    counted(path, sink, |sink| match extension(path).as_str() {
        #[cfg(not(target_arch = "wasm32"))]
        "parquet" => super::parquet::rows(path, bytes::Bytes::copy_from_slice(bytes), sink),
        _ => text(path, bytes, sink),
    })
}

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

fn text(path: &Path, mut reader: impl BufRead, sink: &mut Sink) -> Result<()> {
    skip_byte_order_mark(&mut reader).map_err(|e| Error::file(path, e))?;
    match extension(path).as_str() {
        "jsonl" | "ndjson" => lines(path, reader, sink),
        "json" => json(path, reader, sink),
        "csv" => table::csv(path, reader, sink),
        "parquet" => Err(Error::file(path, "Parquet cannot be read in a browser; convert the file to JSON lines")),
        _ => Err(Error::file(path, format!("is no data file: it must end in .{}", EXTENSIONS.join(", .")))),
    }
}

fn skip_byte_order_mark(reader: &mut impl BufRead) -> std::io::Result<()> {
    if reader.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(())
}

/// Runs a reader and refuses a file of which nothing came.
fn counted(path: &Path, sink: &mut Sink, run: impl FnOnce(&mut Sink) -> Result<()>) -> Result<()> {
    let mut count = 0;
    run(&mut |place, format, record| {
        count += 1;
        sink(place, format, record)
    })?;
    match count {
        0 => Err(Error::file(path, format!("holds no record; a record has {ACCEPTED}"))),
        _ => Ok(()),
    }
}

/// Hands on a value that should be a record.
pub(super) fn emit(path: &Path, place: usize, value: Value, sink: &mut Sink) -> Result<()> {
    let (format, record) = Record::parse(value).map_err(|reason| Error::line(path, place, reason))?;
    sink(place, format, record)
}

fn lines(path: &Path, mut reader: impl BufRead, sink: &mut Sink) -> Result<()> {
    let (mut line, mut place) = (Vec::new(), 0);
    loop {
        line.clear();
        let length = reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line);
        place += 1;
        match length.map_err(|e| Error::line(path, place, e))? as u64 {
            0 => return Ok(()),
            length if length > MAX_LINE => return Err(Error::line(path, place, "the line is longer than 16 MiB")),
            _ if line.trim_ascii().is_empty() => {}
            _ if line.trim_ascii_start().starts_with(b"[") => {
                return Err(Error::line(
                    path,
                    place,
                    "begins a list, not a record; name a file that is one list .json",
                ));
            }
            _ => {
                let value = serde_json::from_slice(&line).map_err(|e| not_json(path, place, &e))?;
                emit(path, place, value, sink)?;
            }
        }
    }
}

/// The parser counts lines within the line that it was given; only the column says something.
fn not_json(path: &Path, place: usize, error: &serde_json::Error) -> Error {
    let message = error.to_string();
    let reason = message.split(" at line ").next().unwrap_or(&message);
    Error::line(path, place, format!("not JSON: {reason} at column {}", error.column()))
}

/// A list, an object with a list, or what the hub's files often are in spite of their name: lines.
fn json(path: &Path, mut reader: impl BufRead, sink: &mut Sink) -> Result<()> {
    let mut first = Vec::new();
    reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut first).map_err(|e| Error::file(path, e))?;
    let is_line = matches!(serde_json::from_slice(&first), Ok(Value::Object(object)) if Record::is_record(&object));
    let whole = std::io::Cursor::new(first).chain(reader);
    if is_line {
        return lines(path, whole, sink);
    }
    let mut failed = None;
    let mut place = 0;
    let mut each = |value: Value| {
        place += 1;
        emit(path, place, value, sink).map_err(|error| failed = Some(error)).is_ok()
    };
    let mut parser = serde_json::Deserializer::from_reader(whole);
    let parsed = Lists { each: &mut each, inside: false }.deserialize(&mut parser).and_then(|found| {
        parser.end()?;
        Ok(found)
    });
    match (failed, parsed) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(Error::file(path, format!("not JSON: {error}"))),
        (None, Ok(1)) => Ok(()),
        (None, Ok(0)) => Err(Error::file(path, "holds no list of records")),
        (None, Ok(_)) => Err(Error::file(path, "holds several lists; name each split's file, a list of records each")),
    }
}

/// Hands on the elements of a list, or of the lists of an object; how many lists there were.
struct Lists<'a> {
    each: &'a mut dyn FnMut(Value) -> bool,
    inside: bool,
}

impl<'de> DeserializeSeed<'de> for Lists<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lists<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a list of records, or an object with one")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
        while let Some(value) = list.next_element()? {
            if !(self.each)(value) {
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(1)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut lists = 0;
        while map.next_key::<IgnoredAny>()?.is_some() {
            if self.inside {
                map.next_value::<IgnoredAny>()?;
            } else {
                lists += map.next_value_seed(Lists { each: &mut *self.each, inside: true })?;
            }
        }
        Ok(lists)
    }

    fn visit_unit<E>(self) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_bool<E>(self, _: bool) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_i64<E>(self, _: i64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_u64<E>(self, _: u64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_f64<E>(self, _: f64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_str<E>(self, _: &str) -> Result<usize, E> {
        Ok(0)
    }
}
