//! Parts of a tensor in its own memory. WebGPU binds from multiples of 256 bytes on, so every part must begin at one.

use std::ops::Range;

use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use crate::SourceRuntime;

/// A part of a matrix or of a list begins at a multiple of so many elements of four bytes.
pub(crate) const ALIGNMENT: usize = 64;

/// Rows of a contiguous matrix, or elements of a list.
pub(crate) fn rows<R: SourceRuntime>(tensor: &CubeTensor<R>, rows: Range<usize>) -> CubeTensor<R> {
    let row = (tensor.meta.strides()[0] * tensor.dtype.size()) as u64;
    let after = tensor.handle.size_in_used() - rows.end as u64 * row;
    let mut part = tensor.clone();
    part.handle = part.handle.offset_start(rows.start as u64 * row).offset_end(after);
    part.meta.shape_mut()[0] = rows.len();
    part
}

/// Columns of a matrix; not contiguous.
pub(crate) fn columns<R: SourceRuntime>(tensor: &CubeTensor<R>, columns: Range<usize>) -> CubeTensor<R> {
    let mut part = tensor.clone();
    part.handle = part.handle.offset_start((columns.start * tensor.dtype.size()) as u64);
    part.meta.shape_mut()[1] = columns.len();
    part
}

#[cube(launch)]
fn add_elements(sum: &mut Array<f32>, more: &Array<f32>, factor: f32) {
    if ABSOLUTE_POS < sum.len() {
        sum[ABSOLUTE_POS] += more[ABSOLUTE_POS] * factor;
    }
}

/// `sum += factor * more`, both f32 and contiguous. Burn's own addition writes where no one else looks, and a part shares its
/// memory.
pub(crate) fn add<R: SourceRuntime>(sum: &CubeTensor<R>, more: &CubeTensor<R>, factor: f32) {
    let count = sum.meta.shape().num_elements();
    let dim = CubeDim::new(&sum.client, count);
    let argument = |tensor: &CubeTensor<R>| unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), count) };
    let grid = calculate_cube_count_elemwise(&sum.client, count, dim);
    add_elements::launch::<R>(&sum.client, grid, dim, argument(sum), argument(more), factor);
}
