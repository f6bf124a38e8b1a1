//! Products with a 4-bit weight: decode a tile of it into a scratch that stays in cache, multiply, go on.

use burn_flex::Flex;
use rayon::prelude::*;

use super::matrix::{self, Threads, View, with_scratch};
use super::rows::dot;
use crate::nf4;
use crate::ops::{Nf4Primitive, Product, Variant};

/// Elements of a weight that are decoded at a time, 64 MiB of f32. A tile that fits a cache is slower: the product packs the
/// activations anew for each (`benches/results`).
const TILE: usize = 1 << 24;
/// Elements below which a decode or a product is not worth a second thread.
const PARALLEL: usize = 1 << 15;
/// Up to this many rows it is faster to decode each row of the weight into cache and use it at once (`benches/results`).
const SKINNY_ROWS: usize = 40;

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
            scales[..blocks].par_iter().enumerate().with_min_len(PARALLEL).map(decode).collect()
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
    fn tiled(&self, x: &[f32], rows: usize, product: Product, tile: usize) -> Vec<f32> {
        let (width, result) = product.widths([self.out, self.input]);
        let features = (tile / self.input.max(1)).clamp(1, self.out.max(1));
        let mut y = Vec::new();
        with_scratch(features * self.input, |scratch| {
            for first in (0..self.out).step_by(features) {
                let count = features.min(self.out - first);
                let tile = &mut scratch[..count * self.input];
                self.decode_parallel(first * self.input, tile);
                let tile = View::new(tile, 0, [count, self.input], [self.input, 1]);
                let (x, tile, column) = match product {
                    Product::Forward => (View::new(x, 0, [rows, width], [width, 1]), tile.t(), first),
                    Product::InputGradient => (View::new(x, first, [rows, count], [width, 1]), tile, 0),
                };
                // The first tile may be the whole weight, or a summand of the whole result.
                if first == 0 && (count == self.out || product == Product::InputGradient) {
                    y = matrix::product(x, tile, 1.0, Threads::All);
                    continue;
                }
                y.resize(rows * result, 0.0);
                let keep = product == Product::InputGradient;
                matrix::matmul(x, tile, (&mut y[column..], result), 1.0, keep, Threads::All);
            }
        });
        y.resize(rows * result, 0.0);
        y
    }
}

/// The whole weight, row-major.
pub(super) fn dequantize(weight: &Nf4Primitive<Flex>) -> Vec<f32> {
    let host = HostWeight::new(weight);
    let mut dense = vec![0.0; host.out * host.input];
    host.decode_parallel(0, &mut dense);
    dense
}

/// The product of the rows of `x` with the weight.
pub(super) fn matmul(x: &[f32], weight: &Nf4Primitive<Flex>, product: Product, variant: Option<Variant>) -> Vec<f32> {
    let host = HostWeight::new(weight);
    let (width, _) = product.widths(weight.shape);
    assert!(x.len().is_multiple_of(width), "nf4_matmul: the last dimension of x must be {width}");
    let rows = x.len() / width;
    if rows == 0 {
        return Vec::new();
    }
    let fastest = match product {
        Product::Forward if rows <= SKINNY_ROWS => Variant::Skinny,
        _ => Variant::Tiled,
    };
    match (variant.unwrap_or(fastest), product) {
        (Variant::Skinny, Product::Forward) => host.skinny(x, rows),
        // One tile, as large as the weight.
        (Variant::Decoded, _) => host.tiled(x, rows, product, usize::MAX),
        (Variant::Tiled, _) => host.tiled(x, rows, product, TILE),
        _ => panic!("nf4_matmul: the CPU has no such variant of this product"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::nf4::quantize;
    use crate::ops::Nf4Weight;

    #[test]
    fn tiles_make_up_the_whole() {
        let shape = [37, 40];
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let data = quantize(&(0..37 * 40).map(value).collect::<Vec<_>>(), shape, 64, true).unwrap();
        let weight = Nf4Weight::<Flex>::upload(&data, &Default::default()).unwrap();
        let (part, _) = weight.parts().next().unwrap();
        let host = HostWeight::new(part);
        for product in [Product::Forward, Product::InputGradient] {
            let x: Vec<f32> = (0..9 * product.widths(shape).0).map(value).collect();
            let whole = host.tiled(&x, 9, product, TILE);
            for rows_of_weight in [1, 2, 5, 36] {
                let parts = host.tiled(&x, 9, product, rows_of_weight * shape[1]);
                let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
                assert!(
                    whole.len() == parts.len() && whole.iter().zip(&parts).all(close),
                    "{product:?}, {rows_of_weight}"
                );
            }
        }
    }
}
