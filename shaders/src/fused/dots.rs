//! Dot products of rows.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{CubeCount, CubeDim};

use super::{contiguous, converted, elements, empty, lanes, sum_of_lanes};
use crate::SourceRuntime;
use crate::source::grid;

/// Threads of a cube, as many as WebGPU promises.
const THREADS: usize = 256;

/// A group of threads for each row, of which there are as many as `sums`; `x` and `y` lie in pieces of a row each.
#[cube(launch)]
fn dots<X: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    y: &Array<Vector<X, N>>,
    sums: &mut Array<f32>,
    #[comptime] group: usize,
    #[define(X)] _dtype: StorageType,
) {
    let (unit, width) = (UNIT_POS as usize, x.len() / sums.len());
    let row = CUBE_POS * comptime!(THREADS / group) + unit / group;
    let first = row * width;
    // Beyond the last row there is nothing, so that the cube's threads still meet.
    let end = select(row < sums.len(), first + width, first);
    let mut products = Vector::<f32, N>::new(0.0);
    let mut i = first + unit % group;
    while i < end {
        products += Vector::<f32, N>::cast_from(x[i]) * Vector::cast_from(y[i]);
        i += group;
    }
    let mut shared = SharedMemory::<f32>::new(THREADS);
    shared[unit] = sum_of_lanes(products);
    sync_cube();
    #[unroll]
    for level in 0..comptime!(group.ilog2()) {
        let half = comptime!(group >> (level + 1));
        if unit % group < half {
            shared[unit] += shared[unit + half];
        }
        sync_cube();
    }
    if unit % group == 0 && row < sums.len() {
        sums[row] = shared[unit];
    }
}

/// The sums over rows of `width` elements of the products of the elements of two tensors of one shape, in f32: `[1, elements / width]`.
///
/// # Panics
/// When the elements do not make whole rows.
pub fn dots_of_rows<R: SourceRuntime>(x: CubeTensor<R>, y: CubeTensor<R>, width: usize) -> CubeTensor<R> {
    let (y, x) = (converted(y, x.dtype), contiguous(x));
    let count = x.meta.shape().num_elements();
    assert!(count.is_multiple_of(width), "dots_of_rows: rows of {width} of {:?}", x.meta);
    let rows = count / width;
    let sums = empty(&x, [1, rows], DType::F32);
    if rows > 0 {
        let lanes = lanes(width);
        let group = (width / lanes).next_power_of_two().min(THREADS);
        let [across, down, _] = grid(rows.div_ceil(THREADS / group) as u32);
        let (cubes, dim) = (CubeCount::Static(across, down, 1), CubeDim::new_1d(THREADS as u32));
        let dtype = x.dtype.into();
        let [x, y, of_sums] = [&x, &y, &sums].map(elements);
        dots::launch::<R>(&sums.client, cubes, dim, lanes, x, y, of_sums, group, dtype);
    }
    sums
}
