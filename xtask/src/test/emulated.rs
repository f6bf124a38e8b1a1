//! Runs the tests of a GPU on a CUDA driver that is the host (`tests/cuda/driver`): what a GPU would be given, launch by launch, with
//! kernels of every language, by the very programs that run on one. NVRTC compiles each of them as well, where it can be had.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Outcome, cuda};
use crate::command::Step;
use crate::files;
use crate::web::places::target;

/// All tests of a GPU.
const TESTS: &str = "cargo test --release --workspace --test gpu -- --ignored --test-threads 1";

/// Those that end within a minute: uploads, the optimizer's kernels, what lies between products, and a model with its gradients.
const QUICK: &str = "uploads factors many_at_once cross_entropy an_adapter_may_sit";

/// Where cargo looks for what it is to start a test by.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

/// Runs the quick ones.
pub(super) fn check(root: &Path) -> Result<Outcome> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Ok(Outcome::Skipped("threads of a block are made for x86-64 Linux only".to_owned()));
    }
    test(root, &format!("{TESTS} {QUICK}"))?;
    Ok(Outcome::Passed)
}

/// Runs a command, or all tests of a GPU where there is none.
pub(crate) fn run(root: &Path, command: &[String]) -> Result<()> {
    if command.is_empty() {
        return test(root, TESTS);
    }
    let words = [driver(root)?, command.to_vec()].concat();
    Step::new("on an emulated GPU", &words.iter().map(String::as_str).collect::<Vec<_>>()).run(root)
}

/// Cargo itself is not to see the variables: it would build what depends on CUDA's version anew.
fn test(root: &Path, tests: &str) -> Result<()> {
    Step::line("tests of a GPU on an emulated one", tests).with(RUNNER, driver(root)?.join(" ")).run(root)
}

/// Builds the driver, and NVRTC's stand-in that gives kernels to a C++ compiler; gives the words that put a command on both.
fn driver(root: &Path) -> Result<Vec<String>> {
    let target = target(root);
    let (folder, sources) = (target.join("emulated"), root.join("tests/cuda/driver"));
    let kernels = folder.join("kernels");
    // Those of an earlier run were made with what may have been other headers.
    files::remove(&kernels)?;
    std::fs::create_dir_all(&kernels).with_context(|| format!("{} cannot be made", kernels.display()))?;
    let places = [("HEADERS", sources.clone()), ("PTX", root.join("shaders/src/ptx.cu"))];
    let places = places.map(|(name, path)| format!("-D{name}=\"{}\"", path.display()));
    for library in ["libcuda", "libnvrtc"] {
        let [source, library] =
            [sources.join(library).with_extension("cpp"), folder.join(library).with_extension("so")]
                .map(|path| path.display().to_string());
        let line = ["c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-o", &library, &source];
        let words: Vec<&str> = line.into_iter().chain(places.iter().map(String::as_str)).chain(["-ldl"]).collect();
        Step::new("an emulated CUDA driver", &words).run(root)?;
    }
    let variables = [
        ("LD_LIBRARY_PATH", folder.clone()),
        ("CUDA_PATH", sources),
        ("HALFBYTE_EMULATED_KERNELS", kernels),
        // That a GPU of this name has passed the self-test is not for later runs to find.
        ("XDG_CACHE_HOME", folder.join("cache")),
        ("CUBECL_AUTOTUNE_LEVEL", "0".into()),
    ];
    // What a GPU's driver would compile, NVRTC compiles, too.
    let nvrtc = cuda::packages(root)?.map(|folder| ("HALFBYTE_EMULATED_NVRTC", folder));
    let variables = variables.into_iter().chain(nvrtc).map(|(name, value)| format!("{name}={}", value.display()));
    Ok(std::iter::once("env".to_owned()).chain(variables).collect())
}
