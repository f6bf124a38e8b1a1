//! Where things lie on the machine that builds, which is nobody's business: the compiler writes the path of each source file that can
//! panic into the module, and these flags have it write paths that are the same on every machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::Step;
use crate::files;

/// Adds to the flags of `.cargo/config.toml`, which `RUSTFLAGS` would put aside.
const VARIABLE: &str = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS";

/// The folders that a module could name, and what it names in their place. Of two that hold a file the later one counts.
fn folders(root: &Path) -> Vec<(PathBuf, &'static str)> {
    let home = home();
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".cargo")));
    let mut folders: Vec<(PathBuf, &str)> = home.into_iter().map(|home| (home, "/home")).collect();
    if let Some(cargo) = cargo {
        // A folder of sources is named for the registry that they came from, which may be a mirror.
        let sources = std::fs::read_dir(cargo.join("registry/src")).into_iter().flatten().flatten();
        let sources: Vec<_> = sources.map(|source| (source.path(), "/crates")).collect();
        folders.push((cargo, "/cargo"));
        folders.extend(sources);
    }
    folders.push((root.to_owned(), "/halfbyte"));
    folders.push((target(root), "/target"));
    folders
}

/// The user's folder; the root of the file system, which some containers have for one, is in every path and tells nothing.
fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| home.components().count() > 1)
}

/// The folder that cargo builds in.
pub(crate) fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}

/// The step, with its modules naming no folder of this machine.
pub(super) fn hidden(step: Step, root: &Path) -> Step {
    let flag = |(folder, name): (PathBuf, &str)| Some(format!("--remap-path-prefix={}={name}", folder.to_str()?));
    // Cargo splits the variable at spaces. A path with one stays as it is, and `check` says so.
    let flags = folders(root).into_iter().filter_map(flag).filter(|flag| !flag.contains(char::is_whitespace));
    let before = std::env::var(VARIABLE).ok();
    step.with(VARIABLE, before.into_iter().chain(flags).collect::<Vec<_>>().join(" "))
}

/// Looks for folders of this machine in the modules of the built site.
///
/// # Errors
/// When a module names one.
pub(super) fn check(root: &Path, dist: &Path) -> Result<()> {
    for file in files::below(dist)?.iter().filter(|file| file.ends_with(".wasm")) {
        let module = std::fs::read(dist.join(file)).with_context(|| format!("cannot read {file}"))?;
        let found = named(&module, folders(root).into_iter().map(|(folder, _)| folder));
        ensure!(
            found.is_none(),
            "{file} names {}, a folder of this machine; build in a folder without spaces in its path",
            found.unwrap_or_default().display()
        );
    }
    Ok(())
}

/// The first folder whose path, with a slash at its end, is in these bytes.
fn named(module: &[u8], mut folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.find(|folder| {
        let path = format!("{}/", folder.display());
        module.windows(path.len()).any(|bytes| bytes == path.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_named_folder_is_found() {
        let folders = || ["/home/someone", "/srv/halfbyte"].map(PathBuf::from).into_iter();
        assert_eq!(named(b"..panicked at /srv/halfbyte/engine/src/lib.rs", folders()), folders().nth(1));
        assert_eq!(named(b"..panicked at /halfbyte/engine/src/lib.rs", folders()), None);
        assert_eq!(named(b"", folders()), None);
    }

    #[test]
    fn sources_are_named_for_no_registry() {
        let root = Path::new("/srv/halfbyte");
        let names: Vec<_> = folders(root).into_iter().map(|(_, name)| name).collect();
        // Of two prefixes the later one counts, so what is inside comes after what holds it.
        let place = |name: &str| names.iter().rposition(|known| *known == name);
        assert!(place("/crates") > place("/cargo") || place("/crates").is_none());
        assert!(place("/cargo") > place("/home") && place("/halfbyte") > place("/home"));
        let line = hidden(Step::line("build", "cargo build"), root).to_string();
        assert!(line.contains("--remap-path-prefix=/srv/halfbyte=/halfbyte"), "{line}");
    }
}
