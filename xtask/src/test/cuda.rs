//! Compiles the CUDA kernels with NVRTC, NVIDIA's run-time compiler, which needs neither a GPU nor the toolkit.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::Outcome;
use crate::command::Step;
use crate::files;
use crate::web::places::target;

/// NVRTC and the headers of CUDA as Python packages, of which only the files are used, and the folders that these are in.
const PACKAGES: [(&str, &str); 2] = [
    ("nvidia-cuda-nvrtc-cu12==12.9.86", "cuda_nvrtc/lib"),
    ("nvidia-cuda-runtime-cu12==12.9.79", "cuda_runtime/include"),
];

/// Gets NVRTC where it is missing, and compiles every kernel for every architecture.
pub(super) fn check(root: &Path) -> Result<Outcome> {
    if !cfg!(target_os = "linux") {
        return Ok(Outcome::Skipped("NVRTC is looked for on Linux only".to_owned()));
    }
    let Some(nvidia) = packages(root)? else {
        return Ok(Outcome::Skipped("python3 with pip is needed to get NVRTC".to_owned()));
    };
    Step::line("CUDA kernels", "cargo test --release --workspace --test nvrtc -- --ignored --nocapture")
        .with("LD_LIBRARY_PATH", nvidia.join("cuda_nvrtc/lib").to_string_lossy())
        .run(root)?;
    Ok(Outcome::Passed)
}

/// The folder that the packages are in; nothing where they are missing and there is no pip to get them.
pub(super) fn packages(root: &Path) -> Result<Option<PathBuf>> {
    let folder = target(root).join("nvrtc");
    let nvidia = folder.join("nvidia");
    let missing = || PACKAGES.iter().find(|(_, files)| !nvidia.join(files).exists());
    if missing().is_some() {
        if !Step::line("pip", "python3 -m pip --version").succeeds(root) {
            return Ok(None);
        }
        // pip adds nothing to a folder that another package is in.
        files::remove(&folder)?;
        let folder = folder.to_string_lossy();
        let [nvrtc, headers] = PACKAGES.map(|(package, _)| package);
        let pip = ["python3", "-m", "pip", "install", "--quiet", "--no-deps", "--target", &folder, nvrtc, headers];
        Step::new("get NVRTC", &pip).run(root)?;
        if let Some((package, files)) = missing() {
            bail!("{package} holds no {files}");
        }
    }
    Ok(Some(nvidia))
}
