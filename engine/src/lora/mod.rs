//! Low-rank adapters (LoRA, arXiv:2106.09685): which layers get one, how it starts, and what it computes.

mod branch;
mod config;
mod targets;

pub use branch::{Dropout, LoraBranch};
pub use config::{LoraConfig, Targets};
pub(crate) use targets::place;
pub use targets::{attach, trainable_line};
