//! The run that the browser's storage holds: what was asked for, its data and its last checkpoints.

use std::path::Path;

use halfbyte::train::{CheckpointFiles, Snapshot};
use halfbyte_protocol::{Kind, ModelSource, SavedRun, Train};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::storage::Folder;

const RUN: &str = "run";
const REQUEST: &str = "request.json";
const TRAIN: &str = "train";
const TEST: &str = "test";
const CHECKPOINT: &str = "checkpoint-";
/// Says what the other files of a checkpoint are, and is written after them.
const LAST: &str = "run.json";
/// Checkpoints that are kept: should the last be broken, there is the one before it.
const KEPT: usize = 2;

/// What was asked for.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) model: ModelSource,
    pub(crate) train: Train,
}

/// The data of a run: the bytes of what is trained on and of what is held out.
#[derive(Clone, Default)]
pub(crate) struct Data {
    pub(crate) train: Vec<u8>,
    pub(crate) test: Vec<u8>,
}

/// The storage of a run.
pub(crate) struct Store(Folder);

impl Store {
    /// Begins a run, in place of one that is there. The model's files are in the storage already, or on the site.
    pub(crate) async fn begin(asked: &Asked, data: &Data) -> Result<Self> {
        let root = Folder::root().await?;
        root.remove(RUN).await?;
        let folder = root.folder(RUN).await?;
        let mut asked = asked.clone();
        if let ModelSource::Files { files, .. } = &mut asked.model {
            files.clear();
        }
        folder.write(TRAIN, &data.train).await?;
        folder.write(TEST, &data.test).await?;
        let json = serde_json::to_vec(&asked).map_err(|e| Error::new(Kind::Bug, e.to_string()))?;
        folder.write(REQUEST, &json).await?;
        Ok(Self(folder))
    }

    /// The run that is there, if any.
    pub(crate) async fn find() -> Result<Option<(Self, Asked, Data)>> {
        let Some(folder) = Folder::root().await?.existing(RUN).await else { return Ok(None) };
        let Some(json) = folder.read(REQUEST).await? else { return Ok(None) };
        let asked = serde_json::from_slice(&json).map_err(|e| {
            Error::new(Kind::Storage, format!("the saved run is of another version of this site ({e}); forget it"))
        })?;
        let train = folder.read(TRAIN).await?.unwrap_or_default();
        let test = folder.read(TEST).await?.unwrap_or_default();
        Ok(Some((Self(folder), asked, Data { train, test })))
    }

    /// Removes the run.
    pub(crate) async fn forget() -> Result<()> {
        Folder::root().await?.remove(RUN).await
    }

    /// Saves a checkpoint, and removes the oldest.
    pub(crate) async fn save(&self, step: usize, mut files: CheckpointFiles) -> Result<()> {
        let name = format!("{CHECKPOINT}{step}");
        self.0.remove(&name).await?;
        let folder = self.0.folder(&name).await?;
        let last = files.remove(LAST).unwrap_or_default();
        for (name, bytes) in &files {
            folder.write(name, bytes).await?;
        }
        folder.write(LAST, &last).await?;
        let steps = self.steps().await?;
        for step in steps.iter().rev().skip(KEPT) {
            self.0.remove(&format!("{CHECKPOINT}{step}")).await?;
        }
        Ok(())
    }

    /// The steps of the checkpoints, in order; whether they are whole is not looked at.
    async fn steps(&self) -> Result<Vec<usize>> {
        let names = self.0.names().await?;
        let mut steps: Vec<usize> =
            names.iter().filter_map(|name| name.strip_prefix(CHECKPOINT)?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The last checkpoint that is whole.
    pub(crate) async fn last(&self) -> Result<Option<Snapshot>> {
        for step in self.steps().await?.into_iter().rev() {
            let name = format!("{CHECKPOINT}{step}");
            let Some(folder) = self.0.existing(&name).await else { continue };
            let mut files = CheckpointFiles::new();
            for file in folder.names().await? {
                if let Some(bytes) = folder.read(&file).await? {
                    files.insert(file, bytes);
                }
            }
            match Snapshot::open(Path::new(&name), files) {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error) => log::warn!("{error}; the checkpoint before it is taken"),
            }
        }
        Ok(None)
    }

    /// For a page.
    pub(crate) async fn report() -> Result<Option<SavedRun>> {
        let Some((store, asked, _)) = Self::find().await? else { return Ok(None) };
        let Some(snapshot) = store.last().await? else { return Ok(None) };
        let (step, loss) = (snapshot.state.global_step, snapshot.state.losses().last().copied());
        Ok(Some(SavedRun { model: asked.model.name().into(), step, steps: snapshot.total_steps, loss }))
    }
}
