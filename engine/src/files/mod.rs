//! Files of the Hugging Face world: safetensors and shards, 4-bit checkpoints, PEFT adapters; written so that a process
//! that dies leaves nothing half-written.

mod atomic;
mod bnb;
mod checkpoint;
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub mod hub;
mod peft;

pub use atomic::{replace_folder, write_atomic};
pub use bnb::{nf4_weight, quantize_folder, quantize_shards};
pub use checkpoint::{Checkpoint, TensorBytes, encode_bf16, encode_f32};
pub(crate) use peft::read;
pub use peft::{AdapterConfig, adapter_config, load_adapter, save_adapter};
