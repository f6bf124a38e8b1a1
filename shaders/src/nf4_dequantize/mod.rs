//! Decodes a whole NF4 weight, plain or double-quantized, into f32.

use burn_backend::DType;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::CubeCount;
use cubecl::server::KernelArguments;

use crate::{Language, Source, SourceRuntime};

const THREADS: u32 = 256;
/// WebGPU's limit on workgroups in one dimension of a dispatch.
const MAX_GROUPS: u32 = 65_535;

/// The kernel's source; `table` holds the 16 levels of NF4.
pub fn source(language: Language, table: &[f32; 16]) -> Source {
    let template = match language {
        Language::Wgsl => include_str!("kernel.wgsl"),
        Language::Cuda => include_str!("kernel.cu"),
    };
    let levels: Vec<String> = table.iter().map(|level| format!("{level:?}")).collect();
    Source::fill("nf4_dequantize", language, THREADS, template, &[("nf4_table", levels.join(", "))])
}

/// The dense f32 tensor `[out, in]` of a weight; the buffers are laid out as `halfbyte::ops::Nf4Primitive` says.
pub fn nf4_dequantize<R: SourceRuntime>(
    codes: &CubeTensor<R>,
    absmax: &CubeTensor<R>,
    header: &CubeTensor<R>,
    shape: [usize; 2],
    table: &[f32; 16],
) -> CubeTensor<R> {
    let dense = empty_device_contiguous_dtype(codes.client.clone(), codes.device.clone(), shape.into(), DType::F32);
    let words = (shape[0] * shape[1]).div_ceil(8) as u32;
    let groups = words.div_ceil(THREADS);
    let rows = groups.div_ceil(MAX_GROUPS).max(1);
    let buffers = [codes, absmax, header, &dense].map(|tensor| tensor.handle.clone().binding());
    codes.client.launch(
        Box::new(source(R::LANGUAGE, table)),
        CubeCount::Static(groups.div_ceil(rows), rows, 1),
        KernelArguments::new().with_buffers(buffers.to_vec()),
    );
    dense
}
