//! The data of a run: the keys of a recipe's `[data]`, and loading by them.

use std::path::Path;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::dataset::{Counts, Dataset, Reading, Row};
use super::{Files, Grouping, TrainOn};
use crate::model::ModelConfig;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// The data of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// File (`.jsonl`, `.json`, `.csv`, `.parquet`) or folder of files to train on.
    pub train: String,
    /// File or folder held out for evaluation; empty for none, or for the one in the folder `train`.
    pub test: String,
    /// Part of `train` that is held out where there is no `test`: a share below 1, or a count of records; 0 for none.
    pub test_size: f64,
    /// Tokens after which an example is cut, and what a packed bin holds.
    pub max_length: usize,
    /// Which tokens the loss is taken on.
    pub train_on: TrainOn,
    /// Whether a micro-batch is filled with whole examples up to `batch_size * max_length` tokens.
    pub packing: bool,
    /// Whether examples of like length go into a micro-batch together.
    pub group_by_length: bool,
    /// The day that a chat template is told where it asks for it; that of the run's beginning where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<NaiveDate>,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: String::new(),
            test: String::new(),
            test_size: 0.0,
            max_length: 2048,
            train_on: TrainOn::Completion,
            packing: false,
            group_by_length: false,
            date: None,
        }
    }
}

/// What is trained on and what is held out.
#[derive(Clone, Debug)]
pub struct Splits {
    /// To train on.
    pub train: Dataset,
    /// Held out.
    pub test: Option<Dataset>,
}

impl DataConfig {
    fn check(&self) -> Result<()> {
        let wrong = |key: &str, cure: &str| Err(Error::Invalid(format!("data.{key}: {cure}")));
        if self.train.is_empty() {
            return wrong("train", "names no file; set it in the recipe or by --train");
        }
        if self.max_length < 2 {
            return wrong("max_length", "must be at least 2: one token predicts nothing");
        }
        let size = self.test_size;
        if !(size.is_finite() && size >= 0.0) || (size >= 1.0 && size.fract() != 0.0) {
            return wrong("test_size", "must be 0, a share below 1, or a whole count of records");
        }
        if self.packing && self.group_by_length {
            return wrong("packing", "and data.group_by_length exclude each other: bins are packed by length already");
        }
        Ok(())
    }

    /// How examples go into micro-batches.
    pub fn grouping(&self) -> Grouping {
        match (self.packing, self.group_by_length) {
            (true, _) => Grouping::Packed { bin: self.max_length },
            (_, true) => Grouping::ByLength,
            _ => Grouping::Shuffled,
        }
    }

    /// Reads and tokenizes. Which records are held out by `test_size` depends on `seed` and their places alone.
    ///
    /// # Errors
    /// On settings that contradict each other, a file that cannot be read, the first bad record, or an empty split.
    pub fn load(&self, tokenizer: &Tokenizer, seed: u64) -> Result<Splits> {
        self.check()?;
        let found = Files::find(Path::new(&self.train))?;
        let test = match self.test.as_str() {
            "" => found.test,
            test => {
                let files = Files::find(Path::new(test))?;
                if files.test.is_empty() { files.train } else { files.test }
            }
        };
        if found.train.is_empty() {
            return Err(Error::file(&self.train, "holds files to test on but none to train on; name one `train`"));
        }
        let reading = self.reading(tokenizer);
        let rows = reading.files(&found.train)?;
        let held_out = match test.first() {
            None => None,
            Some(first) => Some((reading.files(&test)?, first.display().to_string())),
        };
        self.split(rows, held_out, seed)
    }

    /// [`load`](Self::load) from the bytes of the files `train` and `test`, for a place without files; the test's are of no
    /// use where none is named.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(&self, tokenizer: &Tokenizer, seed: u64, train: &[u8], test: &[u8]) -> Result<Splits> {
        self.check()?;
        let reading = self.reading(tokenizer);
        let rows = reading.bytes(Path::new(&self.train), train)?;
        let held_out = match self.test.as_str() {
            "" => None,
            name => Some((reading.bytes(Path::new(name), test)?, name.to_string())),
        };
        self.split(rows, held_out, seed)
    }

    fn reading<'a>(&self, tokenizer: &'a Tokenizer) -> Reading<'a> {
        Reading { tokenizer, max_length: self.max_length, train_on: self.train_on }
    }

    /// What is trained on and what is held out: the rows of a file, where there is one, or a part of those to train on.
    fn split(&self, rows: Vec<Row>, held_out: Option<(Vec<Row>, String)>, seed: u64) -> Result<Splits> {
        let whole = |rows, path: &str| Dataset::of_rows(rows, self.grouping()).not_empty(path, self.max_length);
        if let Some((_, file)) = held_out.as_ref().filter(|_| self.test_size > 0.0) {
            let reason =
                format!("is held out already; set data.test_size = {} to 0, or take the file away", self.test_size);
            return Err(Error::file(file, reason));
        }
        if self.test_size > 0.0 {
            let held = drawn(rows.len(), self.test_size, seed).map_err(|reason| Error::file(&self.train, reason))?;
            let (mut train, mut test) = (Vec::new(), Vec::new());
            for (row, held) in rows.into_iter().zip(held) {
                if held { test.push(row) } else { train.push(row) }
            }
            return Ok(Splits { train: whole(train, &self.train)?, test: Some(whole(test, &self.train)?) });
        }
        let test = held_out.map(|(rows, file)| whole(rows, &file)).transpose()?;
        Ok(Splits { train: whole(rows, &self.train)?, test })
    }
}

/// Which of `count` records are held out: those with the smallest numbers, where each record draws one by seed and place.
/// A record's number does not depend on how many come after it, so that records added to a file move few others.
fn drawn(count: usize, size: f64, seed: u64) -> std::result::Result<Vec<bool>, String> {
    let wanted = if size < 1.0 { (count as f64 * size).ceil() as usize } else { size as usize };
    if wanted >= count {
        return Err(format!("has {count} records; data.test_size = {size} leaves none to train on"));
    }
    let numbers = super::batch::numbers(count, seed);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|i| (numbers[*i], *i));
    let mut held = vec![false; count];
    for i in &order[..wanted] {
        held[*i] = true;
    }
    Ok(held)
}

impl Splits {
    /// What the run should not begin with, for both splits.
    ///
    /// # Errors
    /// As [`Dataset::check`].
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<Vec<String>> {
        self.of_both(|data| data.check(tokenizer))
    }

    /// What of the model does not fit the data.
    ///
    /// # Errors
    /// As [`Dataset::check_model`].
    pub fn check_model(&self, model: &ModelConfig, tokenizer: &Tokenizer) -> Result<Vec<String>> {
        self.of_both(|data| data.check_model(model, tokenizer))
    }

    /// The warnings that a check has of both splits.
    fn of_both(&self, check: impl Fn(&Dataset) -> Result<Vec<String>>) -> Result<Vec<String>> {
        let named = |key: &'static str| move |error: Error| Error::Invalid(format!("{key}: {error}"));
        let mut warnings = check(&self.train).map_err(named("data.train"))?;
        if let Some(test) = &self.test {
            let found = check(test).map_err(named("data.test"))?;
            warnings.extend(found.into_iter().map(|warning| format!("held out: {warning}")));
        }
        Ok(warnings)
    }

    /// Records of both splits.
    pub fn counts(&self) -> Counts {
        let mut counts = self.train.counts.clone();
        if let Some(test) = &self.test {
            counts.add(&test.counts);
        }
        counts
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_out_depends_on_seed_and_place() {
        let held = |count, size, seed| drawn(count, size, seed).unwrap();
        let places = |held: &[bool]| (0..held.len()).filter(|i| held[*i]).collect::<Vec<_>>();
        let one = held(1000, 0.1, 3);
        assert_eq!(places(&one).len(), 100);
        assert_eq!(one, held(1000, 100.0, 3));
        assert_ne!(one, held(1000, 0.1, 4));
        assert_eq!(places(&held(7, 0.1, 3)).len(), 1, "a share is rounded up");
        let more = held(1010, 100.0, 3);
        let stayed = places(&one).iter().filter(|i| more[**i]).count();
        assert!(stayed >= 97, "{stayed} of 100 are still held out after 10 records more");
        assert!(drawn(5, 5.0, 0).unwrap_err().contains("5 records"));
        assert!(drawn(0, 0.5, 0).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        let error = |change: &dyn Fn(&mut DataConfig)| {
            let mut config = DataConfig { train: "t.jsonl".into(), ..DataConfig::default() };
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(error(&|c| (c.packing, c.group_by_length) = (true, true)).contains("exclude each other"));
        for size in [-0.1, 1.5, f64::NAN, f64::INFINITY] {
            assert!(error(&|c| c.test_size = size).contains("data.test_size"), "{size}");
        }
        assert!(error(&|c| c.max_length = 1).contains("data.max_length"));
        assert!(error(&|c| c.train.clear()).contains("data.train"));
    }
}
