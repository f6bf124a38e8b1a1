//! Compiles the CUDA kernels with NVRTC, NVIDIA's run-time compiler, which needs neither a GPU nor the toolkit.

use std::path::Path;

use anyhow::{Result, bail};

use super::Outcome;
use crate::command::Step;
use crate::web::places::target;

/// NVRTC as a Python package: only its shared libraries are used.
const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12==12.9.86";

/// Gets NVRTC where it is missing, and compiles every kernel for every architecture.
pub(super) fn check(root: &Path) -> Result<Outcome> {
    if !cfg!(target_os = "linux") {
        return Ok(Outcome::Skipped("NVRTC is looked for on Linux only".to_owned()));
    }
    let target = target(root);
    let folder = target.join("nvrtc");
    let libraries = folder.join("nvidia/cuda_nvrtc/lib");
    if !libraries.exists() {
        if !Step::line("pip", "python3 -m pip --version").succeeds(root) {
            return Ok(Outcome::Skipped("python3 with pip is needed to get NVRTC".to_owned()));
        }
        let folder = folder.to_string_lossy();
        let pip = ["python3", "-m", "pip", "install", "--quiet", "--no-deps", "--target", &folder, PACKAGE];
        Step::new("get NVRTC", &pip).run(root)?;
        if !libraries.exists() {
            bail!("{PACKAGE} holds no {}", libraries.display());
        }
    }
    Step::line("CUDA kernels", "cargo test --release --workspace --test nvrtc -- --ignored --nocapture")
        .with("LD_LIBRARY_PATH", libraries.to_string_lossy())
        .run(root)?;
    Ok(Outcome::Passed)
}
