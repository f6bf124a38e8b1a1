//! The types in which CUDA kernels give results: f32, as they are summed up, or bf16.

use burn_backend::DType;

use crate::{Language, SourceRuntime};

/// What is put before kernels that give either.
pub(crate) const RESULTS: &str = include_str!("results.cu");

/// The value of that text's placeholder, and of others for a type.
///
/// # Panics
/// On a type that is neither.
pub(crate) fn in_cuda(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::BF16 => "bf16",
        _ => panic!("no CUDA kernel gives {dtype:?}"),
    }
}

/// The type in which kernels of two types give what is wanted in one: bf16 where they can, else f32.
pub(crate) fn given<R: SourceRuntime>(wanted: DType) -> DType {
    match (R::LANGUAGE, wanted) {
        (Language::Cuda, DType::BF16) => wanted,
        _ => DType::F32,
    }
}
