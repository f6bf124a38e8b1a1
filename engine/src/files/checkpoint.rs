//! Tensors of a model folder or a single file, memory-mapped and read one at a time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};

use super::ahead;
use super::digest::Sha256Of;
use super::index::{INDEX, ShardIndex};
use super::json::read_json;
use crate::{Error, Result};

/// As in `safetensors`.
const LONGEST_HEADER: u64 = 100_000_000;

/// One safetensors file: its bytes and where each tensor lies in them.
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    metadata: Metadata,
    /// Where the tensors begin.
    start: usize,
    /// The part that was asked for last.
    last: Mutex<Option<Range<usize>>>,
}

enum Bytes {
    Mapped(Arc<Mmap>),
    Owned(Vec<u8>),
    Source(Box<dyn Source>),
}

/// A file that is read piece by piece, where it can be neither mapped nor held: in a browser's storage.
#[allow(clippy::len_without_is_empty)]
pub trait Source {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Fills `into` with the bytes from `at` on.
    ///
    /// # Errors
    /// When they cannot be read whole.
    fn read_at(&self, at: u64, into: &mut [u8]) -> std::io::Result<()>;
}

impl Bytes {
    fn len(&self) -> u64 {
        match self {
            Self::Mapped(map) => map.len() as u64,
            Self::Owned(bytes) => bytes.len() as u64,
            Self::Source(source) => source.len(),
        }
    }

    /// A part, or nothing where it lies outside.
    fn part(&self, range: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        let outside = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let within = |bytes| <[u8]>::get(bytes, range.clone()).map(Cow::Borrowed).ok_or_else(outside);
        match self {
            Self::Mapped(map) => within(map),
            Self::Owned(bytes) => within(bytes),
            Self::Source(source) => {
                if range.end as u64 > source.len() {
                    return Err(outside());
                }
                let mut bytes = vec![0; range.len()];
                source.read_at(range.start as u64, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

/// A part of a mapped file, which stays mapped as long.
struct Part {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

/// The tensors of one or several safetensors files.
pub struct Checkpoint {
    /// The file or folder, for messages.
    pub path: PathBuf,
    shards: Vec<Shard>,
    /// Which shard holds a tensor.
    places: HashMap<String, usize>,
    /// Bytes of the tensors that were asked for.
    read: AtomicU64,
}

/// One tensor's bytes as they lie in the file.
#[derive(Clone, Debug)]
pub struct TensorBytes<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Row-major, little-endian elements.
    pub bytes: Cow<'a, [u8]>,
}

impl Shard {
    fn new(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let parsed = match &bytes {
            Bytes::Mapped(map) => SafeTensors::read_metadata(map).map_err(|e| e.to_string()),
            Bytes::Owned(bytes) => SafeTensors::read_metadata(bytes).map_err(|e| e.to_string()),
            Bytes::Source(source) => header_of(&**source),
        };
        let (header, metadata) = parsed.map_err(|e| {
            Error::file(&path, format!("not a whole safetensors file ({e}); download or write it again"))
        })?;
        Ok(Self { path, bytes, metadata, start: header + 8, last: Mutex::new(None) })
    }

    /// Where a tensor lies.
    fn range(&self, info: &TensorInfo) -> Range<usize> {
        let (from, to) = info.data_offsets;
        self.start + from..self.start + to
    }

    /// A part, which is read once, before or after its neighbours.
    fn read(&self, part: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        if let Bytes::Mapped(map) = &self.bytes {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            ahead::turn_to(map, &part, last.as_ref());
            *last = Some(part.clone());
        }
        self.bytes.part(part)
    }

    fn map(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|e| Error::file(&path, e))?;
        // SAFETY: the map is read-only. Another process that truncates the file while it is mapped can crash this one,
        // which is the price of never holding a model in host memory.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(&path, e))?;
        Self::new(path, Bytes::Mapped(Arc::new(map)))
    }
}

/// The length of a file's header and what it says, checked as [`SafeTensors::read_metadata`] does.
fn header_of(source: &dyn Source) -> std::result::Result<(usize, Metadata), String> {
    let mut length = [0; 8];
    source.read_at(0, &mut length).map_err(|e| e.to_string())?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > source.len() {
        return Err(format!("its header would have {length} bytes"));
    }
    let mut header = vec![0; length as usize];
    source.read_at(8, &mut header).map_err(|e| e.to_string())?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| e.to_string())?;
    let end = metadata.tensors().values().map(|info| info.data_offsets.1).max().unwrap_or(0);
    match 8 + length + end as u64 {
        whole if whole == source.len() => Ok((header.len(), metadata)),
        whole => Err(format!("it has {} bytes of {whole}", source.len())),
    }
}

impl Checkpoint {
    /// Opens a model folder: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// When no weights are there, a shard is missing or broken, or the index points outside the folder.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let index_path = folder.join(INDEX);
        let single = folder.join("model.safetensors");
        if single.exists() || !index_path.exists() {
            if !single.exists() {
                let reason = "holds neither model.safetensors nor model.safetensors.index.json; \
                              pickled weights (pytorch_model.bin) are not read: save them as safetensors";
                return Err(Error::file(folder, reason));
            }
            return Self::from_shards(folder, vec![Shard::map(single)?]);
        }
        let index = ShardIndex::parse(&index_path, &read_json(&index_path)?)?;
        let shards = index.shards().into_iter().map(|name| Shard::map(folder.join(name))).collect::<Result<_>>()?;
        let checkpoint = Self::from_shards(folder, shards)?;
        match index.tensors().find(|tensor| !checkpoint.places.contains_key(*tensor)) {
            Some(missing) => {
                Err(Error::key(&index_path, "weight_map", format!("`{missing}` is in none of the shards")))
            }
            None => Ok(checkpoint),
        }
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// When it is missing or broken.
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_shards(path, vec![Shard::map(path.to_path_buf())?])
    }

    /// Tensors from bytes in memory, such as a download; `name` is for messages.
    ///
    /// # Errors
    /// When the bytes are not a whole safetensors file.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::from_shards(Path::new(name), vec![Shard::new(name.into(), Bytes::Owned(bytes))?])
    }

    /// Tensors of files that are read piece by piece, by their names; `path` is for messages.
    ///
    /// # Errors
    /// When one is not a whole safetensors file, or two hold a tensor of the same name.
    pub fn from_sources(path: &Path, sources: Vec<(String, Box<dyn Source>)>) -> Result<Self> {
        let shard = |(name, source)| Shard::new(path.join::<String>(name), Bytes::Source(source));
        Self::from_shards(path, sources.into_iter().map(shard).collect::<Result<_>>()?)
    }

    fn from_shards(path: &Path, shards: Vec<Shard>) -> Result<Self> {
        let mut places = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.metadata.tensors().keys() {
                if places.insert(name.clone(), i).is_some() {
                    return Err(Error::file(&shard.path, format!("tensor `{name}` is in more than one shard")));
                }
            }
        }
        Ok(Self { path: path.to_path_buf(), shards, places, read: AtomicU64::new(0) })
    }

    /// Bytes of the tensors that were asked for so far, and of all.
    pub fn progress(&self) -> [u64; 2] {
        let all = self.shards.iter().map(|shard| shard.bytes.len() - shard.start as u64).sum();
        [self.read.load(Ordering::Relaxed), all]
    }

    /// Every tensor's name, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.places.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// A digest of the shards by which another model is told from this one. A shard is taken whole up to 64 MiB; of a larger
    /// one its length, its first MiB, where its tensors are listed, and the first 64 KiB of every 16 MiB: a large model is
    /// told apart in a moment, though not a change of a few of its weights.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn digest(&self) -> Result<String> {
        const WHOLE: usize = 64 << 20;
        const EVERY: usize = 16 << 20;
        let mut of_shards = Vec::new();
        for shard in &self.shards {
            let length = shard.bytes.len() as usize;
            let part = |from: usize, most: usize| {
                let part = shard.bytes.part(from..length.min(from + most));
                part.map_err(|e| Error::file(&shard.path, e))
            };
            let mut sha256 = Sha256Of::default();
            if length <= WHOLE {
                sha256.update(&part(0, length)?);
            } else {
                sha256.update(&part(0, 1 << 20)?);
                (0..length)
                    .step_by(EVERY)
                    .try_for_each(|from| part(from, 64 << 10).map(|part| sha256.update(&part)))?;
            }
            of_shards.extend(shard.bytes.len().to_le_bytes());
            of_shards.extend(sha256.finish().into_bytes());
        }
        Ok(super::sha256([of_shards.as_slice()]))
    }

    /// A tensor as it lies in the file.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<TensorBytes<'_>> {
        let (shard, info) = self.place(name)?;
        let range = shard.range(info);
        let bytes = shard.read(range).map_err(|e| Error::file(&shard.path, format!("tensor `{name}`: {e}")))?;
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(TensorBytes { dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// The same bytes for whoever holds them longer than the tensor's name is known. Of a mapped file they are no copy.
    pub(super) fn shared(&self, name: &str, tensor: TensorBytes<'_>) -> Result<bytes::Bytes> {
        let (shard, info) = self.place(name)?;
        Ok(match &shard.bytes {
            Bytes::Mapped(map) => bytes::Bytes::from_owner(Part { map: map.clone(), range: shard.range(info) }),
            _ => tensor.bytes.into_owned().into(),
        })
    }

    fn place(&self, name: &str) -> Result<(&Shard, &TensorInfo)> {
        let missing = || Error::file(&self.path, format!("tensor `{name}` is missing"));
        let shard = &self.shards[*self.places.get(name).ok_or_else(missing)?];
        Ok((shard, shard.metadata.info(name).ok_or_else(missing)?))
    }
}
