//! SHA-256 of what a checkpoint must find unchanged.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// How long a file is, and the SHA-256 of its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Length.
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

/// The SHA-256 of parts that come one after another, in hexadecimal digits.
pub fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256Of::default();
    parts.into_iter().for_each(|part| hasher.update(part));
    hasher.finish()
}

/// A SHA-256 in the making.
#[derive(Default)]
pub struct Sha256Of(Sha256);

impl Sha256Of {
    /// Takes what comes next.
    pub fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    /// In hexadecimal digits.
    pub fn finish(self) -> String {
        hexadecimal(&self.0.finalize())
    }
}

/// Bytes in hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Digest {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: sha256([bytes]) }
    }

    /// Of a file, which is read in pieces.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(path: &Path) -> Result<Self> {
        let read = || -> std::io::Result<Self> {
            let (mut file, mut hasher, mut bytes) = (File::open(path)?, Sha256::new(), 0);
            let mut buffer = vec![0; 1 << 16];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(Self { bytes, sha256: hexadecimal(&hasher.finalize()) }),
                    count => {
                        hasher.update(&buffer[..count]);
                        bytes += count as u64;
                    }
                }
            }
        };
        read().map_err(|e| Error::file(path, e))
    }

    /// Whether a file is still this one.
    ///
    /// # Errors
    /// When it is missing, shorter, longer or changed; the file is named.
    pub fn check(&self, path: &Path) -> Result<()> {
        let length = std::fs::metadata(path).map_err(|e| Error::file(path, e))?.len();
        if length != self.bytes {
            return Err(Error::file(path, format!("has {length} bytes of the {} that were written", self.bytes)));
        }
        match Self::of_file(path)?.sha256 == self.sha256 {
            true => Ok(()),
            false => Err(Error::file(path, "is not what was written: its SHA-256 differs")),
        }
    }
}
