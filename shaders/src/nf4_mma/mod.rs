//! Products of many rows with an NF4 weight on CUDA's tensor cores, from Ampere on. What a low-rank branch beside the weight adds is worked
//! into the same sums.

use burn_backend::DType;

use crate::results::in_cuda;
use crate::source::Sources;
use crate::weight::{TILES, reader};
use crate::{Language, Source};

/// Rows and columns of the result that a block of threads computes.
pub(crate) const TILE: usize = 128;

static SOURCES: Sources<(bool, bool, DType)> = Sources::new();

/// The kernel's source, in CUDA C++: `x · Wᵀ`, or for the gradient of an input `x · W`, with or without a branch; `x` and the branch's
/// inner activations in bf16, the result in f32 or bf16.
pub fn source(table: &[f32; 16], gradient: bool, branch: bool, result: DType) -> Source {
    SOURCES.get((gradient, branch, result), |_| {
        let kernel = format!("{TILES}\n{}", include_str!("kernel.cu"));
        let values = [
            ("gradient", gradient.to_string()),
            ("branch", u32::from(branch).to_string()),
            ("result", in_cuda(result).to_string()),
        ];
        reader("nf4_mma", Language::Cuda, 256, ["", &kernel], table, &values)
    })
}
