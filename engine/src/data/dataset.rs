//! Records, tokenized.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Example, Files, Format, Grouping, Record, TrainOn, parse_records, read_records, tokenize};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Tokenized examples, and how they go into batches.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// Examples with at least one trained token.
    pub examples: Vec<Example>,
    /// The records that they come from.
    pub counts: Counts,
    /// How they go into micro-batches.
    pub grouping: Grouping,
}

/// What became of records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records of each form.
    pub formats: BTreeMap<Format, usize>,
    /// Records that were cut.
    pub cut: usize,
    /// Records of which nothing that is trained was left after cutting.
    pub skipped: usize,
}

impl Counts {
    /// Records of all forms.
    pub fn records(&self) -> usize {
        self.formats.values().sum()
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (format, count) in &other.formats {
            *self.formats.entry(*format).or_default() += count;
        }
        self.cut += other.cut;
        self.skipped += other.skipped;
    }
}

/// A record after tokenizing and cutting.
pub(super) struct Row {
    format: Format,
    cut: bool,
    example: Option<Example>,
}

/// How records become examples.
pub(super) struct Reading<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) max_length: usize,
    pub(super) train_on: TrainOn,
}

impl Reading<'_> {
    /// The records of files, one after another: no more than one is held before it is tokenized.
    pub(super) fn files(&self, files: &[PathBuf]) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for path in files {
            read_records(path, &mut |place, format, record| self.row(path, place, format, &record, &mut rows))?;
        }
        Ok(rows)
    }

    /// The records of a file's bytes.
    pub(super) fn bytes(&self, path: &Path, bytes: &[u8]) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        parse_records(path, bytes, &mut |place, format, record| self.row(path, place, format, &record, &mut rows))?;
        Ok(rows)
    }

    fn row(&self, path: &Path, place: usize, format: Format, record: &Record, rows: &mut Vec<Row>) -> Result<()> {
        let whole = tokenize(record, self.tokenizer, self.train_on).map_err(|e| Error::line(path, place, e))?;
        let cut = whole.tokens.len() > self.max_length;
        rows.push(Row { format, cut, example: whole.cut(self.max_length) });
        Ok(())
    }
}

impl Dataset {
    /// Examples that come from no file, shuffled.
    pub fn new(examples: Vec<Example>) -> Self {
        Self { examples, ..Self::default() }
    }

    /// Reads and tokenizes a file, or the files to train on of a folder.
    ///
    /// # Errors
    /// On the first bad record, with its place; when no example is left.
    pub fn load(path: &Path, tokenizer: &Tokenizer, max_length: usize, train_on: TrainOn) -> Result<Self> {
        let rows = Reading { tokenizer, max_length, train_on }.files(&Files::find(path)?.train)?;
        Self::of_rows(rows, Grouping::Shuffled).not_empty(&path.display().to_string(), max_length)
    }

    pub(super) fn of_rows(rows: Vec<Row>, grouping: Grouping) -> Self {
        let mut dataset = Self { grouping, ..Self::default() };
        for row in rows {
            *dataset.counts.formats.entry(row.format).or_default() += 1;
            dataset.counts.cut += usize::from(row.cut);
            match row.example {
                Some(example) => dataset.examples.push(example),
                None => dataset.counts.skipped += 1,
            }
        }
        dataset
    }

    /// Refuses a data set of which nothing is trained.
    pub(super) fn not_empty(self, path: &str, max_length: usize) -> Result<Self> {
        if !self.examples.is_empty() {
            return Ok(self);
        }
        let reason = match self.counts.cut {
            0 => "no token of it is trained: its answers are empty as rendered".to_string(),
            _ => format!("no answer is left after cutting to data.max_length = {max_length} tokens; raise it"),
        };
        Err(Error::file(path, reason))
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
