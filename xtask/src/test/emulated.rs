//! Runs the tests of a GPU on a CUDA driver that is the host (`tests/cuda/driver`): what a GPU would be given, launch by launch, with
//! kernels of every language, by the very programs that run on one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Outcome;
use crate::command::Step;

/// Builds the driver, and NVRTC's stand-in that gives kernels to a C++ compiler; runs the tests on both.
pub(super) fn check(root: &Path) -> Result<Outcome> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Ok(Outcome::Skipped("threads of a block are made for x86-64 Linux only".to_owned()));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let (folder, sources) = (target.join("emulated"), root.join("tests/cuda/driver"));
    let kernels = folder.join("kernels");
    // Those of an earlier run were made with what may have been other headers.
    if kernels.exists() {
        std::fs::remove_dir_all(&kernels).with_context(|| format!("{} cannot be removed", kernels.display()))?;
    }
    std::fs::create_dir_all(&kernels).with_context(|| format!("{} cannot be made", kernels.display()))?;
    let places = [("HEADERS", sources.clone()), ("PTX", root.join("shaders/src/ptx.cu"))];
    let places = places.map(|(name, path)| format!("-D{name}=\"{}\"", path.display()));
    for library in ["libcuda", "libnvrtc"] {
        let [source, library] =
            [sources.join(library).with_extension("cpp"), folder.join(library).with_extension("so")]
                .map(|path| path.display().to_string());
        let line = ["c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-o", &library, &source];
        let words: Vec<&str> = line.into_iter().chain(places.iter().map(String::as_str)).collect();
        Step::new("an emulated CUDA driver", &words).run(root)?;
    }
    let tests = "cargo test --release --workspace --test gpu -- --ignored --test-threads 1";
    Step::line("the tests of a GPU on an emulated one", tests)
        .with("LD_LIBRARY_PATH", folder.to_string_lossy())
        .with("CUDA_PATH", sources.to_string_lossy())
        .with("HALFBYTE_EMULATED_KERNELS", kernels.to_string_lossy())
        .with("CUBECL_AUTOTUNE_LEVEL", "0")
        .run(root)?;
    Ok(Outcome::Passed)
}
