//! Writing that is all or nothing: a temporary name, a sync, a rename.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::View;

use crate::{Error, Result};

/// A hidden sibling of `path`, under a name that is nobody else's.
fn sibling(path: &Path, what: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".halfbyte-{what}"));
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
    let temporary = sibling(path, "partial");
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

/// Writes tensors to a new file. The library makes it its owner's alone; it gets the rights of any other file that is made there.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn write_tensors<S: AsRef<str> + Ord + Display, V: View>(
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: Option<HashMap<String, String>>,
    path: &Path,
) -> Result<()> {
    safetensors::serialize_to_file(tensors, metadata, path)
        .map_err(|e| Error::file(path, format!("cannot write it: {e}")))?;
    let finish = || -> std::io::Result<()> {
        let other = sibling(path, "rights");
        let rights = File::create(&other)?.metadata()?.permissions();
        fs::remove_file(&other)?;
        fs::set_permissions(path, rights)?;
        File::open(path)?.sync_all()
    };
    finish().map_err(|e| failed(path, "write it", e))
}

/// Fills a folder by `fill`, which writes into a hidden one beside it, and puts it in place of `path` once it is whole. On
/// Linux the two change places at once. Elsewhere the old folder is moved aside first; a process killed between those
/// two renames leaves it hidden, and the next call brings it back.
///
/// # Errors
/// Those of `fill`, and those of the file system; `path` is then as it was.
pub fn replace_folder(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    if path.exists() && !path.is_dir() {
        return Err(Error::file(path, "is a file where a folder is to be; move it away, or name another"));
    }
    let (temporary, previous) = (sibling(path, "partial"), sibling(path, "previous"));
    if previous.exists() && !path.exists() {
        fs::rename(&previous, path).map_err(|e| failed(path, "bring it back from an earlier run", e))?;
    }
    for left in [&temporary, &previous] {
        if left.exists() {
            fs::remove_dir_all(left).map_err(|e| failed(left, "remove what an earlier run left", e))?;
        }
    }
    fs::create_dir_all(&temporary).map_err(|e| failed(&temporary, "create it", e))?;
    let placed = fill(&temporary).and_then(|()| place(&temporary, path, &previous));
    // What is left under these names is the old folder, or one that was not finished. Where neither got its name, the old one stays
    // for the next call.
    let _ = fs::remove_dir_all(&temporary);
    if path.exists() {
        let _ = fs::remove_dir_all(&previous);
    }
    sync_parent(path);
    placed
}

/// Removes a folder: whoever looks sees the whole folder or none.
///
/// # Errors
/// When the file system refuses.
pub fn remove_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let removed = sibling(path, "removed");
    let remove = || -> std::io::Result<()> {
        if removed.exists() {
            fs::remove_dir_all(&removed)?;
        }
        fs::rename(path, &removed)?;
        fs::remove_dir_all(&removed)
    };
    remove().map_err(|e| failed(path, "remove it", e))
}

/// Removes what a process that was killed left of folders in `folder` whose names begin with `prefix`: those that were being
/// written or removed. Folders that are whole stay.
///
/// # Errors
/// When the file system refuses.
pub fn sweep_folders(folder: impl AsRef<Path>, prefix: &str) -> Result<()> {
    let folder = folder.as_ref();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(folder, "list it", e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| failed(folder, "list it", e))?;
        let (name, is_folder) = (entry.file_name(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix('.')) else { continue };
        let unfinished = name.ends_with(".halfbyte-partial") || name.ends_with(".halfbyte-removed");
        if is_folder && unfinished && name.starts_with(prefix) {
            fs::remove_dir_all(entry.path())
                .map_err(|e| failed(&entry.path(), "remove what an earlier run left", e))?;
        }
    }
    Ok(())
}

/// Gives a whole folder its name.
fn place(whole: &Path, path: &Path, previous: &Path) -> Result<()> {
    let failed = |e| failed(path, "put the new folder in its place", e);
    if !path.exists() {
        return fs::rename(whole, path).map_err(failed);
    }
    if exchange(whole, path) {
        return Ok(());
    }
    fs::rename(path, previous).map_err(failed)?;
    fs::rename(whole, path).map_err(|e| {
        let _ = fs::rename(previous, path);
        failed(e)
    })
}

/// Lets two paths change places at once; whether the system can.
fn exchange(a: &Path, b: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (a, b);
        false
    }
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
        // Killed between two renames.
        fs::rename(&path, sibling(&path, "previous")).unwrap();
        let failing = replace_folder(&path, |_| Err(Error::Invalid("again".into())));
        assert!(failing.is_err());
        assert_eq!(fs::read(path.join("weights")).unwrap(), b"newer");
        let file = root.path().join("file");
        write_atomic(&file, b"kept").unwrap();
        assert!(replace_folder(&file, |_| Ok(())).unwrap_err().to_string().contains("is a file"));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn tensors_have_the_rights_of_other_files() {
        let root = tempfile::tempdir().unwrap();
        let [tensors, other] = ["tensors", "other"].map(|name| root.path().join(name));
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![2], &[1, 2]).unwrap();
        write_tensors([("a", view)], None, &tensors).unwrap();
        write_atomic(&other, b"").unwrap();
        let rights = |path: &Path| fs::metadata(path).unwrap().permissions();
        assert_eq!(rights(&tensors), rights(&other));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "nothing temporary is left");
    }
}
