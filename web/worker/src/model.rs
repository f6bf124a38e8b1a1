//! Where a model's files come from: this site, the user's machine, the hub; the last two by way of the browser's storage.

use std::path::Path;

use halfbyte::files::{Checkpoint, Sha256Of, Source};
use halfbyte::text::Tokenizer;
use halfbyte_protocol::{Kind, ModelSource, Part};
use serde::Deserialize;
use web_sys::Blob;

use crate::error::{Error, Result};
use crate::fetch::{self, Meter};
use crate::inbox::{Parts, slice};
use crate::storage::{Folder, OpenFile};

/// The hub that a name is looked up in, where no other is named.
const HUB: &str = "https://huggingface.co";
/// The folder of models in the browser's storage.
pub(crate) const MODELS: &str = "models";
/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// Bytes of a file that are copied at a time.
const PIECE: f64 = (4 << 20) as f64;
/// What a model's folder holds beside its weights, as far as it matters here.
const TEXTS: [&str; 5] =
    ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// A model's files.
pub(crate) struct Files {
    name: String,
    place: Place,
}

enum Place {
    /// Addresses that begin with this.
    Site(String),
    /// Files of the user's machine, and the folder of the storage that they go to.
    Given(Vec<(String, Blob)>, Folder),
    /// A folder of the storage, filled before.
    Stored(Folder),
    /// A repository: its files with their lengths, where they are, and the folder that they are kept in.
    Hub(Vec<Sibling>, String, Folder),
}

/// A file of a repository.
#[derive(Clone, Deserialize)]
struct Sibling {
    rfilename: String,
    size: u64,
    lfs: Option<Lfs>,
}

/// What the hub knows of a large file.
#[derive(Clone, Deserialize)]
struct Lfs {
    sha256: String,
}

/// What the hub says of a repository.
#[derive(Deserialize)]
struct Repository {
    sha: String,
    siblings: Vec<Sibling>,
}

impl Files {
    /// Finds a model. Nothing of its weights is read.
    pub(crate) async fn find(source: &ModelSource, parts: &Parts) -> Result<Self> {
        let name = source.name().to_string();
        let place = match source {
            ModelSource::Site { url, .. } => Place::Site(url.clone()),
            ModelSource::Files { files, .. } if files.is_empty() => Place::Stored(folder(&name).await?),
            ModelSource::Files { files, .. } => {
                let file = |(name, part): &(String, Part)| {
                    let missing = || Error::request(format!("{name}: the message has no such file"));
                    Ok((name.clone(), parts.blob(*part).ok_or_else(missing)?))
                };
                Place::Given(files.iter().map(file).collect::<Result<_>>()?, folder(&name).await?)
            }
            ModelSource::Hub { endpoint, .. } => {
                let endpoint = if endpoint.is_empty() { HUB } else { endpoint.trim_end_matches('/') };
                let (repository, revision) = name.split_once('@').unwrap_or((&name, "main"));
                if repository.split('/').filter(|part| !part.is_empty()).count() != 2 {
                    return Err(Error::new(Kind::Setting, format!("`{name}` is no name of the hub; write org/name")));
                }
                let url = format!("{endpoint}/api/models/{repository}/revision/{revision}?blobs=true");
                let json = fetch::bytes(&url, "looking up the model").await?;
                let found: Repository = serde_json::from_slice(&json)
                    .map_err(|e| Error::new(Kind::Network, format!("{url}: not an answer of the hub: {e}")))?;
                let files = format!("{endpoint}/{repository}/resolve/{}", found.sha);
                let kept = folder(&format!("{repository}@{}", found.sha)).await?;
                Place::Hub(found.siblings, files, kept)
            }
        };
        Ok(Self { name, place })
    }

    /// A small file, where the model has it.
    async fn text(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.place {
            Place::Site(url) => fetch::optional(&format!("{url}{name}")).await,
            Place::Given(files, _) => match files.iter().find(|(file, _)| file == name) {
                Some((_, blob)) => slice(blob, 0.0, blob.size()).await.map(Some),
                None => Ok(None),
            },
            Place::Stored(folder) => folder.read(name).await,
            Place::Hub(files, url, folder) => match files.iter().find(|file| file.rfilename == name) {
                Some(file) => {
                    download(folder, file, url).await?;
                    folder.read(name).await
                }
                None => Ok(None),
            },
        }
    }

    /// `config.json`.
    pub(crate) async fn config(&self) -> Result<Vec<u8>> {
        let missing =
            || Error::new(Kind::File, format!("{}: has no config.json; a model's folder needs it", self.name));
        self.text("config.json").await?.ok_or_else(missing)
    }

    /// The tokenizer.
    pub(crate) async fn tokenizer(&self) -> Result<Tokenizer> {
        let missing =
            || Error::new(Kind::File, format!("{}: has no tokenizer.json; a model's folder needs it", self.name));
        let tokenizer = self.text("tokenizer.json").await?.ok_or_else(missing)?;
        let config = self.text("tokenizer_config.json").await?;
        let template = self.text("chat_template.jinja").await?.map(|t| String::from_utf8_lossy(&t).into_owned());
        let generation = self.text("generation_config.json").await?;
        Ok(Tokenizer::from_bytes(&self.name, &tokenizer, config.as_deref(), template, generation.as_deref())?)
    }

    /// The files of the weights, and their lengths as far as they are known.
    pub(crate) async fn shards(&self) -> Result<Vec<(String, u64)>> {
        let all: Vec<(String, u64)> = match &self.place {
            Place::Site(url) => vec![(SINGLE.into(), fetch::size(&format!("{url}{SINGLE}")).await.unwrap_or(0))],
            Place::Given(files, _) => files.iter().map(|(name, blob)| (name.clone(), blob.size() as u64)).collect(),
            Place::Stored(folder) => folder.names().await?.into_iter().map(|name| (name, 0)).collect(),
            Place::Hub(files, ..) => files.iter().map(|file| (file.rfilename.clone(), file.size)).collect(),
        };
        let single = all.iter().any(|(name, _)| name == SINGLE);
        let is_shard = |name: &str| match single {
            true => name == SINGLE,
            false => name.starts_with("model-") && name.ends_with(".safetensors"),
        };
        let shards: Vec<(String, u64)> = all.into_iter().filter(|(name, _)| is_shard(name)).collect();
        match shards.is_empty() {
            true => Err(Error::new(
                Kind::File,
                format!(
                    "{}: has no model.safetensors, in one file or several; pickled weights are not read",
                    self.name
                ),
            )),
            false => Ok(shards),
        }
    }

    /// The weights, brought here where they are not.
    pub(crate) async fn weights(&self) -> Result<Checkpoint> {
        let shards = self.shards().await?;
        let folder = match &self.place {
            Place::Site(url) => {
                let bytes = fetch::bytes(&format!("{url}{SINGLE}"), SINGLE).await?;
                return Ok(Checkpoint::from_bytes(&format!("{}/{SINGLE}", self.name), bytes)?);
            }
            Place::Given(files, folder) => {
                let wanted = |name: &str| TEXTS.contains(&name) || shards.iter().any(|(shard, _)| shard == name);
                for (name, blob) in files.iter().filter(|(name, _)| wanted(name)) {
                    copy(folder, name, blob).await?;
                }
                folder
            }
            Place::Stored(folder) => folder,
            Place::Hub(files, url, folder) => {
                for file in files.iter().filter(|file| shards.iter().any(|(shard, _)| *shard == file.rfilename)) {
                    download(folder, file, url).await?;
                }
                folder
            }
        };
        let mut sources: Vec<(String, Box<dyn Source>)> = Vec::new();
        for (shard, _) in shards {
            let file = folder.open(&shard).await?;
            sources.push((shard, Box::new(file)));
        }
        Ok(Checkpoint::from_sources(Path::new(&self.name), sources)?)
    }
}

/// The folder of a model in the storage.
async fn folder(name: &str) -> Result<Folder> {
    let name: String = name.chars().map(|c| if c.is_alphanumeric() || "-_.@".contains(c) { c } else { '-' }).collect();
    Folder::root().await?.folder(MODELS).await?.folder(&name).await
}

/// Copies a file of the user's machine into the storage.
async fn copy(folder: &Folder, name: &str, blob: &Blob) -> Result<()> {
    let (file, size) = (folder.open(name).await?, blob.size());
    let mut meter = Meter::new(&format!("keeping {name}"), size as u64);
    file.truncate(0)?;
    let mut at = 0.0;
    while at < size {
        let to = size.min(at + PIECE);
        file.append(&slice(blob, at, to).await?)?;
        meter.at(to as u64);
        at = to;
    }
    file.flush()
}

/// Fetches a file of a repository, or what is missing of it.
async fn download(folder: &Folder, sibling: &Sibling, url: &str) -> Result<()> {
    let Sibling { rfilename: name, size, lfs } = sibling;
    let file: OpenFile = folder.open(name).await?;
    if file.len() > *size {
        file.truncate(0)?;
    }
    if file.len() == *size {
        return Ok(());
    }
    let body = fetch::open(&format!("{url}/{name}"), file.len()).await?;
    if !body.partial {
        file.truncate(0)?;
    }
    let mut meter = Meter::new(&format!("downloading {name}"), *size);
    while let Some(piece) = body.piece().await? {
        file.append(&piece)?;
        meter.at(file.len());
    }
    file.flush()?;
    let failed = |reason: String| Err(Error::new(Kind::Network, format!("{url}/{name}: {reason}")));
    match (file.len(), lfs) {
        (length, _) if length != *size => {
            failed(format!("{length} of {size} bytes came; ask for it again, what is there is kept"))
        }
        (_, Some(Lfs { sha256: expected })) if digest(&file, name)? != *expected => {
            file.truncate(0)?;
            failed("what came is not what the hub says that it is (SHA-256), and is removed; ask for it again".into())
        }
        _ => Ok(()),
    }
}

/// The SHA-256 of a file in the storage.
fn digest(file: &OpenFile, name: &str) -> Result<String> {
    let (mut sha256, size) = (Sha256Of::default(), file.len());
    let mut meter = Meter::new(&format!("checking {name}"), size);
    let mut piece = vec![0; PIECE as usize];
    let mut at = 0;
    while at < size {
        let piece = &mut piece[..(size - at).min(PIECE as u64) as usize];
        file.read_at(at, piece).map_err(|e| Error::storage(name, &e.to_string().into()))?;
        sha256.update(piece);
        at += piece.len() as u64;
        meter.at(at);
    }
    Ok(sha256.finish())
}
