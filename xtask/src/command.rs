//! Runs one command in the workspace and says how to run it again when it fails.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A command with a name, and the environment variables that it needs.
pub(crate) struct Step {
    /// What the summary calls it.
    pub(crate) name: &'static str,
    words: Vec<String>,
    variables: Vec<(&'static str, String)>,
    without: Vec<&'static str>,
}

impl Step {
    /// The command `words[0]` with its arguments.
    pub(crate) fn new(name: &'static str, words: &[&str]) -> Self {
        Self {
            name,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            variables: Vec::new(),
            without: Vec::new(),
        }
    }

    /// A command line without quotes, split at its spaces.
    pub(crate) fn line(name: &'static str, line: &str) -> Self {
        Self::new(name, &line.split(' ').collect::<Vec<_>>())
    }

    /// The same with an environment variable set.
    pub(crate) fn with(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((variable, value.into()));
        self
    }

    /// The same without an environment variable that it would misread.
    pub(crate) fn without(mut self, variable: &'static str) -> Self {
        self.without.push(variable);
        self
    }

    /// Runs it in `root`, its output going where ours goes.
    ///
    /// # Errors
    /// When it cannot be started or fails; the message is the line to type to see it again.
    pub(crate) fn run(&self, root: &Path) -> Result<()> {
        println!("\n== {}: {self}", self.name);
        let status = self.command(root).status().with_context(|| format!("cannot start `{}`", self.words[0]))?;
        if !status.success() {
            bail!("{} failed ({status}); to see it again: {self}", self.name);
        }
        Ok(())
    }

    /// Runs it in `root` quietly: whether it succeeded, and all that it wrote.
    pub(crate) fn output(&self, root: &Path) -> Result<(bool, String)> {
        let output = self.command(root).output().with_context(|| format!("cannot start `{}`", self.words[0]))?;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Ok((output.status.success(), text))
    }

    /// Whether it can be started and succeeds.
    pub(crate) fn succeeds(&self, root: &Path) -> bool {
        self.output(root).is_ok_and(|(success, _)| success)
    }

    fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).current_dir(root).envs(self.variables.iter().map(|(name, value)| (name, value)));
        for variable in &self.without {
            command.env_remove(variable);
        }
        // What `cargo run` tells this program about its own package must not reach other packages' builds.
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&key);
            }
        }
        command
    }
}

impl std::fmt::Display for Step {
    /// The line to type in a shell.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (variable, value) in &self.variables {
            write!(f, "{variable}='{value}' ")?;
        }
        f.write_str(&self.words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_step_prints_as_typed_and_reports_failure() {
        let step = Step::line("fail", "cargo no-such-subcommand").with("FLAGS", "-D warnings");
        assert_eq!(step.to_string(), "FLAGS='-D warnings' cargo no-such-subcommand");
        assert!(step.run(Path::new(".")).unwrap_err().to_string().contains("to see it again: FLAGS="));
        assert!(!step.succeeds(Path::new(".")));
        assert!(Step::line("version", "cargo --version").succeeds(Path::new(".")));
    }
}
