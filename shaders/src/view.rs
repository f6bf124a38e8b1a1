//! Parts of a tensor in its own memory, and what is done with them. WebGPU binds from multiples of 256 bytes on, so every part must begin
//! at one.

use std::ops::Range;

use burn_backend::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{self, empty_device_contiguous_dtype};
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::LinearView;

use crate::SourceRuntime;

/// A part of a matrix or of a list begins at a multiple of so many elements of four bytes.
pub(crate) const ALIGNMENT: usize = 64;

/// A tensor's elements one after the other: what Burn makes on CUDA may have its rows further apart. Where there are none, nothing is
/// launched: CUDA refuses an empty grid.
pub(crate) fn contiguous<R: SourceRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    match tensor.meta.shape().num_elements() {
        0 => tensor,
        _ => into_contiguous(tensor),
    }
}

#[cube(launch, address_type = "dynamic")]
fn convert<X: Numeric, Y: Numeric, N: Size>(
    x: &LinearView<Vector<X, N>>,
    y: &mut Array<Vector<Y, N>>,
    #[define(X, Y)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = Vector::cast_from(x[ABSOLUTE_POS]);
    }
}

/// A tensor in another type, of those that the device computes in, its elements one after the other; of its own type as it is. Burn's
/// conversion makes rows that begin at multiples of 512 bytes on CUDA: where they are not of so many, most of what takes them would have to
/// copy them.
pub fn cast<R: SourceRuntime>(x: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    if x.dtype == dtype {
        return x;
    }
    let y = empty(&x, x.meta.shape().clone(), dtype);
    let count = y.meta.shape().num_elements();
    if count > 0 {
        let lanes = if in_fours(&x) { 4 } else { 1 };
        let (cubes, dim) = elementwise(&y, count / lanes);
        let dtypes = [x.dtype.into(), dtype.into()];
        let address = wider(&x, &y);
        convert::launch::<R>(&y.client, cubes, dim, address, lanes, x.into_linear_view(), elements(&y), dtypes);
    }
    y
}

/// Whether a tensor's elements can be taken four at a time, wherever its rows lie.
pub(crate) fn in_fours<R: SourceRuntime>(tensor: &CubeTensor<R>) -> bool {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let last = shape.len() - 1;
    let begins = tensor.handle.offset_start.unwrap_or(0).is_multiple_of(4 * tensor.dtype.size() as u64);
    begins && strides[last] == 1 && shape[last].is_multiple_of(4) && strides[..last].iter().all(|s| s.is_multiple_of(4))
}

/// The same with its elements one after the other.
pub(crate) fn converted<R: SourceRuntime>(tensor: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    contiguous(cast(tensor, dtype))
}

/// Room for elements that lie one after the other, on the device of another tensor.
pub(crate) fn empty<R: SourceRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// The elements of a contiguous tensor; how many a kernel sees at once, the launch divides their number by.
pub(crate) fn elements<R: SourceRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    // SAFETY: a contiguous tensor's memory holds all of its elements.
    unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), tensor.meta.shape().num_elements()) }
}

/// What counts the elements of two tensors: 32 bits are too few for an MLP's activations from 150,000 tokens on.
fn wider<R: SourceRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>) -> AddressType {
    a.required_address_type().max(b.required_address_type())
}

/// A thread for each of `count`.
pub(crate) fn elementwise<R: SourceRuntime>(tensor: &CubeTensor<R>, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(&tensor.client, count);
    (calculate_cube_count_elemwise(&tensor.client, count, dim), dim)
}

/// Zeros on the device of another tensor. Where there are none, nothing is launched: CUDA refuses an empty grid.
pub(crate) fn zeros<R: SourceRuntime>(like: &CubeTensor<R>, shape: Shape, dtype: DType) -> CubeTensor<R> {
    match shape.num_elements() {
        0 => empty(like, shape, dtype),
        _ => numeric::zeros(like.device.clone(), shape, dtype),
    }
}

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

#[cube(launch, address_type = "dynamic")]
fn add_elements(sum: &mut Array<f32>, more: &Array<f32>, factor: f32) {
    if ABSOLUTE_POS < sum.len() {
        sum[ABSOLUTE_POS] += more[ABSOLUTE_POS] * factor;
    }
}

#[cube(launch, address_type = "dynamic")]
fn add_parts<S: Float>(
    parts: &Array<f32>,
    sum: &mut Array<S>,
    #[comptime] count: u32,
    #[define(S)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < sum.len() {
        let mut total = parts[ABSOLUTE_POS];
        #[unroll]
        for part in 1..count {
            total += parts[part as usize * sum.len() + ABSOLUTE_POS];
        }
        sum[ABSOLUTE_POS] = S::cast_from(total);
    }
}

/// The sum of so many f32 matrices that lie one after the other, in this order, of another type: `[count * rows, columns]` to `[rows,
/// columns]`. One may be of any type.
pub(crate) fn sum<R: SourceRuntime>(parts: CubeTensor<R>, count: usize, into: DType) -> CubeTensor<R> {
    if count == 1 {
        return converted(parts, into);
    }
    let [rows, columns] = [parts.meta.shape()[0] / count, parts.meta.shape()[1]];
    let sum = empty(&parts, [rows, columns], into);
    let (grid, dim) = elementwise(&sum, rows * columns);
    let address = wider(&parts, &sum);
    add_parts::launch::<R>(
        &sum.client,
        grid,
        dim,
        address,
        elements(&parts),
        elements(&sum),
        count as u32,
        into.into(),
    );
    sum
}

/// `sum += factor * more`, both f32 and contiguous. Burn's own addition writes where no one else looks, and a part shares its
/// memory.
pub(crate) fn add<R: SourceRuntime>(sum: &CubeTensor<R>, more: &CubeTensor<R>, factor: f32) {
    let (grid, dim) = elementwise(sum, sum.meta.shape().num_elements());
    add_elements::launch::<R>(&sum.client, grid, dim, wider(sum, more), elements(sum), elements(more), factor);
}
