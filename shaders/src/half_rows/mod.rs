//! Rows of a matrix in bf16 or f16, in f32, on a GPU that lacks the type: to these kernels the matrix is but bits. WGSL has no bf16 at all,
//! and GPUs before Ampere have none either. Where a GPU has the type, Burn's operations do the same.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::source::{Sources, grid};
use crate::{Language, Source, SourceRuntime, view};

const THREADS: u32 = 256;

static SOURCES: Sources<(Language, DType, bool)> = Sources::new();

/// The kernel's source for a matrix in bf16 or f16: of rows that are `picked`, or else of all from one on.
pub fn source(language: Language, dtype: DType, picked: bool) -> Source {
    SOURCES.get((language, dtype, picked), |_| {
        let (rows, row, info_binding) = match picked {
            true => ("@group(0) @binding(2) var<storage, read_write> rows: array<u32>;", "rows[row]", "3"),
            false => ("", "(info.z + row)", "2"),
        };
        let values = [
            ("rows", rows),
            ("row", row),
            ("info_binding", info_binding),
            ("picked", if picked { "1" } else { "0" }),
            ("dtype", dtype.name()),
        ];
        let template = match language {
            Language::Wgsl => concat!(include_str!("../halves.wgsl"), "\n", include_str!("kernel.wgsl")),
            Language::Cuda => {
                concat!(include_str!("../ptx.cu"), "\n", include_str!("../halves.cu"), "\n", include_str!("kernel.cu"))
            }
        };
        Source::fill("half_rows", language, THREADS, template, &values.map(|(name, value)| (name, value.to_string())))
    })
}

/// Whether a tensor is in 16 bits that its device has no arithmetic for; in f16 through wgpu it may have, and is taken for one without.
pub fn is_bits<R: SourceRuntime>(tensor: &CubeTensor<R>) -> bool {
    let has = || R::LANGUAGE == Language::Cuda && tensor.client.properties().supports_type(tensor.dtype);
    matches!(tensor.dtype, DType::BF16 | DType::F16) && !has()
}

/// As many rows as `wide` has, which `picked` names or which follow `first`.
fn widen<R: SourceRuntime>(matrix: &CubeTensor<R>, first: usize, picked: Option<&CubeTensor<R>>, wide: &CubeTensor<R>) {
    let [elements, columns] = [wide.meta.shape().num_elements(), matrix.meta.shape()[1]];
    if elements > 0 {
        let buffers: Vec<&CubeTensor<R>> = [matrix, wide].into_iter().chain(picked).collect();
        let info = [elements as u32, columns as u32, first as u32, 0];
        let source = source(R::LANGUAGE, matrix.dtype, picked.is_some());
        source.launch(grid((elements as u32).div_ceil(THREADS)), &buffers, &info);
    }
}

/// A contiguous matrix `[n, columns]` in bf16 or f16, in f32.
pub fn half_rows<R: SourceRuntime>(matrix: &CubeTensor<R>) -> CubeTensor<R> {
    let wide = view::empty(matrix, matrix.meta.shape().clone(), DType::F32);
    half_rows_into(matrix, 0, &wide);
    wide
}

/// Its rows from one on, into a contiguous tensor that they fill.
pub(crate) fn half_rows_into<R: SourceRuntime>(matrix: &CubeTensor<R>, first: usize, wide: &CubeTensor<R>) {
    widen(matrix, first, None, wide);
}

/// Those that `rows` names, 32-bit integers below `n`, in its order (`torch.nn.functional.embedding`): `[rows, columns]`.
pub fn half_embedding<R: SourceRuntime>(matrix: &CubeTensor<R>, rows: CubeTensor<R>) -> CubeTensor<R> {
    let rows = view::contiguous(rows);
    let wide = view::empty(matrix, [rows.meta.shape().num_elements(), matrix.meta.shape()[1]], DType::F32);
    widen(matrix, 0, Some(&rows), &wide);
    wide
}
