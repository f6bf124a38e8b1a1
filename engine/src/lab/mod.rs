//! Tests and measurements of a device's kernels, as values that a program can show: the `selftest` and `bench` commands, a
//! page for testing GPUs; and how far apart two models are.

mod bench;
mod conformance;
mod trace;

pub use bench::{Ceilings, Measurement, ceilings, measure_attention, measure_products, measure_storage};
pub use conformance::{Case, Conformance, conformance};
pub use trace::{judged_error, relative_error, trace};
