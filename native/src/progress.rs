//! Progress on the terminal, and metrics in a JSONL file.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use halfbyte::train::Metrics;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// A spinner with a message, for loading.
pub(crate) fn spinner(message: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// The bar of a training run, and the file that its metrics go to.
pub(crate) struct Progress {
    bar: ProgressBar,
    file: File,
    started: Instant,
    tokens: usize,
}

/// A line of the metrics file.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    metrics: &'a Metrics,
    tokens_per_second: f64,
}

impl Progress {
    /// A bar of `steps`; metrics go to `metrics.jsonl` in `folder`.
    pub(crate) fn new(steps: usize, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join("metrics.jsonl");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let style = "{bar:24} {pos}/{len} {msg} [{elapsed}, {eta} left]";
        let bar = ProgressBar::new(steps as u64).with_style(ProgressStyle::with_template(style)?);
        Ok(Self { bar, file, started: Instant::now(), tokens: 0 })
    }

    /// Shows and records a step.
    pub(crate) fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.tokens += metrics.tokens;
        let rate = self.tokens as f64 / self.started.elapsed().as_secs_f64();
        self.bar.set_message(format!("loss {:.3}  {rate:.0} tokens/s", metrics.loss));
        self.bar.inc(1);
        self.record(&Line { metrics, tokens_per_second: rate })
    }

    /// Records anything as a line.
    pub(crate) fn record(&mut self, line: &impl Serialize) -> Result<()> {
        writeln!(self.file, "{}", serde_json::to_string(line)?).context("cannot write metrics.jsonl")
    }

    /// Prints a line above the bar.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    /// Ends the bar; seconds and tokens per second of the whole run.
    pub(crate) fn finish(&self) -> (f64, f64) {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        (seconds, self.tokens as f64 / seconds)
    }
}
