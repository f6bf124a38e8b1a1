//! Products with a dense weight in bf16 on CUDA's tensor cores: the head.
//!
//! By a kernel of our own, since CubeCL's for tensor cores are among those that are wrong for some shapes (`matmul.rs`).

use burn_backend::DType;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros};
use burn_cubecl::tensor::CubeTensor;

use crate::source::Sources;
use crate::weight::TILES;
use crate::{Language, PTX, Source, SourceRuntime};

/// Rows and columns of the result that a block of threads computes.
const TILE: usize = 128;

static SOURCES: Sources<bool> = Sources::new();

/// The kernel's source, in CUDA C++: `x · Wᵀ`, or for the gradient of an input `x · W`.
pub fn source(gradient: bool) -> Source {
    SOURCES.get(gradient, |_| {
        let template = format!("{PTX}\n{TILES}\n{}", include_str!("kernel.cu"));
        Source::fill("half_matmul", Language::Cuda, 256, &template, &[("gradient", gradient.to_string())])
    })
}

/// `x · Wᵀ` of f32 rows `[rows, in]`, or for the gradient of an input `x · W` of rows `[rows, out]`, with a weight `[out, in]` in bf16:
/// `x` is rounded to bf16, the sums and the result are f32. A CUDA device's alone.
///
/// # Panics
/// When the shapes do not fit, or the weight has another type.
pub fn half_matmul<R: SourceRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>, gradient: bool) -> CubeTensor<R> {
    assert!(R::LANGUAGE == Language::Cuda && weight.dtype == DType::BF16, "half_matmul: bf16 on CUDA");
    let [out, input] = [weight.meta.shape()[0], weight.meta.shape()[1]];
    let (width, columns) = if gradient { (out, input) } else { (input, out) };
    let rows = x.meta.shape()[0];
    assert_eq!(x.meta.shape()[1], width, "half_matmul: x has rows of another width than the weight takes");
    let shape = [rows, columns].into();
    if rows * columns * width == 0 {
        return zeros(x.device.clone(), shape, DType::F32);
    }
    let (x, weight) = (cast(into_contiguous(x), DType::BF16), into_contiguous(weight));
    let y = empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, DType::F32);
    let grid = [columns.div_ceil(TILE) as u32, rows.div_ceil(TILE) as u32, 1];
    let info = [rows as u32, out as u32, input as u32, 0];
    source(gradient).launch(grid, &[&x, &weight, &y], &info);
    y
}
