//! Progress on the terminal, and metrics in a JSONL file.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use halfbyte::files::write_atomic;
use halfbyte::train::{Evaluated, Metrics};
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
    /// Time in which no step was made.
    aside: Duration,
    tokens: usize,
    steps: usize,
}

/// A line of the metrics file.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    metrics: &'a Metrics,
    tokens_per_second: f64,
}

impl Progress {
    /// A bar of `steps`; metrics go to `metrics.jsonl` in `folder`. Of a run that goes on after `done` steps what the file
    /// says of those stays; without any, the file begins anew.
    pub(crate) fn new(steps: usize, folder: &Path, done: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join("metrics.jsonl");
        let cannot = || format!("cannot write {}", path.display());
        let file = match done {
            0 => File::create(&path).with_context(cannot)?,
            _ => {
                write_atomic(&path, up_to(&std::fs::read(&path).unwrap_or_default(), done).as_bytes())?;
                File::options().append(true).open(&path).with_context(cannot)?
            }
        };
        let style = "{bar:24} {pos}/{len} {msg} [{elapsed}, {eta} left]";
        let bar = ProgressBar::new(steps as u64).with_style(ProgressStyle::with_template(style)?);
        let bar = bar.with_position(done as u64);
        bar.reset_eta();
        Ok(Self { bar, file, started: Instant::now(), aside: Duration::ZERO, tokens: 0, steps: 0 })
    }

    /// Shows and records a step.
    pub(crate) fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.tokens += metrics.tokens;
        self.steps += 1;
        let rate = self.tokens as f64 / self.seconds();
        self.bar.set_message(format!("loss {:.3}  {rate:.0} tokens/s", metrics.loss));
        self.bar.inc(1);
        self.record(&Line { metrics, tokens_per_second: rate })
    }

    /// Records an evaluation, and shows it if it is neither the first nor the last, which the run ends with.
    pub(crate) fn evaluation(&mut self, evaluated: &Evaluated) -> Result<()> {
        if (1..self.bar.length().unwrap_or_default()).contains(&(evaluated.step as u64)) {
            let Evaluated { step, evaluation, .. } = evaluated;
            let accuracy = 100.0 * evaluation.mean_token_accuracy;
            self.say(&format!("step {step}: held-out loss {:.4}, {accuracy:.1} % of tokens right", evaluation.loss));
        }
        self.record(evaluated)
    }

    /// Does what is no training, whose time does not count.
    pub(crate) fn aside<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.aside += started.elapsed();
        done
    }

    /// Seconds of training.
    fn seconds(&self) -> f64 {
        self.started.elapsed().saturating_sub(self.aside).as_secs_f64()
    }

    /// Steps that were made, without those of before.
    pub(crate) fn steps(&self) -> usize {
        self.steps
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
        let seconds = self.seconds();
        (seconds, self.tokens as f64 / seconds.max(f64::MIN_POSITIVE))
    }
}

/// The lines of a metrics file about steps up to `step`. A last line that was cut short is none.
fn up_to(file: &[u8], step: usize) -> String {
    let of_step = |line: &&str| {
        let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
        value.and_then(|value| value["step"].as_u64()).is_some_and(|at| at <= step as u64)
    };
    String::from_utf8_lossy(file).lines().filter(of_step).map(|line| format!("{line}\n")).collect()
}
