//! The cache on disk, laid out as `huggingface_hub` lays it out, so that both find what the other has downloaded:
//! `models--org--name/refs/main` holds a commit, `snapshots/COMMIT/FILE` links to `blobs/ETAG`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::name::{HubName, is_commit};
use crate::files::write_atomic;
use crate::{Error, Result};

/// One repository in the cache.
#[derive(Clone)]
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, name: &HubName) -> Self {
        Self { root: cache.join(name.folder()), locks: cache.join(".locks").join(name.folder()) }
    }

    /// The commit that a branch or tag stood at when it was last asked for.
    pub(super) fn commit(&self, name: &HubName) -> Option<String> {
        if name.is_pinned() {
            return self.snapshot(&name.revision).is_dir().then(|| name.revision.clone());
        }
        let text = fs::read_to_string(self.root.join("refs").join(&name.revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_string())
    }

    /// Remembers where a branch or tag stands.
    pub(super) fn set_commit(&self, name: &HubName, commit: &str) -> Result<()> {
        if name.is_pinned() || self.commit(name).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(&name.revision);
        create_parent(&path)?;
        write_atomic(path, commit.as_bytes())
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Holds off other processes that download the same file, until it is dropped.
    pub(super) fn lock(&self, etag: &str, waiting: &mut dyn FnMut()) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::create(&path).map_err(|e| Error::file(&path, format!("cannot create it: {e}")))?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            waiting();
            file.lock().map_err(|e| Error::file(&path, format!("cannot lock it: {e}")))?;
        }
        // A file system without locks is used without: the worst that can happen is a file downloaded twice.
        Ok(file)
    }

    /// Puts a blob under the name of a file in a snapshot.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf> {
        let pointer = self.snapshot(commit).join(file);
        create_parent(&pointer)?;
        if !pointer.exists() {
            // A link whose blob is gone is there but does not exist.
            let _ = fs::remove_file(&pointer);
            let mut target: PathBuf = std::iter::repeat_n("..", 2 + file.matches('/').count()).collect();
            target.extend(["blobs", etag]);
            let linked = symlink(&target, &pointer)
                .or_else(|_| fs::hard_link(self.blob(etag), &pointer))
                .or_else(|_| fs::copy(self.blob(etag), &pointer).map(|_| ()));
            // Another process may have been faster.
            linked.or_else(|e| if pointer.exists() { Ok(()) } else { Err(e) }).map_err(|e| Error::file(&pointer, e))?;
        }
        Ok(pointer)
    }

    /// Removes a file of a snapshot and its blob.
    pub(super) fn drop_file(&self, pointer: &Path, etag: &str) -> Result<()> {
        for path in [pointer, &self.blob(etag)] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::file(path, format!("cannot remove it: {e}")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Creates the folder that a file is about to be in.
pub(super) fn create_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|e| {
        Error::file(parent, format!("cannot create it: {e}; HF_HOME or HF_HUB_CACHE names another place for the cache"))
    })
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> std::io::Result<()> {
    // Links need a privilege on Windows.
    Err(std::io::ErrorKind::Unsupported.into())
}
