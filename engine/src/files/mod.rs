//! Files of the Hugging Face world: safetensors and shards, 4-bit checkpoints, PEFT adapters; written so that a process
//! that dies leaves nothing half-written.

mod atomic;
mod bnb;
mod checkpoint;
mod digest;
mod peft;
mod read;

pub use atomic::{remove_folder, replace_folder, sweep_folders, write_atomic};
pub use bnb::{nf4_weight, quantize_folder};
pub use checkpoint::{Checkpoint, TensorBytes, encode_bf16, encode_f32};
pub use digest::{Digest, sha256};
pub use peft::{AdapterConfig, adapter_config, adapter_files, load_adapter, save_adapter};
pub use read::{read, read_words};
