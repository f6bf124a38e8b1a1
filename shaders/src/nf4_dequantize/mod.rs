//! Decodes a whole NF4 weight, plain or double-quantized, into f32.

use burn_backend::DType;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use crate::source::{Sources, grid};
use crate::weight::reader;
use crate::{Language, Nf4, Source, SourceRuntime};

const THREADS: u32 = 256;

static SOURCES: Sources<Language> = Sources::new();

/// The kernel's source; `table` holds the 16 levels of NF4.
pub fn source(language: Language, table: &[f32; 16]) -> Source {
    let kernels = [include_str!("kernel.wgsl"), include_str!("kernel.cu")];
    SOURCES.get(language, |_| reader("nf4_dequantize", language, THREADS, kernels, table, &[]))
}

/// The dense f32 tensor `[out, in]` of a weight.
pub fn nf4_dequantize<R: SourceRuntime>(weight: &Nf4<R>) -> CubeTensor<R> {
    let codes = &weight.codes;
    let shape = weight.shape.into();
    let dense = empty_device_contiguous_dtype(codes.client.clone(), codes.device.clone(), shape, DType::F32);
    let words = (weight.shape[0] * weight.shape[1]).div_ceil(8) as u32;
    let source = source(R::LANGUAGE, weight.table);
    source.launch(grid(words.div_ceil(THREADS)), &weight.buffers(&[&dense]), None);
    dense
}
