//! Checkpoints: a run's folder at a step, `OUTPUT/checkpoint-N`, whole or not there, from which it continues exactly.
//!
//! A folder holds the adapter as PEFT reads it, `optimizer.safetensors`, `trainer_state.json` as transformers reads it, and
//! `run.json`: what was run, where it stood, and the length and SHA-256 of each of the other files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::evaluation::Strategy;
use super::run::Run;
use super::state::TrainerState;
use super::trainer::Trainer;
use crate::files::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterFile, AdapterFiles, Checkpoint, Digest, adapter_files, attach_file,
    remove_folder, replace_folder, sweep_folders, write_atomic, write_tensors,
};
use crate::ops::Ops;
use crate::optim::StateTensor;
use crate::{Error, Result};

const PREFIX: &str = "checkpoint-";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "trainer_state.json";
pub(super) const RUN: &str = "run.json";
/// What `run.json` lists, at least.
const FILES: [&str; 4] = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, OPTIMIZER, STATE];
/// Version of the folder's layout.
const FORMAT: u32 = 1;
/// No `run.json` is longer.
const LONGEST_RUN: u64 = 16 << 20;

/// What is saved while training, under the names that transformers uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// When a checkpoint is saved. A run that is long enough for one also saves its last step.
    pub save_strategy: Strategy,
    /// Steps between checkpoints, with the strategy `steps`.
    pub save_steps: usize,
    /// Checkpoints that are kept: the oldest is removed, but never the best or the last. 0 keeps all.
    pub save_total_limit: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { save_strategy: Strategy::Steps, save_steps: 500, save_total_limit: 2 }
    }
}

impl CheckpointConfig {
    /// Whether the keys go together.
    ///
    /// # Errors
    /// When a checkpoint is to be saved every 0 steps.
    pub fn check(&self) -> Result<()> {
        match self.save_strategy {
            Strategy::Steps if self.save_steps == 0 => Err(Error::Invalid(
                "checkpoints.save_steps: must be at least 1; save_strategy = \"no\" saves none".into(),
            )),
            _ => Ok(()),
        }
    }

    /// Whether a checkpoint is due after `step` of `total` steps.
    pub fn due(&self, step: usize, total: usize, steps_per_epoch: usize) -> bool {
        let first = match self.save_strategy {
            Strategy::No => return false,
            Strategy::Steps => self.save_steps,
            Strategy::Epoch => steps_per_epoch,
        };
        self.save_strategy.due(step, self.save_steps, steps_per_epoch) || (step == total && total >= first)
    }
}

/// `run.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunFile {
    format: u32,
    /// The version that wrote it.
    halfbyte: String,
    #[serde(flatten)]
    pub(super) position: Position,
    #[serde(flatten)]
    pub(super) run: Run,
    /// The other files of the folder.
    pub(super) files: BTreeMap<String, Digest>,
}

/// Where a run stood. All of it follows from the step and the recipe; it is written so that a person can see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Optimizer steps that were done.
    step: usize,
    /// Steps of the whole run, which the schedule goes by.
    pub(super) total_steps: usize,
    /// Passes over the data that are behind, and the steps of the present one.
    epoch: usize,
    step_in_epoch: usize,
}

/// The folder of the checkpoint of a step.
pub fn checkpoint_folder(output: &Path, step: usize) -> PathBuf {
    output.join(format!("{PREFIX}{step}"))
}

/// The checkpoints in a run's folder, oldest step first. Whether they are whole is not looked at.
///
/// # Errors
/// When the folder cannot be listed; one that is not there has none.
pub fn checkpoints(output: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match std::fs::read_dir(output) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file(output, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::file(output, e))?.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|step| step.parse().ok());
        found.extend(step.map(|step| (step, output.join(name))));
    }
    found.sort();
    Ok(found)
}

/// Removes what a run that was killed left of checkpoints that it was writing or removing.
///
/// # Errors
/// When the file system refuses.
pub fn sweep(output: &Path) -> Result<()> {
    sweep_folders(output, PREFIX)
}

/// Removes the oldest checkpoints beyond `limit` (0 keeps all), but neither those of the steps in `keep` nor the last.
///
/// # Errors
/// When the file system refuses.
pub fn remove_checkpoints(output: &Path, limit: usize, keep: &[usize]) -> Result<()> {
    let all = checkpoints(output)?;
    let Some((last, _)) = all.last().filter(|_| limit > 0) else { return Ok(()) };
    let removable = all.iter().filter(|(step, _)| step != last && !keep.contains(step));
    removable.take(all.len().saturating_sub(limit)).try_for_each(|(_, folder)| remove_folder(folder))
}

/// Saves where the run stands, and removes what is too old.
///
/// # Errors
/// When the device cannot be read or the folder cannot be written; no checkpoint of before is touched then.
pub async fn save_checkpoint<B: Ops>(trainer: &mut Trainer<B>, run: &Run, output: &Path) -> Result<PathBuf> {
    let step = trainer.state.global_step;
    let folder = checkpoint_folder(output, step);
    let by_steps = |strategy, steps| if strategy == Strategy::Steps { steps } else { 0 };
    let (evaluation, saving) = (&run.recipe.evaluation, &run.recipe.checkpoints);
    trainer.state.eval_steps = by_steps(evaluation.eval_strategy, evaluation.eval_steps);
    trainer.state.save_steps = by_steps(saving.save_strategy, saving.save_steps);
    let best = trainer.state.best_global_step;
    let best_folder = best.map(|best| checkpoint_folder(output, best)).filter(|best| *best == folder || best.exists());
    trainer.state.best_model_checkpoint = best_folder.map(|best| best.display().to_string());
    let content = Content::read(trainer, run).await?;
    replace_folder(&folder, |temporary| {
        let mut files = BTreeMap::new();
        for (name, bytes) in content.encoded() {
            write_atomic(temporary.join(name), bytes)?;
            files.insert(name.to_string(), Digest::of(bytes));
        }
        files.insert(OPTIMIZER.to_string(), write_optimizer(&content.optimizer, &temporary.join(OPTIMIZER))?);
        write_atomic(temporary.join(RUN), &run_file(content.position, run, files)?)
    })?;
    let keep: Vec<usize> = best.into_iter().chain([step]).collect();
    remove_checkpoints(output, saving.save_total_limit, &keep)?;
    Ok(folder)
}

/// What a checkpoint holds, on the host.
pub(super) struct Content {
    adapter: AdapterFiles,
    state: Vec<u8>,
    pub(super) optimizer: BTreeMap<String, StateTensor>,
    pub(super) position: Position,
}

impl Content {
    /// Reads it from the device.
    pub(super) async fn read<B: Ops>(trainer: &mut Trainer<B>, run: &Run) -> Result<Self> {
        let (step, per_epoch) = (trainer.state.global_step, trainer.steps_per_epoch());
        let total_steps = trainer.total_steps();
        Ok(Self {
            adapter: adapter_files(trainer.model_mut(), &run.recipe.lora, &run.recipe.model).await?,
            optimizer: trainer.optimizer_state().await?,
            state: json(&trainer.state)?,
            position: Position { step, total_steps, epoch: step / per_epoch, step_in_epoch: step % per_epoch },
        })
    }

    /// The files that are encoded already, by name: all but the optimizer's and `run.json`.
    pub(super) fn encoded(&self) -> impl Iterator<Item = (&'static str, &Vec<u8>)> {
        self.adapter.iter().map(|(name, bytes)| (*name, bytes)).chain([(STATE, &self.state)])
    }
}

/// `run.json`, which is written last: it says what the other files are.
pub(super) fn run_file(position: Position, run: &Run, files: BTreeMap<String, Digest>) -> Result<Vec<u8>> {
    let halfbyte = env!("CARGO_PKG_VERSION").to_string();
    json(&RunFile { format: FORMAT, halfbyte, position, run: run.clone(), files })
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::Invalid(format!("cannot encode a checkpoint: {e}")))
}

/// Writes the optimizer's state tensor by tensor, so that it is not held twice.
fn write_optimizer(state: &BTreeMap<String, StateTensor>, path: &Path) -> Result<Digest> {
    let views = views(state).map_err(|e| Error::file(path, format!("cannot write it: {e}")))?;
    write_tensors(views, None, path)?;
    Digest::of_file(path)
}

/// The optimizer's state as the tensors of a file.
pub(super) fn views(
    state: &BTreeMap<String, StateTensor>,
) -> std::result::Result<Vec<(&String, TensorView<'_>)>, SafeTensorError> {
    let views = state
        .iter()
        .map(|(name, StateTensor { dtype, shape, bytes })| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)));
    views.collect()
}

/// Parses `run.json`; `path` is for messages.
pub(super) fn parse_run(path: &Path, bytes: &[u8]) -> Result<RunFile> {
    let broken = |e| Error::file(path, format!("not that of a whole checkpoint: {e}"));
    let file: RunFile = serde_json::from_slice(bytes).map_err(broken)?;
    if file.format != FORMAT {
        let format = file.format;
        return Err(Error::key(path, "format", format!("{format} is not known; this version reads {FORMAT}")));
    }
    if let Some(name) = file.files.keys().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        return Err(Error::key(path, "files", format!("`{name}` is no file of this folder")));
    }
    match FILES.iter().find(|name| !file.files.contains_key(**name)) {
        Some(name) => Err(Error::key(path, "files", format!("`{name}` is not listed"))),
        None => Ok(file),
    }
}

/// Parses `trainer_state.json`, which must be of the step that `run.json` at `run_path` is of.
pub(super) fn parse_state(path: &Path, bytes: &[u8], run_path: &Path, position: &Position) -> Result<TrainerState> {
    let state: TrainerState = serde_json::from_slice(bytes).map_err(|e| Error::file(path, e))?;
    match (position.step, state.global_step) {
        (file, state) if file != state => {
            Err(Error::key(run_path, "step", format!("is {file}, but {STATE} was written at step {state}")))
        }
        _ => Ok(state),
    }
}

/// Puts an adapter into the trainer's model; `path` is for messages.
pub(super) fn put_adapter<B: Ops>(trainer: &mut Trainer<B>, adapter: &AdapterFile, path: &Path) -> Result<()> {
    let before = trainer.model_mut().parameter_counts();
    attach_file(trainer.model_mut(), adapter, true)?;
    match trainer.model_mut().parameter_counts() == before {
        true => Ok(()),
        false => Err(Error::file(path, "its adapter does not have the parameters of this run's")),
    }
}

/// Puts the optimizer's state and the position into a trainer.
pub(super) fn put_state<B: Ops>(trainer: &mut Trainer<B>, state: TrainerState, file: &Checkpoint) -> Result<()> {
    let mut optimizer = BTreeMap::new();
    for name in file.names() {
        let tensor = file.tensor(name)?;
        let (shape, bytes) = (tensor.shape.to_vec(), tensor.bytes.to_vec());
        optimizer.insert(name.to_string(), StateTensor { dtype: tensor.dtype, shape, bytes });
    }
    trainer.restore(state, optimizer).map_err(|e| Error::file(&file.path, e))
}

/// A checkpoint that was found whole.
#[derive(Clone, Debug)]
pub struct SavedCheckpoint {
    /// Its folder.
    pub path: PathBuf,
    /// What the run remembered of itself.
    pub state: TrainerState,
    /// What was run.
    pub run: Run,
    /// Optimizer steps of the whole run as it then was.
    pub total_steps: usize,
}

impl SavedCheckpoint {
    /// Opens a checkpoint, and reads all of it once to see that it is whole.
    ///
    /// # Errors
    /// When a file is missing, truncated or changed; it is named.
    pub fn open(path: &Path) -> Result<Self> {
        let run_path = path.join(RUN);
        let broken = |e: &dyn std::fmt::Display| Error::file(&run_path, format!("not that of a whole checkpoint: {e}"));
        let length = std::fs::metadata(&run_path).map_err(|e| broken(&e))?.len();
        if length > LONGEST_RUN {
            return Err(broken(&format!("it has {length} bytes")));
        }
        let bytes = std::fs::read(&run_path).map_err(|e| broken(&e))?;
        let RunFile { position, run, files, .. } = parse_run(&run_path, &bytes)?;
        for (name, digest) in files.iter().filter(|(name, _)| FILES.contains(&name.as_str())) {
            digest.check(&path.join(name))?;
        }
        let state_path = path.join(STATE);
        let bytes = std::fs::read(&state_path).map_err(|e| Error::file(&state_path, e))?;
        let state = parse_state(&state_path, &bytes, &run_path, &position)?;
        Ok(Self { path: path.to_path_buf(), state, run, total_steps: position.total_steps })
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
    pub fn restore<B: Ops>(&self, trainer: &mut Trainer<B>) -> Result<()> {
        self.restore_adapter(trainer)?;
        put_state(trainer, self.state.clone(), &Checkpoint::open_file(self.path.join(OPTIMIZER))?)
    }

    /// Puts the adapter alone into the trainer's model.
    ///
    /// # Errors
    /// When it does not fit the model.
    pub fn restore_adapter<B: Ops>(&self, trainer: &mut Trainer<B>) -> Result<()> {
        put_adapter(trainer, &AdapterFile::open(&self.path)?, &self.path)
    }
}
