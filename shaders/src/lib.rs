//! The GPU kernels of Halfbyte: each kernel's WGSL and CUDA C++ side by side, and the code that launches them through
//! Burn's CubeCL runtimes, in the same memory and on the same stream as everything else.

mod attention;
mod dropout;
mod fetch;
mod fused;
mod half_matmul;
mod half_product;
mod half_rows;
mod half_skinny;
mod low_rank;
mod matmul;
mod nf4_dequantize;
mod nf4_matmul;
mod nf4_mma;
mod nf4_quantize;
mod nf4_skinny;
mod nf4_warpgroup;
mod results;
mod source;
mod trust;
mod view;
mod warpgroup;
mod weight;

pub use attention::{Heads, Kernels as AttentionKernels, Pass, attention, attention_backward};
pub use dropout::{dropout, source as dropout_source};
pub use fetch::{Fetching, fetch, source as fetch_source};
pub use fused::{
    AdamMove, AdamRates, adam_advance, adam_apply, cross_entropy, dots_of_rows, gated, gated_backward, rms_norm,
    rms_norm_backward, rotate, select_rows, sum_of_squares,
};
pub use half_matmul::{half_matmul, source as half_matmul_source, warpgroup_source as half_warpgroup_source};
pub use half_product::half_product;
pub use half_rows::{half_embedding, half_rows, is_bits, source as half_rows_source};
pub use half_skinny::source as half_skinny_source;
pub use low_rank::{LowRank, low_rank, low_rank_gradient, source as low_rank_source};
pub use matmul::matmul;
pub use nf4_dequantize::{dequantized_types, nf4_dequantize, source as nf4_dequantize_source};
pub use nf4_matmul::{Product, Variant, nf4_matmul, source as nf4_matmul_source, variants};
pub use nf4_mma::source as nf4_mma_source;
pub use nf4_quantize::{nf4_quantize, source as nf4_quantize_source};
pub use nf4_skinny::{SkinnyBlock, mma_source as nf4_skinny_mma_source, nf4_skinny, source as nf4_skinny_source};
pub use nf4_warpgroup::source as nf4_warpgroup_source;
pub use source::{Language, Source, SourceRuntime};
pub use trust::{cuda_kernels, trust_cuda_kernels};
pub use view::cast;
pub use weight::{Nf4, PTX, Update};
