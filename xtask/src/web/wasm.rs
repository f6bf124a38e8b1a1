//! The modules beside the app: the engine's worker and the widget, each with a wasm of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::places;
use super::tools::Tools;
use crate::command::Step;
use crate::files;

/// The target of all of them.
const TARGET: &str = "wasm32-unknown-unknown";

/// Compiles a package for the browser; the folder that its module then lies in.
fn compile(root: &Path, package: &str, profile: &str) -> Result<PathBuf> {
    let line = format!("cargo build --profile {profile} --target {TARGET} -p {package}");
    places::hidden(Step::line("compile", &line), root).run(root)?;
    Ok(places::target(root).join(TARGET).join(profile))
}

/// The engine's worker with its module, and what it works on: the model and the data that ship. A checkout without a worker has
/// a site without one.
pub(super) fn worker(root: &Path, tools: &Tools, dist: &Path) -> Result<()> {
    let source = root.join("web/worker");
    if !source.exists() {
        return Ok(());
    }
    let module = compile(root, "halfbyte-worker", "release")?.join("halfbyte_worker.wasm");
    let folder = dist.join("worker");
    let mut words = vec!["wasm-bindgen", "--target", "web", "--no-typescript", "--remove-name-section"];
    words.extend(["--out-dir", text(&folder)?, text(&module)?]);
    Step::new("the worker's bindings", &words).run(root)?;
    tools.optimize(root, &folder.join("halfbyte_worker_bg.wasm"), "-O3")?;
    std::fs::copy(source.join("worker.js"), folder.join("worker.js")).context("cannot copy web/worker/worker.js")?;
    for shipped in ["models", "recipes"] {
        files::copy(&root.join(shipped), &dist.join(shipped))?;
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path of the checkout is not UTF-8")
}

/// The custom element: its script, its module, and the page that shows it in an iframe.
pub(super) fn widget(root: &Path, tools: &Tools, dist: &Path) -> Result<()> {
    let module = compile(root, "halfbyte-widget", "web")?.join("halfbyte_widget.wasm");
    let placed = dist.join("halfbyte-memory.wasm");
    std::fs::copy(&module, &placed).with_context(|| format!("cannot copy {}", module.display()))?;
    tools.optimize(root, &placed, "-Oz")?;
    let widget = root.join("web/widget");
    for file in ["halfbyte-memory.js", "embed.html", "embed.js"] {
        std::fs::copy(widget.join(file), dist.join(file)).with_context(|| format!("cannot copy {file}"))?;
    }
    files::copy(&root.join("web/demo"), &dist.join("demo"))
}
