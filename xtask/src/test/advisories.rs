//! Looks the dependencies up in the RustSec database, when it can be fetched.

use std::path::Path;

use anyhow::{Result, bail};

use super::Outcome;
use crate::command::Step;

/// What cargo-deny writes when the database, not a dependency, is the trouble.
const OFFLINE: &str = "failed to fetch advisory database";

/// Fails on an advisory against a dependency; without the internet it is skipped.
pub(super) fn check(root: &Path) -> Result<Outcome> {
    let step = Step::line("security advisories", "cargo deny check advisories");
    println!("\n== {}: {step}", step.name);
    let (success, text) = step.output(root)?;
    if success {
        print!("{text}");
        return Ok(Outcome::Passed);
    }
    if text.contains(OFFLINE) {
        return Ok(Outcome::Skipped("the RustSec database cannot be fetched here".to_owned()));
    }
    bail!("{text}\nto see it again: {step}");
}
