//! `cargo xtask test`: everything that must pass before a change goes in, in order, timed, stopping at the first failure.

mod advisories;
mod cuda;
pub(crate) mod emulated;
mod lengths;
mod tools;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command::Step;
use crate::{setup, web};

/// How a check ended.
pub(crate) enum Outcome {
    Passed,
    /// Could not be made here; the reason.
    Skipped(String),
}

/// A check: its name and what it does in the workspace's folder.
type Check = (&'static str, Box<dyn Fn(&Path) -> Result<Outcome>>);

/// Runs the checks; `quick` leaves out documentation, wasm, the web site and licences.
pub(crate) fn run(root: &Path, quick: bool) -> Result<()> {
    let mut times: Vec<(&str, Duration, Outcome)> = Vec::new();
    let start = Instant::now();
    for (name, check) in checks(quick) {
        let begun = Instant::now();
        match check(root) {
            Ok(outcome) => times.push((name, begun.elapsed(), outcome)),
            Err(error) => {
                summary(&times);
                println!("{name:<40} {:>8.1} s  FAILED", begun.elapsed().as_secs_f64());
                bail!("{error:#}");
            }
        }
    }
    summary(&times);
    println!("all passed in {:.0} s{}", start.elapsed().as_secs_f64(), if quick { " (--quick)" } else { "" });
    Ok(())
}

/// The checks in order: the cheap ones that fail most often come first.
fn checks(quick: bool) -> Vec<Check> {
    let command =
        |step: Step| -> Check { (step.name, Box::new(move |root: &Path| step.run(root).map(|()| Outcome::Passed))) };
    let mut checks = vec![
        command(Step::line("format", "cargo fmt --all --check")),
        ("at most 400 lines per source file", Box::new(lengths::check)),
        ("a Vulkan adapter in software", Box::new(tools::software_vulkan)),
        // Release, as the tests are: the dependencies are built once.
        command(Step::line("clippy", "cargo clippy --release --workspace --all-targets -- -D warnings")),
        // Tuning on a rasterizer takes minutes and says nothing about a GPU.
        command(Step::line("tests", "cargo test --release --workspace").with("CUBECL_AUTOTUNE_LEVEL", "0")),
    ];
    if !quick {
        checks.extend([
            ("CUDA kernels, without a GPU", Box::new(cuda::check) as Box<_>),
            ("the tests of a GPU, on an emulated one", Box::new(emulated::check) as Box<_>),
            command(
                Step::line(
                    "documentation",
                    "cargo doc --release --no-deps -p halfbyte -p halfbyte-memory -p halfbyte-nf4 -p halfbyte-shaders",
                )
                .with("RUSTDOCFLAGS", "-D warnings"),
            ),
            ("the wasm32 target", Box::new(|root: &Path| setup::wasm_target(root).map(|()| Outcome::Passed)) as Box<_>),
            command(wasm("the engine for wasm32", "-p halfbyte --no-default-features --features cpu")),
            command(wasm("the memory plan for wasm32", "-p halfbyte-memory")),
            command(worker()),
            ("the web site in a browser", Box::new(web::check) as Box<_>),
            ("cargo-deny", Box::new(tools::cargo_deny) as Box<_>),
            command(Step::line("licences, bans, sources", "cargo deny check licenses bans sources")),
            ("security advisories", Box::new(advisories::check) as Box<_>),
        ]);
    }
    checks
}

/// A check that something compiles for the browser.
fn wasm(name: &'static str, what: &str) -> Step {
    Step::line(name, &format!("cargo check --release --target wasm32-unknown-unknown {what}"))
}

/// The worker, and what of the engine is compiled into it: `web/worker/clippy.toml` lists what would block its only thread.
fn worker() -> Step {
    let packages = "-p halfbyte -p halfbyte-shaders -p halfbyte-worker --features halfbyte/wgpu";
    let line = format!("cargo clippy --release --target wasm32-unknown-unknown {packages} -- -D warnings");
    Step::line("the worker for wasm32: nothing blocks", &line).with("CLIPPY_CONF_DIR", "web/worker")
}

/// One line per check made.
fn summary(times: &[(&str, Duration, Outcome)]) {
    println!("\n{:<40} {:>10}", "check", "time");
    for (name, time, outcome) in times {
        let end = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
        };
        println!("{name:<40} {:>8.1} s  {end}", time.as_secs_f64());
    }
}
