//! Products with a dense weight in bf16 on CUDA's tensor cores: the head.
//!
//! By kernels of our own, since CubeCL's for tensor cores are among those that are wrong for some shapes (`matmul.rs`).

use burn_backend::DType;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros};
use burn_cubecl::tensor::CubeTensor;

use crate::source::Sources;
use crate::trust::trusted;
use crate::warpgroup::{self, THREADS, WARPGROUP};
use crate::weight::TILES;
use crate::{Language, PTX, Source, SourceRuntime};

/// Rows and columns of the result that a block of threads computes.
const TILE: usize = 128;

static SOURCES: Sources<bool> = Sources::new();
static WARPGROUP_SOURCES: Sources<(usize, bool)> = Sources::new();

/// The kernel's source, in CUDA C++: `x · Wᵀ`, or for the gradient of an input `x · W`.
pub fn source(gradient: bool) -> Source {
    SOURCES.get(gradient, |_| {
        let template = format!("{PTX}\n{TILES}\n{}", include_str!("kernel.cu"));
        Source::fill("half_matmul", Language::Cuda, 256, &template, &[("gradient", gradient.to_string())])
    })
}

/// That for `sm_90a`, by groups of four warps and tiles of 128 or 256 rows.
pub fn warpgroup_source(tile_rows: usize, gradient: bool) -> Source {
    WARPGROUP_SOURCES.get((tile_rows, gradient), |_| {
        let template = format!("{PTX}\n{WARPGROUP}\n{}", include_str!("warpgroup.cu"));
        let shared = warpgroup::stages(tile_rows, warpgroup::TILE_COLUMNS * 64 * 2);
        let values = warpgroup::values(tile_rows, gradient, shared);
        Source::fill("half_warpgroup", Language::Cuda, THREADS, &template, &values).with_shared_memory(shared as u32)
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
    // Groups of warps copy whole pieces of 16 bytes. A tensor begins at a multiple of more, but the head may be a part of one.
    let whole = input.is_multiple_of(8) && width.is_multiple_of(8) && weight.handle.offset_start.unwrap_or(0) % 16 == 0;
    let (source, tile_rows) = match trusted::<R>() && whole && warpgroup::has_warpgroups(&x.client) {
        true => {
            let tile_rows = warpgroup::tile_rows(&x.client, [rows, columns]);
            (warpgroup_source(tile_rows, gradient), tile_rows)
        }
        false => (source(gradient), TILE),
    };
    let grid = [columns.div_ceil(TILE) as u32, rows.div_ceil(tile_rows) as u32, 1];
    source.launch(grid, &[&x, &weight, &y], &[rows as u32, out as u32, input as u32, 0]);
    y
}
