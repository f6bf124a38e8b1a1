//! Decodes output features of an NF4 weight, plain or double-quantized, into f32, or into f16 or bf16.

use std::ops::Range;

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;

use crate::source::{Sources, grid};
use crate::view;
use crate::weight::reader;
use crate::{Language, Nf4, Source, SourceRuntime};

const THREADS: u32 = 256;

static SOURCES: Sources<(Language, DType)> = Sources::new();

/// What a device can decode into.
pub fn dequantized_types<R: SourceRuntime>(client: &ComputeClient<R>) -> Vec<DType> {
    let mut types = vec![DType::F32, DType::F16, DType::BF16];
    types.retain(|dtype| match R::LANGUAGE {
        Language::Cuda => true,
        Language::Wgsl => *dtype != DType::BF16 && client.properties().supports_type(*dtype),
    });
    types
}

/// The kernel's source; `table` holds the 16 levels of NF4. WGSL has no bf16.
pub fn source(language: Language, table: &[f32; 16], dtype: DType) -> Source {
    let kernels = [include_str!("kernel.wgsl"), include_str!("kernel.cu")];
    SOURCES.get((language, dtype), |_| {
        let (element, enable) = if dtype == DType::F16 { ("f16", "enable f16;") } else { ("f32", "") };
        let pack = if dtype == DType::F16 { "pack_f16" } else { "pack_bf16" };
        let values = [
            ("element", element.to_string()),
            ("enable", enable.to_string()),
            ("width", dtype.size().to_string()),
            ("pack", pack.to_string()),
        ];
        reader("nf4_dequantize", language, THREADS, kernels, table, &values)
    })
}

/// The output features `features` of a weight, dense: `[features, in]` of one of the [`dequantized_types`].
///
/// # Panics
/// When the weight has no such features.
pub fn nf4_dequantize<R: SourceRuntime>(weight: &Nf4<R>, features: Range<usize>, dtype: DType) -> CubeTensor<R> {
    let [out, input] = weight.shape;
    assert!(features.start <= features.end && features.end <= out, "{features:?} of {out} output features");
    let dense = view::empty(&weight.codes, [features.len(), input], dtype);
    nf4_dequantize_into(weight, features, &dense);
    dense
}

/// [`nf4_dequantize`] into a contiguous tensor of their shape.
pub(crate) fn nf4_dequantize_into<R: SourceRuntime>(weight: &Nf4<R>, features: Range<usize>, dense: &CubeTensor<R>) {
    let (codes, input) = (&weight.codes, weight.shape[1]);
    let (first, count) = (features.start * input, features.len() * input);
    if count == 0 {
        return;
    }
    let begin = first / 8 / view::ALIGNMENT * view::ALIGNMENT;
    let end = (first + count).div_ceil(8);
    let bound = Nf4 { codes: view::rows(codes, begin..end), ..weight.clone() };
    let source = source(R::LANGUAGE, weight.table, dense.dtype);
    let range = [first as u32, count as u32, begin as u32, 0];
    let words = (end - first / 8) as u32;
    source.launch(grid(words.div_ceil(THREADS)), &bound.buffers(&[dense]), &range);
}
