//! The GPU kernels of Halfbyte: each kernel's WGSL and CUDA C++ side by side, and the code that launches them through
//! Burn's CubeCL runtimes, in the same memory and on the same stream as everything else.

mod matmul;
mod nf4_dequantize;
mod source;

pub use matmul::matmul;
pub use nf4_dequantize::{nf4_dequantize, source as nf4_dequantize_source};
pub use source::{Language, Source, SourceRuntime};
