//! Watching a run: the bar, `metrics.jsonl`, TensorBoard's event file, the picture of the loss, a report to read in a browser
//! and `run.json`, which says what the run was made of.

mod chart;
pub(crate) mod dashboard;
mod hashes;
mod manifest;
mod report;
mod tensorboard;

use std::path::{Path, PathBuf};

use anyhow::Result;
use halfbyte::files::write_atomic;
use halfbyte::train::{Evaluated, Metrics, Recipe};
use halfbyte_memory::Plan;

use crate::progress::Progress;
use crate::source::Source;
use chart::Curves;
use dashboard::{Dashboard, Figures};
use manifest::Manifest;
use tensorboard::EventFile;

/// What is known about a run before its first step.
pub(crate) struct Start<'a> {
    /// The recipe as it is run; everything is written into its output folder.
    pub(crate) recipe: &'a Recipe,
    /// The file to write it to.
    pub(crate) recipe_file: &'a Path,
    /// The base model.
    pub(crate) base: &'a Source,
    /// Data files: the recipe's name and the file.
    pub(crate) data: Vec<(String, PathBuf)>,
    /// The device, in words.
    pub(crate) device: &'a str,
    /// How many processes train.
    pub(crate) processes: usize,
    /// How many parameters are trained, in words.
    pub(crate) trainable: String,
    /// Steps of the whole run.
    pub(crate) steps: usize,
    /// Steps that an earlier process did; what it recorded of them is kept.
    pub(crate) done: usize,
    /// Takes the whole terminal, in place of a bar.
    pub(crate) dashboard: bool,
}

/// A question, and its answers before and after training.
pub(crate) struct Sample {
    pub(crate) question: String,
    pub(crate) before: String,
    pub(crate) after: String,
}

/// A run being watched.
pub(crate) struct Watch {
    output: PathBuf,
    progress: Progress,
    dashboard: Option<Dashboard>,
    title: String,
    events: EventFile,
    curves: Curves,
    manifest: Manifest,
    recipe: String,
    trainable: String,
    plan: Option<Plan>,
}

impl Watch {
    /// Takes the terminal, writes `run.json` and the recipe to the output folder, and starts the clock. What an earlier run left there is
    /// replaced from here on.
    pub(crate) fn start(start: Start<'_>) -> Result<Self> {
        let output = Path::new(&start.recipe.output);
        let recipe = toml::to_string(start.recipe)?;
        let mut manifest = Manifest::start(&start, &recipe)?;
        let dashboard = start.dashboard.then(Dashboard::open).transpose()?;
        manifest.write(output)?;
        let begin = || -> Result<_> {
            write_atomic(start.recipe_file, recipe.as_bytes())?;
            let (progress, lines) = Progress::resume(start.steps, output, start.done)?;
            Ok((progress, lines, EventFile::create(output, start.done)?))
        };
        let (mut progress, lines, events) = begin().inspect_err(|error| {
            manifest.fail(&format!("{error:#}"));
            let _ = manifest.write(output);
        })?;
        if dashboard.is_some() {
            progress.hide();
        }
        Ok(Self {
            output: output.into(),
            progress,
            dashboard,
            title: format!("{} on {}, into {}", start.recipe.model, start.device, start.recipe.output),
            events,
            curves: Curves::from_metrics(&lines),
            manifest,
            recipe,
            trainable: start.trainable,
            plan: crate::plan::of(start.recipe, start.base.folder()),
        })
    }

    /// Shows and records a step.
    pub(crate) fn step(&mut self, metrics: &Metrics) -> Result<()> {
        let rate = self.progress.step(metrics)?;
        self.curves.push(metrics);
        let values = [
            ("train/loss", metrics.loss),
            ("train/grad_norm", metrics.grad_norm),
            ("train/learning_rate", metrics.learning_rate),
            ("train/epoch", metrics.epoch),
            ("train/tokens_per_second", rate),
        ];
        self.events.scalars(metrics.step, &values)?;
        self.draw(metrics, rate);
        Ok(())
    }

    /// Draws the dashboard, where there is one.
    fn draw(&mut self, metrics: &Metrics, tokens_per_second: f64) {
        let Some(dashboard) = &mut self.dashboard else { return };
        let mut lines = vec![
            ("loss", format!("{:.4}", metrics.loss)),
            ("gradient norm", format!("{:.3}", metrics.grad_norm)),
            ("learning rate", format!("{:.2e}", metrics.learning_rate)),
            ("epoch", format!("{:.2}", metrics.epoch)),
        ];
        lines.extend(self.curves.held_out.last().map(|(_, loss)| ("held-out loss", format!("{loss:.4}"))));
        lines.extend(self.plan.as_ref().map(|plan| ("memory, planned", halfbyte_memory::bytes(plan.peak()))));
        lines.push(("Ctrl-C", "saves and ends".into()));
        let (steps, elapsed, left) = self.progress.clock();
        let figures =
            Figures { title: &self.title, step: metrics.step, steps, tokens_per_second, elapsed, left, lines: &lines };
        if dashboard.show(&self.curves, &figures).is_err() {
            // The terminal is gone.
            self.dashboard = None;
        }
    }

    /// Records an evaluation.
    pub(crate) fn evaluation(&mut self, evaluated: &Evaluated) -> Result<()> {
        self.progress.evaluation(evaluated)?;
        let Evaluated { step, evaluation, .. } = evaluated;
        self.curves.held_out.push((*step, evaluation.loss));
        let values = [
            ("eval/loss", evaluation.loss),
            ("eval/perplexity", evaluation.perplexity),
            ("eval/mean_token_accuracy", evaluation.mean_token_accuracy),
        ];
        self.events.scalars(*step, &values)
    }

    /// Does what is no training, whose time does not count.
    pub(crate) fn aside<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.progress.aside(work)
    }

    /// Steps that this process made.
    pub(crate) fn steps(&self) -> usize {
        self.progress.steps()
    }

    /// Stops the clock after the last step; seconds and tokens per second of the steps.
    pub(crate) fn stop_clock(&mut self) -> (f64, f64) {
        self.dashboard = None;
        let (seconds, rate) = self.progress.finish();
        self.manifest.trained(seconds, rate);
        (seconds, rate)
    }

    /// Records that the run ended by an error, and the first such reason; what cannot be written then is left: the reason itself
    /// matters more.
    pub(crate) fn fail(&mut self, reason: &str) {
        if self.manifest.written.seconds.is_none() {
            self.stop_clock();
        }
        self.manifest.fail(reason);
        let _ = self.manifest.write(&self.output);
    }

    /// Draws the loss, and writes the report and the final `run.json`; `held_out` are the losses before the first step and of
    /// the adapter that was kept.
    pub(crate) fn finish(&mut self, held_out: Option<(f64, f64)>, samples: &[Sample]) -> Result<()> {
        self.manifest.finish(&self.curves);
        chart::write(&self.output.join("loss.svg"), &self.curves)?;
        let page = report::page(&report::Report {
            manifest: &self.manifest,
            recipe: &self.recipe,
            trainable: &self.trainable,
            plan: self.plan.as_ref(),
            curves: &self.curves,
            held_out,
            samples,
        })?;
        write_atomic(self.output.join("report.html"), page.as_bytes())?;
        self.manifest.write(&self.output)
    }
}
