//! The memory plan of a fine-tuning run, computed from its configuration alone: pure arithmetic, no tensor library.
//!
//! A plan is a list of lines, each with its formula; the peak is what stays for the whole run plus the largest of what
//! exists only for a while.

mod format;
mod gpus;
mod plan;
mod presets;
mod shape;

pub use format::{bytes, grouped};
pub use gpus::{GPUS, Gpu, fitting};
pub use plan::{Line, Method, Optimizer, Phase, Plan, Run, plan};
pub use presets::{names, preset};
pub use shape::{LinearShape, ModelShape};
