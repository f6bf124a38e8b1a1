//! Writing that is all or nothing: a temporary name, a sync, a rename.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A sibling of `path` with `suffix` after its name.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

fn failed(path: &Path, doing: &str, error: std::io::Error) -> Error {
    Error::file(path, format!("cannot {doing}: {error}"))
}

/// Makes a rename survive a power cut. Where folders cannot be synced (not Unix) the rename itself has to do.
fn sync_parent(path: &Path) {
    if let Some(Ok(folder)) = path.parent().map(File::open) {
        let _ = folder.sync_all();
    }
}

/// Writes `bytes` to `path`: whoever opens it sees the old content or the new, never a part.
///
/// # Errors
/// When the file cannot be written; the old content is then still there.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let temporary = sibling(path, ".partial");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        failed(path, "write it", e)
    })?;
    sync_parent(path);
    Ok(())
}

/// Fills a folder by `fill`, which writes into a temporary one, and puts it in place of `path` by a rename. What stood
/// there before is gone only after the new folder is whole; a process killed between the two renames leaves it as
/// `NAME.previous`.
///
/// # Errors
/// Those of `fill`, and those of the file system; `path` is then as it was.
pub fn replace_folder(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let (temporary, previous) = (sibling(path, ".partial"), sibling(path, ".previous"));
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(|e| failed(&temporary, "remove what an earlier run left", e))?;
    }
    fs::create_dir_all(&temporary).map_err(|e| failed(&temporary, "create it", e))?;
    fill(&temporary)?;
    if path.exists() {
        if previous.exists() {
            fs::remove_dir_all(&previous).map_err(|e| failed(&previous, "remove it", e))?;
        }
        fs::rename(path, &previous).map_err(|e| failed(path, "move it aside", e))?;
    }
    fs::rename(&temporary, path).map_err(|e| failed(path, "put the new folder in its place", e))?;
    sync_parent(path);
    let _ = fs::remove_dir_all(&previous);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_fill_leaves_the_old_folder() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("adapter");
        replace_folder(&path, |folder| write_atomic(folder.join("weights"), b"old")).unwrap();
        let failing = replace_folder(&path, |folder| {
            write_atomic(folder.join("weights"), b"new")?;
            Err(Error::Invalid("killed".into()))
        });
        assert!(failing.is_err());
        assert_eq!(fs::read(path.join("weights")).unwrap(), b"old");
        replace_folder(&path, |folder| write_atomic(folder.join("weights"), b"newer")).unwrap();
        assert_eq!(fs::read(path.join("weights")).unwrap(), b"newer");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing temporary is left");
    }
}
