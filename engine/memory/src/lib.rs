//! The memory plan of a fine-tuning run, computed from its configuration alone: pure arithmetic, no tensor library.
//!
//! A run is walked through in the order in which the engine allocates and drops its tensors, by their shapes; the plan
//! lists what stays for the whole run and, for each phase, what exists when most exists.
//!
//! ```
//! use halfbyte_memory::{Run, fitting, plan, preset};
//!
//! let model = preset("llama-3.1-70b").expect("a known model");
//! let run = Run { rank: 16, length: 2048, inputs_on_host: true, ..Run::default() };
//! let plan = plan(&model, &run);
//! for line in &plan.lines {
//!     println!("{}: {} bytes, {}", line.name, line.bytes, line.formula);
//! }
//! assert!(plan.peak() < 48 << 30);
//! assert!(fitting(plan.peak(), run.compute_dtype).any(|gpu| gpu == "A100 80GB"));
//! ```
//!
//! Without the standard library, so that a page that embeds the plan downloads little else.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod fit;
mod format;
mod gpus;
mod layer;
mod ledger;
mod linear;
mod plan;
mod presets;
mod residency;
mod run;
mod scratch;
mod shape;
mod spread;
mod stages;
mod timeline;
mod walk;
mod weights;

pub use fit::{Proposal, longest, proposals, widest};
pub use format::{bytes, grouped};
pub use gpus::{GPUS, Gpu, Workload, computes, fitting, gpu};
pub use ledger::{Component, Phase};
pub use plan::{Line, Plan, plan};
pub use presets::{names, preset};
pub use residency::{Residency, visits_backwards};
pub use run::{ComputeDtype, Device, Method, Optimizer, Part, Run};
pub use shape::{LinearShape, ModelShape};
pub use spread::{in_flight, parts, spread};
pub use timeline::{Moment, Stretch, timeline};
pub use weights::{bits_per_weight, optimizer_pages};
