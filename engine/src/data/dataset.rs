//! A file of records, tokenized.

use std::path::Path;

use super::{Example, TrainOn, read_jsonl, tokenize};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Tokenized examples.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Examples with at least one trained token.
    pub examples: Vec<Example>,
    /// Records of which nothing that is trained was left after cutting.
    pub skipped: usize,
}

impl Dataset {
    /// Reads and tokenizes a JSONL file.
    ///
    /// # Errors
    /// On the first bad line, with its number; when no example is left.
    pub fn load(path: &Path, tokenizer: &Tokenizer, max_length: usize, train_on: TrainOn) -> Result<Self> {
        let mut dataset = Self { examples: vec![], skipped: 0 };
        for (line, record) in read_jsonl(path)? {
            match tokenize(&record, tokenizer, max_length, train_on).map_err(|e| Error::line(path, line, e))? {
                Some(example) => dataset.examples.push(example),
                None => dataset.skipped += 1,
            }
        }
        if dataset.examples.is_empty() {
            let reason = format!("no answer is left after cutting to max_length = {max_length} tokens; raise it");
            return Err(Error::file(path, reason));
        }
        Ok(dataset)
    }

    /// Tokens of all examples.
    pub fn token_count(&self) -> usize {
        self.examples.iter().map(|e| e.tokens.len()).sum()
    }

    /// Tokens that the loss is taken on.
    pub fn trained_count(&self) -> usize {
        self.examples.iter().flat_map(|e| &e.trained).filter(|t| **t).count()
    }
}
