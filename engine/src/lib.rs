//! Halfbyte: a QLoRA engine. A language model frozen in 4-bit NormalFloat, LoRA adapters trained on top, on any of
//! Burn's backends; it knows no screen and no shell.

pub mod backends;
pub mod data;
mod error;
pub mod failure;
pub mod files;
pub mod generate;
pub mod lab;
pub mod lora;
pub mod model;
pub mod ops;
pub mod optim;
pub mod text;
pub mod train;

pub use error::{Error, Result};
pub use halfbyte_nf4 as nf4;
