//! Checks that no source file has grown to hold two ideas.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Outcome;
use crate::command::Step;

/// The most lines that a Rust file may have.
const LINES: usize = 400;

/// Fails when a tracked `.rs` file is longer than 400 lines, and names every such file.
pub(super) fn check(root: &Path) -> Result<Outcome> {
    // Through -z so that a name with unusual letters is not quoted.
    let list = Step::line("source files", "git ls-files -z --cached --others --exclude-standard -- *.rs");
    let Ok((true, files)) = list.output(root) else {
        return Ok(Outcome::Skipped("not a git checkout".to_owned()));
    };
    let mut long = Vec::new();
    for file in files.split_terminator('\0') {
        let path = root.join(file);
        // A file deleted but not yet committed is still listed.
        if !path.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().count();
        if lines > LINES {
            long.push(format!("{file}: {lines} lines"));
        }
    }
    ensure!(long.is_empty(), "more than {LINES} lines usually hold two things; split these:\n{}", long.join("\n"));
    Ok(Outcome::Passed)
}
