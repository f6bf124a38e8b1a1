//! One file from the hub into the cache: resumed where it was cut, checked against its hash, seen whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::cache::{RepoCache, create_parent};
use super::client::{Client, Failure, Meta};
use super::name::HubName;
use crate::files::digest::hexadecimal;
use crate::{Error, Result};

/// How often a connection may bring nothing new before it is given up.
const ATTEMPTS: u32 = 5;
/// The wait after the first failed attempt; it doubles with each.
const WAIT: Duration = Duration::from_millis(300);

/// What happens during a download, for whoever shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubEvent<'a> {
    /// A file begins.
    Begin {
        /// Its path in the repository.
        file: &'a str,
        /// Its bytes.
        size: u64,
        /// How many of them an earlier run left.
        present: u64,
    },
    /// So many bytes more arrived.
    Bytes(u64),
    /// The file is whole.
    End,
    /// Something to know.
    Note(&'a str),
}

/// What sees the events.
pub type HubProgress<'a> = &'a mut dyn FnMut(HubEvent<'_>);

/// A file in the cache.
pub(super) struct Fetched {
    pub(super) path: PathBuf,
    pub(super) etag: String,
    /// Whether it was downloaded now.
    pub(super) fresh: bool,
}

/// Brings a file into the cache.
pub(super) fn fetch(
    client: &Client,
    cache: &RepoCache,
    name: &HubName,
    commit: &str,
    file: &str,
    progress: HubProgress<'_>,
) -> Result<Fetched> {
    let meta = attempt(|| client.meta(name, commit, file)).map_err(|failure| refused(name, failure))?;
    let blob = cache.blob(&meta.etag);
    let done = |fresh| Ok(Fetched { path: cache.link(commit, file, &meta.etag)?, etag: meta.etag.clone(), fresh });
    if blob.exists() {
        return done(false);
    }
    let waiting = format!("{file}: another process downloads it; waiting");
    let _lock = cache.lock(&meta.etag, &mut || progress(HubEvent::Note(&waiting)))?;
    if blob.exists() {
        return done(false);
    }
    create_parent(&blob)?;
    let partial = blob.with_file_name(format!("{}.incomplete", meta.etag));
    let mut download = Download::open(&partial, &meta)?;
    progress(HubEvent::Begin { file, size: meta.size, present: download.have });
    let mut failed = 0;
    while download.have < meta.size {
        let before = download.have;
        let reason = match client.content(name, commit, file, before) {
            Ok((begins, body)) => download.receive(begins, body, progress)?,
            Err(Failure::Unreachable(reason)) => Some(reason),
            Err(failure) => return Err(refused(name, failure)),
        };
        let Some(reason) = reason else { continue };
        failed = if download.have > before { 0 } else { failed + 1 };
        if failed >= ATTEMPTS {
            let kept =
                format!("{reason}; the {} bytes that arrived are kept, and the next run goes on from there", before);
            return Err(hub_error(name, format!("{file}: {kept}")));
        }
        std::thread::sleep(WAIT * 2_u32.pow(failed));
    }
    download.finish(name, file, &blob)?;
    progress(HubEvent::End);
    done(true)
}

/// A request, made again when the hub is not reached.
pub(super) fn attempt<T>(mut request: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let result = request();
    if !matches!(result, Err(Failure::Unreachable(_))) {
        return result;
    }
    std::thread::sleep(WAIT);
    request()
}

pub(super) fn hub_error(name: &HubName, reason: impl std::fmt::Display) -> Error {
    Error::Hub { name: name.to_string(), reason: reason.to_string() }
}

pub(super) fn refused(name: &HubName, failure: Failure) -> Error {
    let (Failure::Unreachable(reason) | Failure::Refused(reason)) = failure;
    hub_error(name, reason)
}

/// A file on its way.
struct Download<'a> {
    path: &'a Path,
    file: File,
    meta: &'a Meta,
    have: u64,
    /// Of the bytes so far, where the etag is a SHA-256.
    hash: Option<Sha256>,
}

impl<'a> Download<'a> {
    /// Takes up what an earlier run left.
    fn open(path: &'a Path, meta: &'a Meta) -> Result<Self> {
        let failed = |e| Error::file(path, format!("cannot write it: {e}"));
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(failed)?;
        let hash = (meta.etag.len() == 64).then(Sha256::new);
        let mut download = Self { path, file, meta, have: 0, hash };
        let length = download.file.metadata().map_err(failed)?.len();
        if length > meta.size {
            download.restart().map_err(failed)?;
        } else {
            download.rehash(length).map_err(failed)?;
        }
        Ok(download)
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.have = 0;
        self.hash = self.hash.as_ref().map(|_| Sha256::new());
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0)).map(|_| ())
    }

    /// Hashes the bytes that are there.
    fn rehash(&mut self, length: u64) -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        while self.have < length {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            self.note(&buffer[..count]);
        }
        Ok(())
    }

    fn note(&mut self, bytes: &[u8]) {
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.have += bytes.len() as u64;
    }

    /// Writes a body that begins at byte `begins`; why it ended before the file did.
    fn receive(&mut self, begins: u64, mut body: impl Read, progress: HubProgress<'_>) -> Result<Option<String>> {
        let path = self.path;
        let failed = |e: std::io::Error| {
            Error::file(path, format!("cannot write it: {e}; HF_HOME or HF_HUB_CACHE names another place"))
        };
        if begins != self.have {
            // The server does not resume.
            if begins != 0 {
                return Ok(Some("the answer does not continue the file".into()));
            }
            self.restart().map_err(failed)?;
            progress(HubEvent::Note("the download begins again: the server does not resume"));
        }
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(count) => count,
                Err(e) => return Ok(Some(format!("the connection was cut: {e}"))),
            };
            if count == 0 {
                let whole = self.have == self.meta.size;
                return Ok((!whole).then(|| "the connection ended early".into()));
            }
            if self.have + count as u64 > self.meta.size {
                self.restart().map_err(failed)?;
                return Ok(Some("the answer is longer than the file".into()));
            }
            self.file.write_all(&buffer[..count]).map_err(failed)?;
            self.note(&buffer[..count]);
            progress(HubEvent::Bytes(count as u64));
        }
    }

    /// Checks the whole file and gives it its name.
    fn finish(self, name: &HubName, file: &str, blob: &Path) -> Result<()> {
        let failed = |e| Error::file(self.path, format!("cannot write it: {e}"));
        let found = self.hash.map(|hash| hexadecimal(&hash.finalize()));
        if let Some(found) = found.filter(|found| !found.eq_ignore_ascii_case(&self.meta.etag)) {
            let _ = fs::remove_file(self.path);
            let reason = format!("{file}: what arrived has SHA-256 {found}; the hub announced {}", self.meta.etag);
            return Err(hub_error(name, format!("{reason}; it was removed, try again")));
        }
        self.file.sync_all().map_err(failed)?;
        fs::rename(self.path, blob).map_err(failed)
    }
}
