//! The modules beside the app: the engine's worker and the widget, each with a wasm of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tools::Tools;
use crate::command::Step;
use crate::files;

/// The target of all of them.
const TARGET: &str = "wasm32-unknown-unknown";

/// Compiles a package for the browser; the folder that its module then lies in.
fn compile(root: &Path, package: &str, profile: &str) -> Result<PathBuf> {
    let line = format!("cargo build --profile {profile} --target {TARGET} -p {package}");
    Step::line("compile", &line).run(root)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder));
    Ok(target.join(TARGET).join(profile))
}

/// The engine's worker, where the checkout has one.
pub(super) fn worker(root: &Path, _tools: &Tools, _dist: &Path) -> Result<()> {
    if !root.join("web/worker").exists() {
        return Ok(());
    }
    Ok(())
}

/// The custom element: its script, its module, and the page that shows it in an iframe.
pub(super) fn widget(root: &Path, tools: &Tools, dist: &Path) -> Result<()> {
    let module = compile(root, "halfbyte-widget", "widget")?.join("halfbyte_widget.wasm");
    let placed = dist.join("halfbyte-memory.wasm");
    std::fs::copy(&module, &placed).with_context(|| format!("cannot copy {}", module.display()))?;
    tools.optimize(root, &placed, "-Oz")?;
    let widget = root.join("web/widget");
    for file in ["halfbyte-memory.js", "embed.html", "embed.js"] {
        std::fs::copy(widget.join(file), dist.join(file)).with_context(|| format!("cannot copy {file}"))?;
    }
    files::copy(&root.join("web/demo"), &dist.join("demo"))
}
