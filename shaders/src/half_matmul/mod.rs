//! Products with a dense weight in bf16 on CUDA's tensor cores: the head.
//!
//! By kernels of our own, since CubeCL's for tensor cores are among those that are wrong for some shapes (`matmul.rs`).

use burn_backend::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::results::in_cuda;
use crate::source::{Sources, tile_grid};
use crate::trust::trusted;
use crate::warpgroup::{self, THREADS, WARPGROUP};
use crate::weight::{TILES, told};
use crate::{Language, PTX, Source, SourceRuntime, Update, view};

/// Rows and columns of the result that a block of threads computes.
const TILE: usize = 128;
/// Rows of a tile of the weight that a group of four warps has.
const HALF: usize = 64;

static SOURCES: Sources<bool> = Sources::new();
static WARPGROUP_SOURCES: Sources<(usize, bool, bool, DType)> = Sources::new();

/// The kernel's source, in CUDA C++: `x · Wᵀ`, or for the gradient of an input `x · W`.
pub fn source(gradient: bool) -> Source {
    SOURCES.get(gradient, |_| {
        let template = format!("{PTX}\n{TILES}\n{}", include_str!("kernel.cu"));
        let values = [("gradient", gradient.to_string()), ("result", in_cuda(DType::F32).to_string())];
        Source::fill("half_matmul", Language::Cuda, 256, &template, &values)
    })
}

/// That for `sm_90a`, by groups of four warps and tiles of 128 or 256 rows, with or without a branch beside the weight, the result in f32
/// or bf16.
pub fn warpgroup_source(tile_rows: usize, gradient: bool, branch: bool, result: DType) -> Source {
    WARPGROUP_SOURCES.get((tile_rows, gradient, branch, result), |_| {
        let template = format!("{PTX}\n{WARPGROUP}\n{}", include_str!("warpgroup.cu"));
        let shared = warpgroup::stages(tile_rows, warpgroup::TILE_COLUMNS * 64 * 2);
        let mut values = warpgroup::values(tile_rows, gradient, result, shared);
        values.push(("branch", u32::from(branch).to_string()));
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
        return view::zeros(&x, shape, DType::F32);
    }
    let (x, weight) = (view::converted(x, DType::BF16), into_contiguous(weight));
    let y = view::empty(&x, shape, DType::F32);
    // Groups of warps copy whole pieces of 16 bytes. A tensor begins at a multiple of more, but the head may be a part of one.
    let whole = input.is_multiple_of(8) && width.is_multiple_of(8) && weight.handle.offset_start.unwrap_or(0) % 16 == 0;
    if trusted::<R>() && whole && warpgroup::has_warpgroups(&x.client) {
        by_warpgroups(&x, &weight, None, &y, gradient);
    } else {
        source(gradient).launch(
            tile_grid([TILE; 2], [rows, columns]),
            &[&x, &weight, &y],
            &[rows as u32, out as u32, input as u32, 0],
        );
    }
    y
}

/// That product, and what a branch beside the weight adds to it, into `y`, f32 or bf16, on a device that has groups of warps: `x` and the weight in
/// bf16, all dimensions but `rows` and `out` multiples of 8, for a gradient that too.
pub(crate) fn by_warpgroups<R: SourceRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    update: Option<&Update<R>>,
    y: &CubeTensor<R>,
    gradient: bool,
) {
    let [shape, [rows, columns]] = [weight, y].map(|tensor| [0, 1].map(|i| tensor.meta.shape()[i]));
    let tile = warpgroup::tile(&x.client, [rows, columns]);
    let mut buffers = vec![y];
    let info = told(rows, shape, update, &mut buffers);
    let maps = vec![warpgroup::tiled(x, tile[0]), warpgroup::tiled(weight, HALF)];
    let source = warpgroup_source(tile[0], gradient, update.is_some(), y.dtype);
    source.launch_with(maps, tile_grid(tile, [rows, columns]), &buffers, &info);
}
