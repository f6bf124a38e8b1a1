//! Progress on the terminal, and metrics in a JSONL file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use halfbyte::files::write_atomic;
use halfbyte::train::{Evaluated, Metrics};
use indicatif::{FormattedDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::console::{note, tell};
use crate::pulse::Pulse;

/// A spinner with a message, for loading.
pub(crate) fn spinner(message: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A bar of bytes, with how many there are a second and the time that is left.
pub(crate) fn bytes_bar(message: &str) -> Result<ProgressBar> {
    let style = "{msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    Ok(ProgressBar::new(0).with_style(ProgressStyle::with_template(style)?).with_message(message.to_string()))
}

/// The bar of a training run, and the file that its metrics go to.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// In place of a bar, where the standard error is no terminal.
    pulse: Option<Pulse>,
    file: File,
    started: Instant,
    /// Time in which no step was made.
    aside: Duration,
    tokens: usize,
    steps: usize,
    hidden: bool,
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
        Ok(Self::resume(steps, folder, 0)?.0)
    }

    /// The same after `done` steps of an earlier process; what it recorded up to there is kept, and returned.
    pub(crate) fn resume(steps: usize, folder: &Path, done: usize) -> Result<(Self, Vec<Value>)> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join("metrics.jsonl");
        let kept = if done > 0 { recorded(&path, done)? } else { vec![] };
        let text: String = kept.iter().map(|line| format!("{line}\n")).collect();
        write_atomic(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let style = "{bar:24} {pos}/{len} {msg} [{elapsed}, {eta} left]";
        let bar = ProgressBar::new(steps as u64).with_style(ProgressStyle::with_template(style)?);
        bar.set_position(done as u64);
        bar.reset_eta();
        let (pulse, started) = (bar.is_hidden().then(Pulse::default), Instant::now());
        let aside = Duration::ZERO;
        Ok((Self { bar, pulse, file, started, aside, tokens: 0, steps: 0, hidden: false }, kept))
    }

    /// Shows and records a step; tokens per second so far.
    pub(crate) fn step(&mut self, metrics: &Metrics) -> Result<f64> {
        self.tokens += metrics.tokens;
        self.steps += 1;
        let rate = self.tokens as f64 / self.seconds();
        self.bar.set_message(format!("loss {:.3}  {rate:.0} tokens/s", metrics.loss));
        self.bar.inc(1);
        let line = self.line(metrics, rate);
        if let Some(line) = self.pulse.as_mut().and_then(|pulse| pulse.beat(Instant::now(), line)) {
            note!("{line}");
        }
        self.record(&Line { metrics, tokens_per_second: rate })?;
        Ok(rate)
    }

    /// A step in a line.
    fn line(&self, Metrics { step, loss, learning_rate, .. }: &Metrics, rate: f64) -> String {
        let steps = self.bar.length().unwrap_or_default();
        let to_go = steps.saturating_sub(*step as u64);
        let left = FormattedDuration(Duration::from_secs_f64(self.seconds() / self.steps as f64 * to_go as f64));
        format!(
            "step {step} of {steps}: loss {loss:.4}, learning rate {learning_rate:.2e}, {rate:.0} tokens/s, {left} left"
        )
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

    /// Shows nothing from here on: something else has the terminal.
    pub(crate) fn hide(&mut self) {
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
        self.hidden = true;
    }

    /// Steps of the whole run, the time so far and the time that is left.
    pub(crate) fn clock(&self) -> (usize, Duration, Duration) {
        (self.bar.length().unwrap_or_default() as usize, self.started.elapsed(), self.bar.eta())
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
        if !self.hidden {
            self.bar.suspend(|| tell!("{line}"));
        }
    }

    /// Ends the bar; seconds and tokens per second of the whole run.
    pub(crate) fn finish(&mut self) -> (f64, f64) {
        self.bar.finish_and_clear();
        if let Some(line) = self.pulse.as_mut().and_then(Pulse::rest) {
            note!("{line}");
        }
        let seconds = self.seconds();
        (seconds, self.tokens as f64 / seconds.max(f64::MIN_POSITIVE))
    }
}

/// The lines of a metrics file about steps up to `done`. A last line that a killed process left half-written is no loss.
fn recorded(path: &Path, done: usize) -> Result<Vec<Value>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        text => text.with_context(|| path.display().to_string())?,
    };
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter(|line| line["step"].as_u64().is_some_and(|step| step <= done as u64)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_keeps_what_was_recorded_up_to_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines =
            "{\"step\":0,\"eval_loss\":4.5}\n{\"step\":1,\"loss\":3.25}\n{\"step\":2,\"loss\":3.0}\n{\"step\":3,\"lo";
        std::fs::write(&path, lines).unwrap();
        let (mut progress, kept) = Progress::resume(9, folder.path(), 1).unwrap();
        assert_eq!(kept.len(), 2);
        progress.record(&serde_json::json!({"step": 2})).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":0,\"eval_loss\":4.5}\n{\"step\":1,\"loss\":3.25}\n{\"step\":2}\n");
        Progress::new(9, folder.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }
}
