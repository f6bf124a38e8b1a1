//! Gets what the checks need and the machine lacks, or says how to.

use std::path::Path;

use anyhow::{Context, Result};

use super::Outcome;
use crate::command::Step;
use crate::setup;

/// Where drivers for the Vulkan loader are listed.
const DRIVERS: [&str; 3] = ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

/// Makes sure that lavapipe, Mesa's Vulkan on the CPU, is there on Linux: it lets the GPU code be tested without a GPU.
pub(super) fn software_vulkan(root: &Path) -> Result<Outcome> {
    if !cfg!(target_os = "linux") {
        return Ok(Outcome::Skipped("lavapipe is looked for on Linux only".to_owned()));
    }
    if let Some(driver) = lavapipe() {
        println!("\n== lavapipe: {driver}");
        return Ok(Outcome::Passed);
    }
    let install = "apt-get install -y --no-install-recommends mesa-vulkan-drivers libvulkan1";
    if setup::apt(root) {
        Step::line("lavapipe", install).with("DEBIAN_FRONTEND", "noninteractive").run(root)?;
        lavapipe()
            .context("mesa-vulkan-drivers is installed, but lists no lavapipe driver in /usr/share/vulkan/icd.d")?;
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Skipped(format!("no lavapipe driver, so wgpu is tested on a real GPU only; Debian: {install}")))
}

/// The file that tells the Vulkan loader of lavapipe.
fn lavapipe() -> Option<String> {
    let files = DRIVERS.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    files.map(|file| file.path().display().to_string()).find(|path| path.contains("lvp_icd"))
}

/// Makes sure that cargo-deny is there.
pub(super) fn cargo_deny(root: &Path) -> Result<Outcome> {
    if !Step::line("version", "cargo deny --version").succeeds(root) {
        Step::line("install cargo-deny", "cargo install --locked cargo-deny --version ^0.20").run(root)?;
    }
    Ok(Outcome::Passed)
}
