//! Rows of a matrix in bf16 or f16, in f32, on a GPU that may lack the type, through wgpu: to it the matrix is but words. WGSL has no
//! bf16 at all. On CUDA, which has both, Burn's operations do the same.

use std::ops::Range;

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::source::{Sources, grid};
use crate::{Language, Source, SourceRuntime, view};

const THREADS: u32 = 256;

static SOURCES: Sources<(DType, bool)> = Sources::new();

/// The kernel's source in WGSL for a matrix in bf16 or f16: of rows that are `picked`, or else of all from one on.
pub fn source(dtype: DType, picked: bool) -> Source {
    SOURCES.get((dtype, picked), |_| {
        let (rows, row, info_binding) = match picked {
            true => ("@group(0) @binding(2) var<storage, read_write> rows: array<u32>;", "rows[row]", "3"),
            false => ("", "(info.z + row)", "2"),
        };
        let values = [("rows", rows), ("row", row), ("info_binding", info_binding), ("dtype", dtype.name())];
        let template = concat!(include_str!("../halves.wgsl"), "\n", include_str!("kernel.wgsl"));
        let values = values.map(|(name, value)| (name, value.to_string()));
        Source::fill("half_rows", Language::Wgsl, THREADS, template, &values)
    })
}

/// So many rows, which `picked` names or which follow `first`.
fn widened<R: SourceRuntime>(
    matrix: &CubeTensor<R>,
    count: usize,
    first: usize,
    picked: Option<&CubeTensor<R>>,
) -> CubeTensor<R> {
    assert_eq!(R::LANGUAGE, Language::Wgsl, "half_rows: Burn's operations do it elsewhere");
    let columns = matrix.meta.shape()[1];
    let wide = view::empty(matrix, [count, columns], DType::F32);
    let elements = count * columns;
    if elements > 0 {
        let buffers: Vec<&CubeTensor<R>> = [matrix, &wide].into_iter().chain(picked).collect();
        let info = [elements as u32, columns as u32, first as u32, 0];
        source(matrix.dtype, picked.is_some()).launch(grid((elements as u32).div_ceil(THREADS)), &buffers, &info);
    }
    wide
}

/// Rows of a contiguous matrix `[n, columns]` in bf16 or f16, in f32.
///
/// # Panics
/// Where the device is none of wgpu's.
pub fn half_rows<R: SourceRuntime>(matrix: &CubeTensor<R>, rows: Range<usize>) -> CubeTensor<R> {
    widened(matrix, rows.len(), rows.start, None)
}

/// Those that `rows` names, 32-bit integers below `n`, in its order (`torch.nn.functional.embedding`): `[rows, columns]`.
///
/// # Panics
/// As [`half_rows`].
pub fn half_embedding<R: SourceRuntime>(matrix: &CubeTensor<R>, rows: CubeTensor<R>) -> CubeTensor<R> {
    let rows = view::contiguous(rows);
    widened(matrix, rows.meta.shape().num_elements(), 0, Some(&rows))
}
