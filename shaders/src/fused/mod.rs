//! The blocks of a decoder layer and the loss that are bound by memory, each a kernel that reads its operands once and keeps nothing
//! in between. They are written in CubeCL's own language, which it compiles into both: nothing in them is for one kind of GPU.

mod adam;
mod cross_entropy;
mod gated;
mod rms_norm;
mod rotary;

use burn_backend::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{CubeCount, CubeDim, calculate_cube_count_elemwise};

pub use adam::{AdamRates, adam_advance, adam_apply, sum_of_squares};
pub use cross_entropy::cross_entropy;
pub use gated::{gated, gated_backward};
pub use rms_norm::{rms_norm, rms_norm_backward};
pub use rotary::rotate;

use crate::SourceRuntime;
use crate::source::grid;

/// A tensor whose elements lie one after the other. One without any is taken as it is: CUDA refuses an empty grid.
fn contiguous<R: SourceRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    match tensor.meta.shape().num_elements() {
        0 => tensor,
        _ => into_contiguous(tensor),
    }
}

/// f32, of this shape, on the device of `like`.
fn empty<R: SourceRuntime>(like: &CubeTensor<R>, shape: Shape) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, DType::F32)
}

/// Elements that a thread takes at once, of rows of so many. A tensor's memory begins at a multiple of four.
fn lanes(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
}

/// The elements of a contiguous tensor; how many a kernel sees at once, the launch divides their number by.
fn elements<R: SourceRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    // SAFETY: a contiguous tensor's memory holds all of its elements.
    unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), tensor.meta.shape().num_elements()) }
}

/// A thread for each of `count`.
fn elementwise<R: SourceRuntime>(tensor: &CubeTensor<R>, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(&tensor.client, count);
    (calculate_cube_count_elemwise(&tensor.client, count, dim), dim)
}

/// A cube for each row, and its threads: a power of two, at most the 256 that WebGPU promises. There may be more cubes than rows.
fn rowwise(rows: usize, width: usize) -> (CubeCount, usize) {
    let [x, y, z] = grid(rows as u32);
    (CubeCount::Static(x, y, z), width.next_power_of_two().clamp(32, 256))
}

/// Where a cube's row of a matrix begins and ends; beyond the last row it is empty, so that the cube's threads still meet.
#[cube]
fn row(length: usize, width: usize) -> (usize, usize) {
    let first = CUBE_POS * width;
    (first, select(first < length, first + width, first))
}

/// The sum of a vector's elements.
#[cube]
fn sum_of_lanes<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for lane in 0..N::value() {
        sum += vector[lane];
    }
    sum
}

/// The sum of the cube's values, in an order that does not change.
#[cube]
fn sum_of_cube(value: f32, #[comptime] threads: usize) -> f32 {
    let mut shared = SharedMemory::<f32>::new(threads);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(threads.ilog2()) {
        let half = comptime!(threads >> (level + 1));
        if unit < half {
            shared[unit] += shared[unit + half];
        }
        sync_cube();
    }
    shared[0]
}

/// The largest of the cube's values.
#[cube]
fn max_of_cube(value: f32, #[comptime] threads: usize) -> f32 {
    let mut shared = SharedMemory::<f32>::new(threads);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(threads.ilog2()) {
        let half = comptime!(threads >> (level + 1));
        if unit < half {
            shared[unit] = max(shared[unit], shared[unit + half]);
        }
        sync_cube();
    }
    shared[0]
}
