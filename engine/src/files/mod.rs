//! Files of the Hugging Face world: safetensors and shards, 4-bit checkpoints, PEFT adapters; written so that a process
//! that dies leaves nothing half-written.

mod atomic;
mod bnb;
mod checkpoint;
mod peft;
mod read;

pub use atomic::{replace_folder, write_atomic};
pub use bnb::{nf4_weight, quantize_folder};
pub use checkpoint::{Checkpoint, TensorBytes, encode_bf16, encode_f32};
pub use peft::{AdapterConfig, adapter_config, load_adapter, save_adapter};
pub use read::{read, read_words};
