//! What several tasks need of the machine.

use std::path::Path;

use anyhow::{Result, bail};

use crate::command::Step;

/// Whether Debian's packages can be installed here; when they can, the lists of them are fresh.
pub(crate) fn apt(root: &Path) -> bool {
    let root_user = Step::line("user", "id -u").output(root).is_ok_and(|(_, id)| id.trim() == "0");
    root_user
        && Step::line("apt", "apt-get --version").succeeds(root)
        && Step::line("package lists", "apt-get update -q").run(root).is_ok()
}

/// Makes sure that the compiler has a standard library for wasm32.
pub(crate) fn wasm_target(root: &Path) -> Result<()> {
    let libraries = Step::line("libraries", "rustc --print target-libdir --target wasm32-unknown-unknown");
    let installed =
        || libraries.output(root).is_ok_and(|(success, folder)| success && Path::new(folder.trim()).exists());
    if !installed() {
        if !Step::line("rustup", "rustup --version").succeeds(root) {
            bail!(
                "this Rust has no wasm32-unknown-unknown target and there is no rustup to add it: see https://rustup.rs"
            );
        }
        Step::line("add the wasm32 target", "rustup target add wasm32-unknown-unknown").run(root)?;
    }
    Ok(())
}
