//! An adapter's folder as a zip, and back.

use std::io::{Cursor, Read, Write};

use halfbyte::files::{AdapterConfig, AdapterFile, AdapterFiles, Checkpoint};
use halfbyte_protocol::Kind;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::error::{Error, Result};

/// Bytes of a file in a zip after which it is refused: no adapter that a browser trains is larger.
const LARGEST: u64 = 1 << 30;

fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(Kind::File, format!("the zip of the adapter: {error}"))
}

/// A zip with the files in a folder of this name. Weights do not shrink, so nothing is compressed.
pub(crate) fn pack(folder: &str, files: &AdapterFiles) -> Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in files {
        zip.start_file(format!("{folder}/{name}"), options).map_err(failed)?;
        zip.write_all(bytes).map_err(failed)?;
    }
    Ok(zip.finish().map_err(failed)?.into_inner())
}

/// The adapter in a zip, in whichever of its folders the files lie.
pub(crate) fn unpack(bytes: Vec<u8>) -> Result<AdapterFile> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(failed)?;
    let config = read(&mut zip, "adapter_config.json")?;
    let weights = read(&mut zip, "adapter_model.safetensors")?;
    let config = AdapterConfig::parse("adapter_config.json", &config)?;
    Ok(AdapterFile::new(config, Checkpoint::from_bytes("adapter_model.safetensors", weights)?)?)
}

fn read(zip: &mut ZipArchive<Cursor<Vec<u8>>>, name: &str) -> Result<Vec<u8>> {
    let found = zip.file_names().find(|path| path.rsplit('/').next() == Some(name)).map(str::to_string);
    let found = found.ok_or_else(|| failed(format!("holds no {name}; zip the folder that PEFT or Halfbyte wrote")))?;
    let file = zip.by_name(&found).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 {
        0..=LARGEST => Ok(bytes),
        _ => Err(failed(format!("{name} is larger than 1 GiB"))),
    }
}
