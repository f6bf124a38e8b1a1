//! Files of the Hugging Face world: safetensors and shards, 4-bit checkpoints, PEFT adapters, and what
//! other programs take of them; written so that a process
//! that dies leaves nothing half-written.

mod adapter;
mod ahead;
mod atomic;
mod bnb;
mod checkpoint;
mod digest;
mod export;
mod floats;
mod gguf;
mod held;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub mod hub;
mod index;
mod json;
mod merge;
mod peft;
mod read;
mod shards;

pub use adapter::{AdapterConfig, AdapterFile, Matrices, adapter_config};
pub(crate) use adapter::{CONFIG as ADAPTER_CONFIG, WEIGHTS as ADAPTER_WEIGHTS};
pub(crate) use atomic::write_tensors;
pub use atomic::{remove_folder, replace_folder, sweep_folders, write_atomic};
pub(crate) use bnb::is_quantized;
pub use bnb::{nf4_weight, quantize_folder, quantize_shards, stored_weight};
pub use checkpoint::{Checkpoint, Source, TensorBytes};
pub use digest::{Digest, Sha256Of, sha256};
pub use export::{Consumer, export_adapter};
pub(crate) use floats::quantized;
pub use floats::{encode_bf16, encode_f32};
pub use held::adapter_base;
pub use index::ShardIndex;
pub use merge::{MergeBase, MergeDtype, MergeOptions, WeightDrift, merge_folder};
pub use peft::{AdapterFiles, adapter_files, attach_file, load_adapter, save_adapter};
pub(crate) use read::{check_device, read_all};
pub use read::{read, read_words};
pub use shards::must_be_new;
