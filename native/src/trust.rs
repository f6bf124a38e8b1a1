//! CUDA GPUs whose self-test has passed: it is noted in the user's cache folder, and the kernels that it was passed by are chosen from
//! then on.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Where it is noted for a GPU and the kernels of this program.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) struct Mark(PathBuf);

impl Mark {
    /// Whether the self-test has passed.
    pub(crate) fn is_set(&self) -> bool {
        self.0.is_file()
    }

    /// Notes whether it has.
    pub(crate) fn set(&self, passed: bool) -> Result<()> {
        let noted = match passed {
            true => {
                let folder = self.0.parent().map_or(Ok(()), std::fs::create_dir_all);
                folder.and_then(|()| std::fs::write(&self.0, "passed\n"))
            }
            false if self.is_set() => std::fs::remove_file(&self.0),
            false => Ok(()),
        };
        noted.with_context(|| format!("{}: whether the self-test has passed cannot be noted", self.0.display()))
    }
}

#[cfg(feature = "cuda")]
impl Mark {
    /// For a CUDA GPU of this name; `None` where the system has no cache folder.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let file = format!("{plain}-{:016x}", halfbyte::backends::cuda_kernels());
        Some(Self(dirs::cache_dir()?.join("halfbyte").join("selftest").join(file)))
    }

    /// Has kernels chosen that wait for the self-test, if all GPUs of these names have passed it.
    pub(crate) fn recall<'a>(mut names: impl Iterator<Item = &'a str>) {
        if names.all(|name| Self::of(name).is_some_and(|mark| mark.is_set())) {
            halfbyte::backends::trust_cuda_kernels();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_can_be_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let mark = Mark(folder.path().join("selftest").join("NVIDIA-H200-0"));
        assert!(!mark.is_set());
        mark.set(false).unwrap();
        mark.set(true).unwrap();
        mark.set(true).unwrap();
        assert!(mark.is_set());
        mark.set(false).unwrap();
        assert!(!mark.is_set());
    }
}
