//! A checkpoint as bytes by name, for a place without folders: the files of `checkpoint-N`, and back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::checkpoint::views;
use super::checkpoint::{
    Content, OPTIMIZER, RUN, RunFile, STATE, parse_run, parse_state, put_adapter, put_state, run_file,
};
use super::run::Run;
use super::state::TrainerState;
use super::trainer::Trainer;
use crate::files::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, AdapterFile, Checkpoint, Digest};
use crate::ops::Ops;
use crate::{Error, Result};

/// Files by name.
pub type CheckpointFiles = BTreeMap<String, Vec<u8>>;

/// The files of a checkpoint of where the run stands. `run.json` is to be written last: it says what the others are.
///
/// # Errors
/// When the device cannot be read.
pub async fn checkpoint_files<B: Ops>(trainer: &mut Trainer<B>, run: &Run) -> Result<CheckpointFiles> {
    let content = Content::read(trainer, run).await?;
    let failed = |e| Error::Invalid(format!("cannot encode the optimizer's state: {e}"));
    let optimizer = views(&content.optimizer).and_then(|views| safetensors::serialize(views, None)).map_err(failed)?;
    let mut files: CheckpointFiles = content.encoded().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
    files.insert(OPTIMIZER.to_string(), optimizer);
    let digests = files.iter().map(|(name, bytes)| (name.clone(), Digest::of(bytes))).collect();
    files.insert(RUN.to_string(), run_file(content.position, run, digests)?);
    Ok(files)
}

/// A checkpoint in memory that was found whole.
pub struct Snapshot {
    /// What it is called in messages.
    path: PathBuf,
    files: CheckpointFiles,
    /// What the run remembered of itself.
    pub state: TrainerState,
    /// The run that it is of.
    pub run: Run,
    /// Optimizer steps of the whole run as it then was.
    pub total_steps: usize,
}

impl Snapshot {
    /// Checks that files are those of a whole checkpoint; `path` is for messages.
    ///
    /// # Errors
    /// When one is missing or changed; it is named.
    pub fn open(path: impl Into<PathBuf>, files: CheckpointFiles) -> Result<Self> {
        let path = path.into();
        let file = |name: &str| files.get(name).ok_or_else(|| Error::file(path.join(name), "is missing"));
        let run_path = path.join(RUN);
        let RunFile { position, run, files: digests, .. } = parse_run(&run_path, file(RUN)?)?;
        if let Some(name) =
            digests.iter().find(|(name, digest)| files.get(*name).map(|f| Digest::of(f)).as_ref() != Some(*digest))
        {
            return Err(Error::file(path.join(name.0), "is not what was written: its length or SHA-256 differs"));
        }
        let state = parse_state(&path.join(STATE), file(STATE)?, &run_path, &position)?;
        Ok(Self { path, files, state, run, total_steps: position.total_steps })
    }

    /// Whether `run` continues this checkpoint's.
    ///
    /// # Errors
    /// On the first key that differs, with both values.
    pub fn check(&self, run: &Run) -> Result<()> {
        run.continues(&self.run, &self.path.join(RUN))
    }

    /// Puts the adapter, the optimizer's state and the position into a trainer of the same run.
    ///
    /// # Errors
    /// When a file does not fit the model.
    pub fn restore<B: Ops>(mut self, trainer: &mut Trainer<B>) -> Result<()> {
        let mut take = |name: &str| self.files.remove(name).unwrap_or_default();
        let named = |name: &str| self.path.join(name).display().to_string();
        let config = AdapterConfig::parse(self.path.join(ADAPTER_CONFIG), &take(ADAPTER_CONFIG))?;
        let weights = Checkpoint::from_bytes(&named(ADAPTER_WEIGHTS), take(ADAPTER_WEIGHTS))?;
        put_adapter(trainer, &AdapterFile::new(config, weights)?, &self.path)?;
        put_state(trainer, self.state, &Checkpoint::from_bytes(&named(OPTIMIZER), take(OPTIMIZER))?)
    }
}
