//! Where a model or a data file comes from: a path of this machine, or else a name of the Hugging Face hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use halfbyte::data::{DataConfig, EXTENSIONS};
use halfbyte::files::hub::{Hub, HubEvent, HubName, ShardStream, Snapshot};
use indicatif::{ProgressBar, ProgressStyle};

use crate::console::note;

/// How file names end, beside those of data, that are never a data set's: a path that was mistyped is not asked for on the hub.
const FILES: [&str; 3] = ["txt", "toml", "safetensors"];

/// A model or an adapter: a folder, whose weights may still lie on the hub.
pub(crate) struct Source {
    folder: PathBuf,
    remote: Option<(Hub, HubName)>,
}

impl Source {
    /// Finds `name`: a folder of this machine, or a repository of the hub, of which only what describes the model is fetched.
    pub(crate) fn open(name: &str) -> Result<Self> {
        if Path::new(name).exists() {
            return Ok(Self { folder: name.into(), remote: None });
        }
        let Some(hub_name) = HubName::model(name) else { return Err(neither(name, "folder", "org/name[@revision]")) };
        let hub = Hub::from_env()?;
        let (folder, commit) = fetch(name, "folder", |progress| {
            let snapshot = hub.snapshot(&hub_name, progress)?;
            Ok((snapshot.description(progress)?, snapshot.commit().to_string()))
        })?;
        // The weights are of the same commit, whatever is pushed meanwhile.
        Ok(Self { folder, remote: Some((hub, HubName { revision: commit, ..hub_name })) })
    }

    /// The folder of configuration and tokenizer.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit of a model of the hub.
    pub(crate) fn commit(&self) -> Option<&str> {
        self.remote.as_ref().map(|(_, name)| name.revision.as_str())
    }

    /// Whether the folder holds the weights already.
    pub(crate) fn is_whole(&self) -> bool {
        self.remote.is_none() || halfbyte::files::Checkpoint::open(&self.folder).is_ok()
    }

    /// The folder with the weights in it, downloaded first where they have to be.
    pub(crate) fn weights(&self) -> Result<&Path> {
        if let Some((hub, name)) = &self.remote {
            with_bars(|progress| hub.snapshot(name, progress)?.weights(progress))?;
        }
        Ok(&self.folder)
    }

    /// Hands the shards of a model of the hub to `job`, one at a time; none for a folder of this machine.
    pub(crate) fn shards<T>(
        &self,
        keep: bool,
        job: impl FnOnce(ShardStream<'_>) -> halfbyte::Result<T>,
    ) -> Result<Option<T>> {
        let Some((hub, name)) = &self.remote else { return Ok(None) };
        let snapshot: Snapshot<'_> = hub.snapshot(name, &mut |_| ())?;
        Ok(Some(with_bars(|progress| job(snapshot.shards(keep, progress)?))?))
    }
}

/// `config.json` of a model; nothing else is downloaded.
pub(crate) fn configuration(name: &str) -> Result<Option<PathBuf>> {
    if Path::new(name).exists() {
        return Ok(Some(Path::new(name).join("config.json")));
    }
    let Some(hub_name) = HubName::model(name) else { return Ok(None) };
    let hub = Hub::from_env()?;
    fetch(name, "folder", |progress| hub.snapshot(&hub_name, progress)?.file("config.json", progress)).map(Some)
}

/// A data file: a path of this machine, or the file of one of `splits` in a data set of the hub.
fn data(name: &str, splits: &[&str]) -> Result<PathBuf> {
    let path = Path::new(name);
    let looks_like_a_file =
        !name.starts_with("datasets/") && EXTENSIONS.iter().chain(&FILES).any(|e| name.ends_with(&format!(".{e}")));
    if path.exists() || looks_like_a_file {
        return Ok(path.into());
    }
    let form = "org/name[@revision] or datasets/org/name/FILE";
    let Some(hub_name) = HubName::dataset(name) else { return Err(neither(name, "file", form)) };
    let hub = Hub::from_env()?;
    fetch(name, "file", |progress| {
        let snapshot = hub.snapshot(&hub_name, progress)?;
        snapshot.file(&snapshot.data_file(splits, &EXTENSIONS)?, progress)
    })
}

/// The data files of a run, on this machine: the settings with their paths in place of names, and each name with its path.
pub(crate) fn data_files(config: &DataConfig) -> Result<(DataConfig, Vec<(String, PathBuf)>)> {
    let (mut local, mut files) = (config.clone(), Vec::new());
    for (name, splits) in [(&mut local.train, &["train"][..]), (&mut local.test, &["test", "validation"])] {
        if !name.is_empty() {
            let path = data(name, splits)?;
            files.push((std::mem::replace(name, path.display().to_string()), path));
        }
    }
    Ok((local, files))
}

fn neither(name: &str, what: &str, form: &str) -> anyhow::Error {
    anyhow!("`{name}`: there is no such {what}, and it is no name of the hub, which has the form {form}")
}

/// Fetches from the hub what is not on this machine, and says both when it is not there either.
fn fetch<T>(
    name: &str,
    what: &str,
    job: impl FnOnce(&mut dyn FnMut(HubEvent<'_>)) -> halfbyte::Result<T>,
) -> Result<T> {
    with_bars(job).with_context(|| format!("`{name}`: there is no such {what} here, and the hub did not give it"))
}

/// Shows each download as a bar, or as a line where nobody looks at a terminal.
fn with_bars<T>(job: impl FnOnce(&mut dyn FnMut(HubEvent<'_>)) -> halfbyte::Result<T>) -> Result<T> {
    let style = "{msg} {bar:24} {bytes}/{total_bytes} [{bytes_per_sec}, {eta} left]";
    let style = ProgressStyle::with_template(style)?;
    let mut bar = ProgressBar::hidden();
    let mut progress = |event: HubEvent<'_>| match event {
        HubEvent::Begin { file, size, present } => {
            bar = ProgressBar::new(size).with_style(style.clone()).with_message(file.to_string());
            bar.set_position(present);
            // Otherwise the bytes of an earlier run would count as speed.
            bar.reset_eta();
            if bar.is_hidden() {
                note!("downloading {file}, {}", halfbyte_memory::bytes(size - present));
            }
        }
        HubEvent::Bytes(count) => bar.inc(count),
        HubEvent::End => bar.finish_and_clear(),
        HubEvent::Note(note) => bar.suspend(|| note!("note: {note}")),
    };
    Ok(job(&mut progress)?)
}
