//! The kernels for many rows, which decode the weight on the way into their tiles.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::source::Sources;
use crate::weight::reader;
use crate::{Language, Nf4, Source, SourceRuntime, view};

/// Multiplications of one WGSL dispatch at most: about 50 ms at 1 TFLOP/s, far from a browser's watchdog.
const DISPATCH: u64 = 1 << 34;

static SOURCES: Sources<(Language, DType, bool)> = Sources::new();

/// The kernel's source: `x · Wᵀ`, or for the gradient of an input `x · W`, with operands of a type, summed in f32: f32, or in WGSL f16.
///
/// # Panics
/// On another type.
pub fn source(language: Language, table: &[f32; 16], dtype: DType, gradient: bool) -> Source {
    let (scalar, enable) = match (language, dtype) {
        (_, DType::F32) => ("f32", ""),
        (Language::Wgsl, DType::F16) => ("f16", "enable f16;"),
        _ => panic!("nf4_matmul: no kernel in {language:?} takes {dtype:?}"),
    };
    SOURCES.get((language, dtype, gradient), |_| {
        let kernels = [include_str!("kernel.wgsl"), include_str!("kernel.cu")];
        let values =
            [("gradient", gradient.to_string()), ("scalar", scalar.to_string()), ("enable", enable.to_string())];
        reader("nf4_matmul", language, 128, kernels, table, &values)
    })
}

/// The product of `x`, rounded to a type that [`source`] takes, into `y`.
pub(super) fn launch<R: SourceRuntime>(
    x: &CubeTensor<R>,
    weight: &Nf4<R>,
    y: &CubeTensor<R>,
    dtype: DType,
    gradient: bool,
) {
    let [out, input] = weight.shape;
    let x = view::converted(x.clone(), dtype);
    let rows = x.meta.shape()[0];
    let (tile, at_once) = match R::LANGUAGE {
        Language::Wgsl => {
            ([64, 64], (DISPATCH / (out * input) as u64).next_multiple_of(64).clamp(64, 65_535 * 64) as usize)
        }
        Language::Cuda => ([128, 64], rows),
    };
    for first in (0..rows).step_by(at_once) {
        let part = first..rows.min(first + at_once);
        let [x, y] = [&x, y].map(|tensor| view::rows(tensor, part.clone()));
        let grid = [y.meta.shape()[1].div_ceil(tile[1]) as u32, part.len().div_ceil(tile[0]) as u32, 1];
        let info = [part.len() as u32, out as u32, input as u32, 0];
        source(R::LANGUAGE, weight.table, dtype, gradient).launch(grid, &weight.buffers(&[&x, &y]), &info);
    }
}
