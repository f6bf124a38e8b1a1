//! Files of the Hugging Face world: safetensors and shards, 4-bit checkpoints, PEFT adapters; written so that a process
//! that dies leaves nothing half-written.

mod adapter;
mod atomic;
mod bnb;
mod checkpoint;
mod json;
mod peft;

pub use adapter::{AdapterConfig, AdapterFile, Matrices, adapter_config};
pub use atomic::{replace_folder, write_atomic};
pub use bnb::{nf4_weight, quantize_folder};
pub use checkpoint::{Checkpoint, TensorBytes, encode_bf16, encode_f32};
pub(crate) use peft::read;
pub use peft::{load_adapter, save_adapter};
