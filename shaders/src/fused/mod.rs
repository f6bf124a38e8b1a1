//! The blocks of a decoder layer and the loss that are bound by memory, each a kernel that reads its operands once and keeps nothing
//! in between. They are written in CubeCL's own language, which it compiles into both: nothing in them is for one kind of GPU.

mod adam;
mod cross_entropy;
mod dots;
mod gated;
mod rms_norm;
mod rotary;
mod rows;

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{CubeCount, CubeDim};

pub use adam::{AdamMove, AdamRates, adam_advance, adam_apply, sum_of_squares};
pub use cross_entropy::cross_entropy;
pub use dots::dots_of_rows;
pub use gated::{gated, gated_backward};
pub use rms_norm::{rms_norm, rms_norm_backward};
pub use rotary::rotate;
pub use rows::select_rows;

use crate::SourceRuntime;
use crate::source::grid;
use crate::view::{contiguous, converted, elements, elementwise, empty};

/// Elements that a thread takes at once, of rows of so many. A tensor's memory begins at a multiple of four.
fn lanes(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
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

/// What is left of the cube's values when two of them at a time become their sum or the larger one, in an order that does not change.
#[cube]
fn of_cube(value: f32, #[comptime] threads: usize, #[comptime] largest: bool) -> f32 {
    let mut shared = SharedMemory::<f32>::new(threads);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(threads.ilog2()) {
        let half = comptime!(threads >> (level + 1));
        if unit < half {
            if comptime!(largest) {
                shared[unit] = max(shared[unit], shared[unit + half]);
            } else {
                shared[unit] += shared[unit + half];
            }
        }
        sync_cube();
    }
    shared[0]
}

/// The sum of the cube's values.
#[cube]
fn sum_of_cube(value: f32, #[comptime] threads: usize) -> f32 {
    of_cube(value, threads, false)
}

/// The largest of the cube's values.
#[cube]
fn max_of_cube(value: f32, #[comptime] threads: usize) -> f32 {
    of_cube(value, threads, true)
}

/// The sum of a list, by one cube.
#[cube(launch)]
fn total(x: &Array<f32>, y: &mut Array<f32>, #[comptime] threads: usize) {
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < x.len() {
        sum += x[i];
        i += threads;
    }
    let sum = sum_of_cube(sum, threads);
    if UNIT_POS == 0 {
        y[0] = sum;
    }
}

/// The sum of a list of f32: `[1]`.
fn sum_of_list<R: SourceRuntime>(list: &CubeTensor<R>) -> CubeTensor<R> {
    let sum = empty(list, [1], DType::F32);
    let (cubes, threads) = rowwise(1, list.meta.shape().num_elements());
    let dim = CubeDim::new_1d(threads as u32);
    total::launch::<R>(&sum.client, cubes, dim, elements(list), elements(&sum), threads);
    sum
}
