//! `cargo xtask web`: the site as it is published, in `web/dist`.

mod expected;
mod offline;
mod pages;
pub(crate) mod places;
mod serve;
mod sizes;
mod tests;
mod tools;
mod wasm;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::Step;
use crate::files;

pub(crate) use serve::serve;
pub(crate) use tests::check;

/// Where the site is built.
pub(crate) fn dist(root: &Path) -> PathBuf {
    root.join("web/dist")
}

/// Builds the site: the app, the engine's worker, the widget, the pages around them, and what keeps a copy for offline use.
pub(crate) fn build(root: &Path) -> Result<()> {
    let tools = tools::Tools::get(root)?;
    let dist = dist(root);
    // Trunk reads NO_COLOR as a switch of its own and takes `1` for a mistake.
    let app = Step::line("the app", "trunk build --release --public-url ./ --color never").without("NO_COLOR");
    places::hidden(app, root).run(root)?;
    for file in files::below(&dist)?.iter().filter(|file| file.ends_with("_bg.wasm")) {
        tools.optimize(root, &dist.join(file), "-Oz")?;
    }
    wasm::worker(root, &tools, &dist)?;
    wasm::widget(root, &tools, &dist)?;
    pages::write(root, &dist)?;
    offline::write(root, &dist)?;
    places::check(root, &dist)?;
    sizes::report(&dist)
}
