//! Low-rank adapters (LoRA, arXiv:2106.09685): which layers get one, how it starts, and what it computes.

mod branch;
mod config;
mod dora;
mod layers;
mod saved;
mod targets;

pub use branch::{Dropout, LoraBranch};
pub(crate) use config::one_or_many;
pub use config::{LoraConfig, Targets};
pub use dora::Dora;
pub(crate) use dora::SQUARES;
pub(crate) use layers::Layers;
pub(crate) use saved::{is_saved, set_trainable};
pub(crate) use targets::place;
pub use targets::{attach, trainable_line};
