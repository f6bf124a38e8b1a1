//! `cargo xtask web-test`: the built site in a headless Chromium.

use std::path::Path;

use anyhow::{Context, Result};

use crate::command::Step;
use crate::setup;
use crate::test::Outcome;

/// Names that Chromium goes by.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const INSTALL: &str = "apt-get install -y --no-install-recommends";
const BROWSER: &str = "chromium";
const NODE: &str = "nodejs npm";

/// Builds the site and tests it; skipped with a reason where there is no Node or no Chromium and neither can be installed.
pub(crate) fn check(root: &Path) -> Result<Outcome> {
    let node = || ["node", "npm"].iter().all(|tool| Step::new("version", &[tool, "--version"]).succeeds(root));
    // Only what is missing: Debian's npm does not go with a Node from elsewhere.
    let missing: Vec<&str> = [(browser(root).is_none(), BROWSER), (!node(), NODE)]
        .into_iter()
        .filter_map(|(yes, of)| yes.then_some(of))
        .collect();
    if !missing.is_empty() && setup::apt(root) {
        let install = format!("{INSTALL} {}", missing.join(" "));
        // What it could not install is missing below.
        let _ = Step::line("install a browser", &install).with("DEBIAN_FRONTEND", "noninteractive").run(root);
    }
    let Some(browser) = browser(root).filter(|_| node()) else {
        let reason =
            format!("needs Node with npm, and Chromium ($CHROMIUM names another); Debian: {INSTALL} {BROWSER} {NODE}");
        return Ok(Outcome::Skipped(reason));
    };
    super::build(root)?;
    let folder = root.join("tests/browser");
    Step::line("what the browser tests need", "npm ci --no-audit --no-fund").run(&folder)?;
    let plans = folder.join("node_modules/plans.json");
    super::expected::write(&plans)?;
    let plans = plans.to_str().context("the path of the checkout is not UTF-8")?;
    Step::line("browser tests", "node --test --test-concurrency=1")
        .with("HALFBYTE_SITE", super::serve(super::dist(root), 0)?)
        .with("HALFBYTE_PLANS", plans)
        .with("CHROMIUM", browser)
        .run(&folder)?;
    Ok(Outcome::Passed)
}

/// The path of the browser, which is the one that $CHROMIUM names where it is set.
fn browser(root: &Path) -> Option<String> {
    let path = |name: &str| {
        let (found, path) = Step::new("where", &["which", name]).output(root).ok()?;
        found.then(|| path.trim().to_owned())
    };
    std::env::var("CHROMIUM").ok().or_else(|| BROWSERS.into_iter().find_map(path))
}
