//! `run.json`: what a run was made of and how it ended, so that it can be told apart from others and repeated.

use std::path::{Path, PathBuf};

use anyhow::Result;
use halfbyte::files::{sha256, write_atomic};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Start;
use super::chart::Curves;
use super::hashes::{Hashed, Hashing};

/// How the files of a base model end.
const MODEL_FILES: [&str; 3] = ["json", "jinja", "safetensors"];

/// The manifest and what fills it.
pub(super) struct Manifest {
    pub(super) written: Written,
    hashing: Hashing,
    base_files: usize,
}

/// What `run.json` holds.
#[derive(Serialize)]
pub(super) struct Written {
    /// The version that ran.
    pub(super) halfbyte: &'static str,
    /// `running`, `finished` or `failed`.
    pub(super) status: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    pub(super) started: String,
    pub(super) ended: Option<String>,
    pub(super) device: String,
    /// System, architecture and threads.
    pub(super) host: Value,
    pub(super) base: Base,
    pub(super) data: Vec<Hashed>,
    pub(super) recipe_sha256: String,
    pub(super) recipe: Value,
    /// Where an earlier process had stopped.
    pub(super) resumed_at_step: usize,
    pub(super) seconds: Option<f64>,
    pub(super) tokens_per_second: Option<f64>,
    pub(super) steps: Option<usize>,
    pub(super) loss: Option<f64>,
    /// The held-out losses by step.
    pub(super) eval_loss: Vec<(usize, f64)>,
}

/// The base model.
#[derive(Serialize)]
pub(super) struct Base {
    pub(super) name: String,
    /// The commit, of a model of the hub.
    pub(super) revision: Option<String>,
    pub(super) files: Vec<Hashed>,
}

impl Manifest {
    /// Begins to hash; `recipe` is the text that was written.
    pub(super) fn start(start: &Start<'_>, recipe: &str) -> Result<Self> {
        let mut files = model_files(start.base.folder());
        let base_files = files.len();
        files.extend(start.data.iter().cloned());
        let written = Written {
            halfbyte: env!("CARGO_PKG_VERSION"),
            status: "running",
            reason: None,
            started: now(),
            ended: None,
            device: start.device.into(),
            host: json!({
                "os": std::env::consts::OS,
                "architecture": std::env::consts::ARCH,
                "threads": std::thread::available_parallelism().map_or(1, usize::from),
                "processes": start.processes,
            }),
            base: Base {
                name: start.recipe.model.clone(),
                revision: start.base.commit().map(str::to_string),
                files: vec![],
            },
            data: vec![],
            recipe_sha256: sha256([recipe.as_bytes()]),
            recipe: serde_json::to_value(start.recipe)?,
            resumed_at_step: start.done,
            seconds: None,
            tokens_per_second: None,
            steps: None,
            loss: None,
            eval_loss: vec![],
        };
        Ok(Self { written, hashing: Hashing::start(files), base_files })
    }

    /// The time and the speed of the steps.
    pub(super) fn trained(&mut self, seconds: f64, rate: f64) {
        self.written.seconds = Some(seconds);
        self.written.tokens_per_second = rate.is_finite().then_some(rate);
    }

    /// Records an early end, without waiting for hashes.
    pub(super) fn fail(&mut self, reason: &str) {
        self.written.status = "failed";
        self.written.reason.get_or_insert_with(|| reason.into());
        self.written.ended = Some(now());
    }

    /// Records the end and what came of the run.
    pub(super) fn finish(&mut self, curves: &Curves) {
        self.written.status = "finished";
        self.written.ended = Some(now());
        self.written.steps = curves.loss.last().map(|(step, _)| *step);
        self.written.loss = curves.loss.last().map(|(_, loss)| *loss);
        self.written.eval_loss = curves.held_out.clone();
        if let Some(mut hashes) = self.hashing.finish() {
            self.written.data = hashes.split_off(self.base_files.min(hashes.len()));
            self.written.base.files = hashes;
        }
    }

    /// Writes `run.json`.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.written)?;
        Ok(write_atomic(folder.join("run.json"), text.as_bytes())?)
    }
}

/// The files that make a model, by name.
fn model_files(folder: &Path) -> Vec<(String, PathBuf)> {
    let paths = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_model = |path: &PathBuf| {
        path.is_file() && path.extension().is_some_and(|end| MODEL_FILES.iter().any(|known| end == *known))
    };
    let name = |path: PathBuf| Some((path.file_name()?.to_string_lossy().into_owned(), path));
    let mut files: Vec<(String, PathBuf)> = paths.filter(of_model).filter_map(name).collect();
    files.sort();
    files
}

/// The time in UTC, to the second.
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}
