//! What building the site takes: trunk, wasm-bindgen of the version in Cargo.lock, and wasm-opt where it can be had.

use std::path::Path;

use anyhow::{Context, Result};

use crate::command::Step;
use crate::setup;

/// What Rust's compiler may use of WebAssembly, which Binaryen does not assume.
const FEATURES: &str = "--enable-bulk-memory --enable-nontrapping-float-to-int --enable-sign-ext --enable-mutable-globals \
                        --enable-reference-types --enable-multivalue --enable-simd";

/// Debian's package of wasm-opt.
const BINARYEN: &str = "apt-get install -y --no-install-recommends binaryen";

/// The oldest wasm-opt that was seen to leave whole what wasm-bindgen makes. 108, Debian 12's, gives it a table that its start
/// code cannot fill; a module without bindings it does well.
const WHOLE: u32 = 123;

/// The tools that are there.
pub(super) struct Tools {
    /// The version of wasm-opt.
    optimizer: Option<u32>,
}

impl Tools {
    /// Looks for the tools and installs what is missing.
    ///
    /// # Errors
    /// When trunk or wasm-bindgen can be neither found nor installed; without wasm-opt the files are larger.
    pub(super) fn get(root: &Path) -> Result<Self> {
        setup::wasm_target(root)?;
        if !Step::line("version", "trunk --version").without("NO_COLOR").succeeds(root) {
            install(root, "trunk --version ^0.21")?;
        }
        let wanted = locked(root, "wasm-bindgen")?;
        let version = Step::line("version", "wasm-bindgen --version").output(root);
        if !version.is_ok_and(|(_, text)| text.split_whitespace().last() == Some(&wanted)) {
            install(root, &format!("--force wasm-bindgen-cli --version ={wanted}"))?;
        }
        let found = || -> Option<u32> {
            let (_, text) = Step::line("version", "wasm-opt --version").output(root).ok()?;
            text.split_whitespace().find_map(|word| word.parse().ok())
        };
        if found().is_none() && setup::apt(root) {
            // A mirror that is out of reach costs some kilobytes, not the site.
            let _ = Step::line("install wasm-opt", BINARYEN).with("DEBIAN_FRONTEND", "noninteractive").run(root);
        }
        let optimizer = found();
        if optimizer.is_none() {
            println!("\n== no wasm-opt, so the modules stay as the compiler makes them; Debian: {BINARYEN}");
        }
        Ok(Self { optimizer })
    }

    /// Makes a module smaller or faster in its place, by `-Oz` or `-O3`, where there is a wasm-opt that can.
    ///
    /// # Errors
    /// When wasm-opt fails.
    pub(super) fn optimize(&self, root: &Path, module: &Path, goal: &str) -> Result<()> {
        let Some(version) = self.optimizer else { return Ok(()) };
        let path = module.to_str().context("the path of the checkout is not UTF-8")?;
        if path.ends_with("_bg.wasm") && version < WHOLE {
            println!("\n== wasm-opt {version} is too old for {path}; {WHOLE} or newer takes some hundredths off it");
            return Ok(());
        }
        let mut words = vec!["wasm-opt", goal, "--strip-debug", "--strip-producers", path, "-o", path];
        words.extend(FEATURES.split_whitespace());
        Step::new("wasm-opt", &words).run(root)
    }
}

/// Installs a program with the dependencies that it was published with; with newer or older ones where a mirror of the registry
/// lacks those.
fn install(root: &Path, what: &str) -> Result<()> {
    let with = |flag: &str| Step::line("install", &format!("cargo install {flag}{what}")).run(root);
    with("--locked ").or_else(|_| with(""))
}

/// The version of a package that Cargo.lock has.
fn locked(root: &Path, package: &str) -> Result<String> {
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let after = lock.split_once(&format!("name = \"{package}\"\nversion = \"")).map(|(_, after)| after);
    let version = after.and_then(|after| after.split('"').next());
    version.map(str::to_owned).with_context(|| format!("Cargo.lock has no {package}"))
}
