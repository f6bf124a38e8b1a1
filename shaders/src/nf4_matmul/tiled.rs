//! The kernels for many rows, which decode the weight on the way into their tiles.

use burn_backend::DType;
use burn_cubecl::kernel::cast;
use burn_cubecl::tensor::CubeTensor;

use crate::source::Sources;
use crate::weight::reader;
use crate::{Language, Nf4, Source, SourceRuntime, view};

/// Multiplications of one WGSL dispatch at most: about 50 ms at 1 TFLOP/s, far from a browser's watchdog.
const DISPATCH: u64 = 1 << 34;

static SOURCES: Sources<(Language, bool)> = Sources::new();
static BF16_SOURCES: Sources<bool> = Sources::new();

/// The f32 kernel's source: `x · Wᵀ`, or for the gradient of an input `x · W`.
pub fn source(language: Language, table: &[f32; 16], gradient: bool) -> Source {
    let kernels = [include_str!("kernel.wgsl"), include_str!("kernel.cu")];
    SOURCES.get((language, gradient), |_| {
        reader("nf4_matmul", language, 128, kernels, table, &[("gradient", gradient.to_string())])
    })
}

/// The source of the kernel for CUDA's tensor cores, which takes `x` in bf16 and sums in f32.
pub fn bf16_source(table: &[f32; 16], gradient: bool) -> Source {
    let kernels = ["", include_str!("bf16.cu")];
    BF16_SOURCES.get(gradient, |_| {
        reader("nf4_matmul_bf16", Language::Cuda, 256, kernels, table, &[("gradient", gradient.to_string())])
    })
}

/// The product of `x`, in f32, into `y`.
pub(super) fn launch<R: SourceRuntime>(x: &CubeTensor<R>, weight: &Nf4<R>, y: &CubeTensor<R>, gradient: bool) {
    let [out, input] = weight.shape;
    let rows = x.meta.shape()[0];
    let (tile_rows, at_once) = match R::LANGUAGE {
        Language::Wgsl => (64, (DISPATCH / (out * input) as u64).next_multiple_of(64).clamp(64, 65_535 * 64) as usize),
        Language::Cuda => (128, rows),
    };
    for first in (0..rows).step_by(at_once) {
        let part = first..rows.min(first + at_once);
        let [x, y] = [x, y].map(|tensor| view::rows(tensor, part.clone()));
        let grid = [y.meta.shape()[1].div_ceil(64) as u32, part.len().div_ceil(tile_rows) as u32, 1];
        let info = Some([part.len() as u32, out as u32, input as u32, 0]);
        source(R::LANGUAGE, weight.table, gradient).launch(grid, &weight.buffers(&[&x, &y]), info);
    }
}

/// The product of `x`, rounded to bf16, into `y`; on CUDA.
pub(super) fn launch_bf16<R: SourceRuntime>(x: &CubeTensor<R>, weight: &Nf4<R>, y: &CubeTensor<R>, gradient: bool) {
    let [out, input] = weight.shape;
    let x = cast(x.clone(), DType::BF16);
    let rows = x.meta.shape()[0];
    let grid = [y.meta.shape()[1].div_ceil(128) as u32, rows.div_ceil(128) as u32, 1];
    let info = Some([rows as u32, out as u32, input as u32, 0]);
    bf16_source(weight.table, gradient).launch(grid, &weight.buffers(&[&x, y]), info);
}
