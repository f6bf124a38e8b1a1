//! What each adapted layer gets: its rank and its scaling, by PEFT's patterns.

use fancy_regex::Regex;

use super::LoraConfig;
use crate::{Error, Result};

/// Rank and scaling of every layer, the patterns compiled.
pub(crate) struct Layers<'a> {
    config: &'a LoraConfig,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl<'a> Layers<'a> {
    /// Checks the configuration and compiles its patterns.
    ///
    /// # Errors
    /// On a number out of range, or a pattern that is no regular expression.
    pub(crate) fn new(config: &'a LoraConfig) -> Result<Self> {
        config.check()?;
        let ranks = config.rank_pattern.iter().map(|(key, rank)| Ok((path_end("rank_pattern", key)?, *rank)));
        let alphas = config.alpha_pattern.iter().map(|(key, alpha)| Ok((path_end("alpha_pattern", key)?, *alpha)));
        Ok(Self { config, ranks: ranks.collect::<Result<_>>()?, alphas: alphas.collect::<Result<_>>()? })
    }

    /// The rank of the layer at `path`.
    pub(crate) fn rank(&self, path: &str) -> usize {
        first(&self.ranks, path).unwrap_or(self.config.r)
    }

    /// What its branch's output is multiplied by.
    pub(crate) fn scaling(&self, path: &str) -> f64 {
        self.config.scaling_of(first(&self.alphas, path).unwrap_or(self.config.lora_alpha), self.rank(path))
    }
}

/// The value of the first pattern that matches.
fn first<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(path).unwrap_or(false)).map(|(_, value)| *value)
}

/// An expression for the end of a path, from a `.` or the beginning on (PEFT, `get_pattern_key`).
fn path_end(key: &str, pattern: &str) -> Result<Regex> {
    compile(key, pattern, &format!(r"^(.*\.)?({pattern})$"))
}

/// Compiles `whole`, which was made of the `pattern` of a key.
pub(super) fn compile(key: &str, pattern: &str, whole: &str) -> Result<Regex> {
    Regex::new(whole).map_err(|e| Error::Invalid(format!("{key}: `{pattern}` is no regular expression: {e}")))
}
