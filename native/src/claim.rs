//! The output folder of a run, which it takes before it reads anything and holds until it ends: the folder can be written, and no other
//! run writes there.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

/// The file that is locked. It stays, as a run that is killed leaves it: the system takes the lock away, whatever ends the process.
const LOCK: &str = "run.lock";

/// A folder that is taken.
pub(crate) struct Claim {
    folder: PathBuf,
    /// Folders that were made for it, the inner ones first.
    made: Vec<PathBuf>,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl Claim {
    /// Takes the folder that the key `output` names.
    ///
    /// # Errors
    /// When it cannot be written, or another run has it.
    pub(crate) fn of(output: &str) -> Result<Self> {
        if output.is_empty() {
            bail!("`output`: names no folder; the run needs one to write into");
        }
        let folder = Path::new(output);
        let absent = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let made = folder.ancestors().take_while(absent).map(Path::to_path_buf).collect();
        let path = folder.join(LOCK);
        let open = || -> std::io::Result<File> {
            fs::create_dir_all(folder)?;
            // The lock may be there already, in a folder that takes no new file.
            tempfile::tempfile_in(folder)?;
            OpenOptions::new().create(true).append(true).open(&path)
        };
        let lock = open()
            .map_err(|error| anyhow!("`output`: {output} cannot be written into ({error}); name another folder"))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => bail!(
                "`output`: another run writes into {output} and holds {}; wait until it ends, or name another folder",
                path.display()
            ),
            // A file system that has no locks is written into all the same.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { folder: folder.into(), made, _lock: lock }),
        }
    }
}

impl Drop for Claim {
    /// A run that was refused before it wrote anything leaves nothing.
    fn drop(&mut self) {
        if fs::read_dir(&self.folder).is_ok_and(|entries| entries.count() == 1) {
            let _ = fs::remove_file(self.folder.join(LOCK));
            // Only empty folders can be removed so.
            self.made.iter().for_each(|folder| drop(fs::remove_dir(folder)));
        }
    }
}
