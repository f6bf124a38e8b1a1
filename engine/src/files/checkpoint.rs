//! Tensors of a model folder or a single file, memory-mapped and read one at a time.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::index::{INDEX, ShardIndex};
use super::json::read_json;
use crate::{Error, Result};

/// One safetensors file: its bytes and where each tensor lies in them.
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    metadata: Metadata,
    /// Where the tensors begin.
    start: usize,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// The tensors of one or several safetensors files.
pub struct Checkpoint {
    /// The file or folder, for messages.
    pub path: PathBuf,
    shards: Vec<Shard>,
    /// Which shard holds a tensor.
    places: HashMap<String, usize>,
}

/// One tensor's bytes as they lie in the file.
#[derive(Clone, Copy, Debug)]
pub struct TensorBytes<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Row-major, little-endian elements.
    pub bytes: &'a [u8],
}

impl Shard {
    fn new(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| {
            Error::file(&path, format!("not a whole safetensors file ({e}); download or write it again"))
        })?;
        Ok(Self { path, bytes, metadata, start: header + 8 })
    }

    fn map(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|e| Error::file(&path, e))?;
        // SAFETY: the map is read-only. Another process that truncates the file while it is mapped can crash this one,
        // which is the price of never holding a model in host memory.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(&path, e))?;
        Self::new(path, Bytes::Mapped(map))
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

    fn from_shards(path: &Path, shards: Vec<Shard>) -> Result<Self> {
        let mut places = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.metadata.tensors().keys() {
                if places.insert(name.clone(), i).is_some() {
                    return Err(Error::file(&shard.path, format!("tensor `{name}` is in more than one shard")));
                }
            }
        }
        Ok(Self { path: path.to_path_buf(), shards, places })
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
    pub fn digest(&self) -> String {
        const WHOLE: usize = 64 << 20;
        let mut of_shards = Vec::new();
        for shard in &self.shards {
            let bytes: &[u8] = &shard.bytes;
            let sampled = bytes.chunks(16 << 20).map(|part| &part[..part.len().min(64 << 10)]);
            let sha256 = match bytes.len() {
                ..=WHOLE => super::sha256([bytes]),
                _ => super::sha256(std::iter::once(&bytes[..1 << 20]).chain(sampled)),
            };
            of_shards.extend((bytes.len() as u64).to_le_bytes());
            of_shards.extend(sha256.into_bytes());
        }
        super::sha256([of_shards.as_slice()])
    }

    /// A tensor as it lies in the file.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<TensorBytes<'_>> {
        let missing = || Error::file(&self.path, format!("tensor `{name}` is missing"));
        let shard = &self.shards[*self.places.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        let (from, to) = info.data_offsets;
        let bytes = shard
            .bytes
            .get(shard.start + from..shard.start + to)
            .ok_or_else(|| Error::file(&shard.path, format!("tensor `{name}` lies outside the file")))?;
        Ok(TensorBytes { dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// A tensor of exactly this shape, widened to f32.
    ///
    /// # Errors
    /// When it is missing, of another shape, or of an element type that is no float.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        if tensor.shape != shape {
            let found = tensor.shape;
            return Err(Error::file(&self.path, format!("tensor `{name}` has shape {found:?}; expected {shape:?}")));
        }
        tensor.to_f32().ok_or_else(|| {
            Error::file(&self.path, format!("tensor `{name}` is {:?}; F32, F16 and BF16 are read", tensor.dtype))
        })
    }
}

impl TensorBytes<'_> {
    /// The elements widened to f32, exactly; none for a type that is no float of 16 or 32 bits.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let halves = |bytes: &[u8]| bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect::<Vec<_>>();
        Some(match self.dtype {
            Dtype::F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::BF16 => bytemuck::cast_slice::<u16, bf16>(&halves(self.bytes)).to_f32_vec(),
            Dtype::F16 => bytemuck::cast_slice::<u16, f16>(&halves(self.bytes)).to_f32_vec(),
            _ => return None,
        })
    }
}

/// f32 values as little-endian bytes.
pub fn encode_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// f32 values rounded to bf16, as little-endian bytes.
pub fn encode_bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
}
