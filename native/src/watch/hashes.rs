//! SHA-256 of what a run was made of, computed while it runs.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use halfbyte::files::Digest;
use serde::Serialize;

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Hashed {
    /// Its name in its folder, or as the recipe names it.
    pub(super) name: String,
    pub(super) bytes: u64,
    /// None when it could not be read to its end.
    pub(super) sha256: Option<String>,
    /// Whether the hash is that of the hub's cache, which was checked when the file was downloaded.
    pub(super) from_cache: bool,
}

/// Hashes files on a thread of its own, one after the other: a model of 140 GB takes minutes, which no run waits for unless
/// it is over sooner. Large files of the hub's cache bear their hash as their name and are not read.
pub(super) struct Hashing(Option<JoinHandle<Vec<Hashed>>>);

impl Hashing {
    pub(super) fn start(files: Vec<(String, PathBuf)>) -> Self {
        let hash = move || files.into_iter().map(|(name, path)| hashed(name, &path)).collect();
        Self(std::thread::Builder::new().name("hashing".into()).spawn(hash).ok())
    }

    /// The hashes, waited for; none when they were taken before or the thread failed.
    pub(super) fn finish(&mut self) -> Option<Vec<Hashed>> {
        self.0.take()?.join().ok()
    }
}

fn hashed(name: String, path: &Path) -> Hashed {
    let bytes = std::fs::metadata(path).map_or(0, |data| data.len());
    match cached_hash(path) {
        Some(hash) => Hashed { name, bytes, sha256: Some(hash), from_cache: true },
        None => {
            Hashed { name, bytes, sha256: Digest::of_file(path).ok().map(|digest| digest.sha256), from_cache: false }
        }
    }
}

/// The hash that a link into the hub's cache points at: `blobs/SHA256`.
fn cached_hash(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    let name = target.file_name()?.to_str()?;
    let hash = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    (hash && target.parent()?.file_name()? == "blobs").then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_hash_of_its_content_and_a_link_into_the_cache_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("abc");
        std::fs::write(&file, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let found =
            Hashing::start(vec![("abc".into(), file.clone()), ("gone".into(), folder.path().join("gone"))]).finish();
        let found = found.unwrap();
        assert_eq!((found[0].sha256.as_deref(), found[0].bytes, found[0].from_cache), (Some(expected), 3, false));
        assert_eq!(found[1].sha256, None);
        #[cfg(unix)]
        {
            let blob = "0".repeat(64);
            std::fs::create_dir(folder.path().join("blobs")).unwrap();
            std::fs::write(folder.path().join("blobs").join(&blob), "abc").unwrap();
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(Path::new("blobs").join(&blob), &link).unwrap();
            assert_eq!(hashed("link".into(), &link).sha256, Some(blob));
        }
    }
}
