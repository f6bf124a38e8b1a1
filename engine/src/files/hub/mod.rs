//! Models and data sets by their names on the Hugging Face hub, downloaded into the cache that the hub's own tools use.
//!
//! Written here over a plain HTTP client: the crate `hf-hub` 0.5 takes file names, hashes and commits from the server
//! unchecked, panics on some answers, appends a whole answer to a part and knows neither HF_TOKEN, HF_HUB_CACHE nor
//! offline use; 1.0 brings an asynchronous runtime and 280 crates for a client that does not resume.

mod cache;
mod client;
mod download;
mod name;
mod settings;
mod stream;

use std::path::PathBuf;

use super::held::HELD;
use super::index::{INDEX, ShardIndex};
use super::json::read_json;
use super::shards::BESIDE;
use crate::{Error, Result};
use cache::RepoCache;
use client::{Client, Failure, Info};
use download::{Fetched, attempt, fetch, hub_error, refused};

pub use download::{HubEvent, HubProgress};
pub use name::{HubKind, HubName};
pub use settings::HubSettings;
pub use stream::ShardStream;

/// What a model or an adapter is described by, beside what is [`BESIDE`] its weights.
const DESCRIPTION: [&str; 3] = ["config.json", "adapter_config.json", HELD];
const WEIGHTS: &str = "model.safetensors";
const ADAPTER: &str = "adapter_model.safetensors";
/// How the names of weights end that run code when they are read.
const PICKLES: [&str; 5] = [".bin", ".pt", ".pth", ".pkl", ".ckpt"];

/// The hub, as the environment describes it.
pub struct Hub {
    client: Client,
}

/// A repository at one commit: what is fetched from it belongs together, whatever is pushed meanwhile.
pub struct Snapshot<'a> {
    hub: &'a Hub,
    name: HubName,
    commit: String,
    cache: RepoCache,
    /// What the hub lists; none when it was not asked.
    info: Option<Info>,
}

impl Hub {
    /// The hub that the environment names.
    ///
    /// # Errors
    /// When a variable holds what cannot be used.
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(HubSettings::from_env()?))
    }

    /// The hub of these settings.
    pub fn new(settings: HubSettings) -> Self {
        Self { client: Client::new(settings) }
    }

    /// Finds the commit that a name stands for, by one request; offline, the one that it stood for when it was last asked.
    /// A hub that cannot be reached is made up for by the cache, with a note.
    ///
    /// # Errors
    /// When there is no such repository or revision, it may not be read, or it is not in the cache either.
    pub fn snapshot(&self, name: &HubName, progress: HubProgress<'_>) -> Result<Snapshot<'_>> {
        let settings = &self.client.settings;
        let cache = RepoCache::new(&settings.cache, name);
        let cached = |cache: RepoCache| {
            let commit = cache.commit(name)?;
            cache.snapshot(&commit).is_dir().then(|| Snapshot {
                hub: self,
                name: name.clone(),
                commit,
                cache,
                info: None,
            })
        };
        if settings.offline {
            return cached(cache).ok_or_else(|| {
                let place = settings.cache.display();
                hub_error(name, format!("HF_HUB_OFFLINE is set and {place} does not hold it; unset it to download"))
            });
        }
        match attempt(|| self.client.info(name)) {
            Ok(info) => {
                cache.set_commit(name, &info.commit)?;
                Ok(Snapshot { hub: self, name: name.clone(), commit: info.commit.clone(), cache, info: Some(info) })
            }
            Err(Failure::Unreachable(reason)) => {
                let snapshot =
                    cached(cache).ok_or_else(|| hub_error(name, format!("{reason}, and it is not in the cache")))?;
                progress(HubEvent::Note(&format!("{reason}; {name} is taken from the cache")));
                Ok(snapshot)
            }
            Err(failure) => Err(refused(name, failure)),
        }
    }
}

impl Snapshot<'_> {
    /// The folder that holds what has been fetched; a model folder once all of a model is.
    pub fn folder(&self) -> PathBuf {
        self.cache.snapshot(&self.commit)
    }

    /// The commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The files of the repository and their sizes; of what is in the cache, when the hub was not asked.
    pub fn files(&self) -> Vec<(String, Option<u64>)> {
        match &self.info {
            Some(info) => info.files.clone(),
            None => listing(&self.folder(), ""),
        }
    }

    fn has(&self, file: &str) -> bool {
        match &self.info {
            Some(info) => info.files.iter().any(|(name, _)| name == file),
            None => self.folder().join(file).exists(),
        }
    }

    fn error(&self, reason: impl std::fmt::Display) -> Error {
        hub_error(&self.name, reason)
    }

    /// Fetches one file; no request is made for one that is in the cache.
    ///
    /// # Errors
    /// When it is not there, or cannot be downloaded whole.
    pub fn file(&self, file: &str, progress: HubProgress<'_>) -> Result<PathBuf> {
        let path = self.folder().join(file);
        if name::is_safe_path(file) && path.exists() {
            return Ok(path);
        }
        Ok(self.fetch(file, progress)?.path)
    }

    fn fetch(&self, file: &str, progress: HubProgress<'_>) -> Result<Fetched> {
        match &self.info {
            Some(_) if !self.has(file) => {
                Err(self.error(format!("the repository has no file `{file}` at this revision")))
            }
            Some(_) => fetch(&self.hub.client, &self.cache, &self.name, &self.commit, file, progress),
            None => Err(self.error(format!(
                "`{file}` is not in the cache ({}), and the hub was not asked for it; download it while online",
                self.folder().display()
            ))),
        }
    }

    /// Fetches what describes a model or an adapter: configuration, tokenizer, template. The folder.
    ///
    /// # Errors
    /// When the repository holds neither, or a file cannot be downloaded.
    pub fn description(&self, progress: HubProgress<'_>) -> Result<PathBuf> {
        if !self.has("config.json") && !self.has("adapter_config.json") {
            let reason = "holds neither config.json (a model) nor adapter_config.json (an adapter)";
            return Err(match self.info {
                Some(_) => self.error(reason),
                None => self.error(format!("its cache {} {reason}; download it while online", self.folder().display())),
            });
        }
        for file in DESCRIPTION.into_iter().chain(BESIDE).filter(|file| self.has(file)) {
            self.file(file, progress)?;
        }
        Ok(self.folder())
    }

    /// The files of the weights, safetensors only.
    ///
    /// # Errors
    /// When there are none, or only such as run code when they are read.
    pub fn weight_files(&self, progress: HubProgress<'_>) -> Result<Vec<String>> {
        if self.has(WEIGHTS) {
            return Ok(vec![WEIGHTS.into()]);
        }
        if !self.has(INDEX) && self.has(ADAPTER) {
            return Ok(vec![ADAPTER.into()]);
        }
        if !self.has(INDEX) {
            let files = self.files();
            let pickle = files.iter().map(|(name, _)| name).find(|name| PICKLES.iter().any(|end| name.ends_with(end)));
            return Err(self.error(match pickle {
                Some(pickle) => format!(
                    "holds its weights only as a pickle (`{pickle}`), which can run code when it is read, and is not read \
                     here; name a repository or a revision with safetensors"
                ),
                None => "holds no weights in safetensors (model.safetensors or its index)".into(),
            }));
        }
        let path = self.file(INDEX, progress)?;
        let index = ShardIndex::parse(&path, &read_json(&path)?)?;
        Ok(index.shards().into_iter().map(str::to_string).collect())
    }

    /// Fetches the weights of a model or an adapter.
    ///
    /// # Errors
    /// As [`weight_files`](Self::weight_files); when the disk has no room for them; when a download fails.
    pub fn weights(&self, progress: HubProgress<'_>) -> Result<()> {
        let files = self.weight_files(progress)?;
        self.check_room(&files)?;
        files.iter().try_for_each(|file| self.file(file, progress).map(|_| ()))
    }

    /// Fetches the shards one at a time, each to be used before the next is asked for; unless `keep` is set, one that was not
    /// in the cache before is removed again.
    ///
    /// # Errors
    /// As [`weight_files`](Self::weight_files).
    pub fn shards<'a>(&'a self, keep: bool, progress: HubProgress<'a>) -> Result<ShardStream<'a>> {
        let files = self.weight_files(progress)?;
        if keep {
            self.check_room(&files)?;
        }
        Ok(ShardStream::new(self, files, keep, progress))
    }

    /// Refuses before the first byte what would fill the disk.
    fn check_room(&self, files: &[String]) -> Result<()> {
        let Some(info) = &self.info else { return Ok(()) };
        let folder = self.folder();
        let missing = info.files.iter().filter(|(name, _)| files.contains(name) && !folder.join(name).exists());
        let needed: u64 = missing.filter_map(|(_, size)| *size).fold(0, u64::saturating_add);
        let cache = &self.hub.client.settings.cache;
        match free_space(cache) {
            Some(free) if needed > free => Err(self.error(format!(
                "{} are missing and {} has {} left; free some, point HF_HOME at a larger disk, or let `halfbyte quantize` \
                 write the model in 4 bits shard by shard",
                halfbyte_memory::bytes(needed),
                cache.display(),
                halfbyte_memory::bytes(free)
            ))),
            _ => Ok(()),
        }
    }

    /// The file of a data set that its name means: the one that is named, or else the only one of a known kind whose path
    /// has the word of the split in it, such as `data/train.jsonl`.
    ///
    /// # Errors
    /// When none fits, or several do: they are listed.
    pub fn data_file(&self, splits: &[&str], endings: &[&str]) -> Result<String> {
        if let Some(path) = &self.name.path {
            return Ok(path.clone());
        }
        let files = self.files().into_iter().map(|(name, _)| name);
        let known: Vec<String> = files.filter(|f| endings.iter().any(|e| f.ends_with(&format!(".{e}")))).collect();
        let words = |file: &str| -> Vec<String> {
            file.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase).collect()
        };
        let of_split = |split: &&str| -> Vec<&String> {
            known.iter().filter(|file| words(file).iter().any(|word| word == split)).collect()
        };
        let mut found = splits.iter().map(of_split).find(|files| !files.is_empty()).unwrap_or_default();
        if found.is_empty() && known.len() == 1 && splits.contains(&"train") {
            found = vec![&known[0]];
        }
        match found[..] {
            [file] => Ok(file.clone()),
            _ => {
                let listed = if found.is_empty() { known.iter().collect() } else { found };
                let listed: Vec<&str> = listed.iter().take(10).map(|file| file.as_str()).collect();
                let (kinds, wanted) = (endings.join(", "), splits.join(" or "));
                Err(self.error(match listed.is_empty() {
                    true => format!("the data set holds no file of a kind that is read here ({kinds})"),
                    false => format!(
                        "not one file of the data set is for {wanted}; name one as datasets/{}/PATH: {}",
                        self.name.id,
                        listed.join(", ")
                    ),
                }))
            }
        }
    }
}

/// Files under a folder, with `/` between the parts of a name.
fn listing(folder: &std::path::Path, prefix: &str) -> Vec<(String, Option<u64>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match std::fs::metadata(entry.path()) {
            Ok(data) if data.is_dir() => files.extend(listing(&entry.path(), &format!("{name}/"))),
            Ok(data) => files.push((name, Some(data.len()))),
            Err(_) => {}
        }
    }
    files.sort();
    files
}

/// Bytes left for whoever runs this on the disk of a folder, where the system tells.
fn free_space(folder: &std::path::Path) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let there = folder.ancestors().find(|folder| folder.exists())?;
        let space = rustix::fs::statvfs(there).ok()?;
        space.f_bavail.checked_mul(space.f_frsize)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        None
    }
}
