//! The 4-bit operations on the CPU: decode a tile of the weight into a scratch that stays in cache, multiply, go on.
//!
//! Burn's CPU backend has no operation that reads packed weights; the dense arithmetic is the `gemm` crate's.

use std::cell::RefCell;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{TensorData, TensorMetadata};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::{Nf4Primitive, Ops, Product};
use crate::nf4;

/// Elements of a weight that are decoded at a time: 1 MiB of f32, which a second-level cache holds.
const TILE: usize = 1 << 18;
/// Elements below which a decode or a product is not worth a second thread.
const PARALLEL: usize = 1 << 15;
/// Up to this many rows the product is bound by reading the weight: each of its rows is decoded into cache and used at once.
const SKINNY_ROWS: usize = 8;

thread_local! {
    /// The decoded tile, kept between calls so that no product allocates one.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with this thread's scratch of at least `length` floats, whose contents are arbitrary.
fn with_scratch<T>(length: usize, body: impl FnOnce(&mut [f32]) -> T) -> T {
    // Taken out rather than borrowed: a thread that waits inside a parallel product may start another one.
    let mut scratch = SCRATCH.take();
    if scratch.len() < length {
        scratch.resize(length, 0.0);
    }
    let result = body(&mut scratch[..length]);
    SCRATCH.set(scratch);
    result
}

/// A weight on the host, with its block scales decoded.
struct HostWeight<'a> {
    packed: &'a [u8],
    absmax: Vec<f32>,
    block_size: usize,
    out: usize,
    input: usize,
}

impl<'a> HostWeight<'a> {
    fn new(weight: &'a Nf4Primitive<Flex>) -> Self {
        let codes: &[u32] = weight.codes.storage();
        let words: &[u32] = weight.absmax.storage();
        let header: &[u32] = weight.header.storage();
        let block_size = 1usize << header[1];
        let absmax = if header[2] == 0 {
            words.iter().map(|bits| f32::from_bits(*bits)).collect()
        } else {
            let (map, nested) = header[4..].split_at(256);
            let offset = f32::from_bits(header[3]);
            let scales: &[u8] = bytemuck::cast_slice(words);
            let blocks = (header[0] as usize).div_ceil(block_size);
            let decode = |(block, code): (usize, &u8)| {
                f32::from_bits(map[*code as usize]) * f32::from_bits(nested[block / nf4::NESTED_BLOCK_SIZE]) + offset
            };
            scales[..blocks].iter().enumerate().map(decode).collect()
        };
        let [out, input] = weight.shape;
        Self { packed: bytemuck::cast_slice(codes), absmax, block_size, out, input }
    }

    /// The elements from `start` on, decoded into `out` on this thread.
    fn decode(&self, start: usize, out: &mut [f32]) {
        nf4::decode(self.packed, &self.absmax, self.block_size, start, out);
    }

    /// The same on all threads.
    fn decode_parallel(&self, start: usize, out: &mut [f32]) {
        if out.len() < PARALLEL {
            return self.decode(start, out);
        }
        let task = PARALLEL / 2;
        out.par_chunks_mut(task).enumerate().for_each(|(i, chunk)| self.decode(start + i * task, chunk));
    }

    /// `x · Wᵀ` for a few rows, each row of the weight read once.
    fn skinny(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let mut columns = vec![0.0; self.out * rows];
        let features = (PARALLEL / self.input.max(1)).max(1);
        let product = |(task, columns): (usize, &mut [f32])| {
            with_scratch(self.input, |w| {
                for (j, column) in columns.chunks_mut(rows).enumerate() {
                    self.decode((task * features + j) * self.input, w);
                    for (y, x) in column.iter_mut().zip(x.chunks(self.input)) {
                        *y = dot(x, w);
                    }
                }
            });
        };
        columns.par_chunks_mut(features * rows).enumerate().for_each(product);
        if rows == 1 {
            return columns;
        }
        (0..rows * self.out).map(|i| columns[(i % self.out) * rows + i / self.out]).collect()
    }

    /// Either product for many rows: one tile of whole weight rows at a time, through one reused scratch.
    fn tiled(&self, x: &[f32], rows: usize, product: Product) -> Vec<f32> {
        let (width, result) = match product {
            Product::Forward => (self.input, self.out),
            Product::InputGradient => (self.out, self.input),
        };
        let mut y = vec![0.0; rows * result];
        let features = (TILE / self.input.max(1)).clamp(1, self.out.max(1));
        with_scratch(features * self.input, |scratch| {
            for first in (0..self.out).step_by(features) {
                let count = features.min(self.out - first);
                let tile = &mut scratch[..count * self.input];
                self.decode_parallel(first * self.input, tile);
                match product {
                    Product::Forward => matmul(
                        View::new(x, 0, [rows, width], [width, 1]),
                        View::new(tile, 0, [width, count], [1, width]),
                        (&mut y, first, result),
                    ),
                    Product::InputGradient => matmul(
                        View::new(x, first, [rows, count], [width, 1]),
                        View::new(tile, 0, [count, result], [result, 1]),
                        (&mut y, 0, result),
                    ),
                }
            }
        });
        y
    }
}

/// A strided matrix inside a slice.
struct View<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    fn new(data: &'a [f32], offset: usize, shape: [usize; 2], strides: [usize; 2]) -> Self {
        let data = &data[offset..];
        assert!(shape.contains(&0) || (shape[0] - 1) * strides[0] + (shape[1] - 1) * strides[1] < data.len());
        Self { data, shape, strides }
    }
}

/// Adds `lhs · rhs` to the columns of `y` from `first` on, where `y` has rows of `stride` floats.
fn matmul(lhs: View, rhs: View, (y, first, stride): (&mut [f32], usize, usize)) {
    let ([m, k], [_, n]) = (lhs.shape, rhs.shape);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let y = &mut y[first..];
    assert!(k == rhs.shape[0] && first + n <= stride && (m - 1) * stride + n <= y.len());
    let parallelism = if m * n * k < PARALLEL * 64 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
    // SAFETY: `View::new` and the assertion above keep every strided access inside the three slices, and `y` is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            stride as isize,
            true,
            lhs.data.as_ptr(),
            lhs.strides[1] as isize,
            lhs.strides[0] as isize,
            rhs.data.as_ptr(),
            rhs.strides[1] as isize,
            rhs.strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The inner product, in sixteen running sums so that the compiler uses full vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a16.zip(b16) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + tail
}

impl Ops for Flex {
    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        let host = HostWeight::new(weight);
        let mut dense = vec![0.0; host.out * host.input];
        host.decode_parallel(0, &mut dense);
        FlexTensor::from_data(TensorData::new(dense, weight.shape))
    }

    fn nf4_matmul(x: FloatTensor<Self>, weight: &Nf4Primitive<Self>, product: Product) -> FloatTensor<Self> {
        let host = HostWeight::new(weight);
        let (width, result) = match product {
            Product::Forward => (host.input, host.out),
            Product::InputGradient => (host.out, host.input),
        };
        let mut shape = x.shape().to_vec();
        assert_eq!(shape.last(), Some(&width), "nf4_matmul: the last dimension of x must be {width}");
        let rows = shape.iter().product::<usize>() / width.max(1);
        if let Some(last) = shape.last_mut() {
            *last = result;
        }
        let x = x.to_contiguous();
        let x: &[f32] = &x.storage::<f32>()[x.layout().start_offset()..];
        let y = match product {
            Product::Forward if rows <= SKINNY_ROWS => host.skinny(&x[..rows * width], rows),
            _ => host.tiled(&x[..rows * width], rows, product),
        };
        FlexTensor::from_data(TensorData::new(y, shape))
    }
}
