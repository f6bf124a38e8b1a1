//! Products with a weight that is held in fewer bits than f32 has: decode a tile of it into a scratch, multiply, go on.

use rayon::prelude::*;

use super::matrix::{self, Threads, View, with_scratch};
use super::rows::dot;
use crate::ops::{Product, Variant};

/// Elements of a weight that are decoded at a time, 64 MiB of f32. A tile that fits a cache is slower: the product packs the
/// activations anew for each (`benches/results`).
const TILE: usize = 1 << 24;
/// Elements below which a decode or a product is not worth a second thread.
pub(super) const PARALLEL: usize = 1 << 15;
/// Up to this many rows it is faster to decode each row of the weight into cache and use it at once (`benches/results`).
const SKINNY_ROWS: usize = 40;

/// A weight on the host, row-major.
pub(super) trait Encoded: Sync {
    /// `[out, in]`.
    fn shape(&self) -> [usize; 2];

    /// The elements from `start` on, decoded into `out` on this thread.
    fn decode(&self, start: usize, out: &mut [f32]);
}

/// [`Encoded::decode`] on all threads.
pub(super) fn decode_parallel(weight: &impl Encoded, start: usize, out: &mut [f32]) {
    if out.len() < PARALLEL {
        return weight.decode(start, out);
    }
    let task = PARALLEL / 2;
    out.par_chunks_mut(task).enumerate().for_each(|(i, chunk)| weight.decode(start + i * task, chunk));
}

/// `x · Wᵀ` for a few rows, each row of the weight read once.
fn skinny(weight: &impl Encoded, x: &[f32], rows: usize) -> Vec<f32> {
    let [out, input] = weight.shape();
    let mut columns = vec![0.0; out * rows];
    let features = (PARALLEL / input.max(1)).max(1);
    let product = |(task, columns): (usize, &mut [f32])| {
        with_scratch(input, |w| {
            for (j, column) in columns.chunks_mut(rows).enumerate() {
                weight.decode((task * features + j) * input, w);
                for (y, x) in column.iter_mut().zip(x.chunks(input)) {
                    *y = dot(x, w);
                }
            }
        });
    };
    columns.par_chunks_mut(features * rows).enumerate().for_each(product);
    if rows == 1 {
        return columns;
    }
    (0..rows * out).map(|i| columns[(i % out) * rows + i / out]).collect()
}

/// Either product for many rows: one tile of whole weight rows at a time, through one reused scratch.
fn tiled(weight: &impl Encoded, x: &[f32], rows: usize, product: Product, tile: usize) -> Vec<f32> {
    let [out, input] = weight.shape();
    let (width, result) = product.widths([out, input]);
    let features = (tile / input.max(1)).clamp(1, out.max(1));
    let mut y = Vec::new();
    with_scratch(features * input, |scratch| {
        for first in (0..out).step_by(features) {
            let count = features.min(out - first);
            let tile = &mut scratch[..count * input];
            decode_parallel(weight, first * input, tile);
            let tile = View::new(tile, 0, [count, input], [input, 1]);
            let (x, tile, column) = match product {
                Product::Forward => (View::new(x, 0, [rows, width], [width, 1]), tile.t(), first),
                Product::InputGradient => (View::new(x, first, [rows, count], [width, 1]), tile, 0),
            };
            // The first tile may be the whole weight, or a summand of the whole result.
            if first == 0 && (count == out || product == Product::InputGradient) {
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

/// The product of the rows of `x` with the weight, by a variant or the fastest.
pub(super) fn matmul(x: &[f32], weight: &impl Encoded, product: Product, variant: Option<Variant>) -> Vec<f32> {
    let (width, _) = product.widths(weight.shape());
    assert!(x.len().is_multiple_of(width), "the last dimension of x must be {width}");
    let rows = x.len() / width;
    if rows == 0 {
        return Vec::new();
    }
    let fastest = match product {
        Product::Forward if rows <= SKINNY_ROWS => Variant::Skinny,
        _ => Variant::Tiled,
    };
    match (variant.unwrap_or(fastest), product) {
        (Variant::Skinny, Product::Forward) => skinny(weight, x, rows),
        // One tile, as large as the weight.
        (Variant::Decoded, _) => tiled(weight, x, rows, product, usize::MAX),
        (Variant::Tiled, _) => tiled(weight, x, rows, product, TILE),
        _ => panic!("the CPU has no such variant of this product"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Numbers of so few bits that sums of their products are exact.
    struct Eighths([usize; 2]);

    fn value(i: usize) -> f32 {
        ((i * 37 % 101) as f32 - 50.0) / 8.0
    }

    impl Encoded for Eighths {
        fn shape(&self) -> [usize; 2] {
            self.0
        }

        fn decode(&self, start: usize, out: &mut [f32]) {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = value(start + i));
        }
    }

    #[test]
    fn tiles_and_rows_make_up_the_whole() {
        let weight = Eighths([37, 40]);
        for (product, rows) in [(Product::Forward, 9), (Product::InputGradient, 9), (Product::Forward, 1)] {
            let [out, input] = weight.0;
            let (width, result) = product.widths(weight.0);
            let x: Vec<f32> = (0..rows * width).map(value).collect();
            let element = |i: usize| -> f32 {
                let (row, column) = (i / result, i % result);
                let at = |k| if product == Product::Forward { column * input + k } else { k * input + column };
                (0..width).map(|k| x[row * width + k] * value(at(k))).sum()
            };
            let expected: Vec<f32> = (0..rows * result).map(element).collect();
            for rows_of_weight in [1, 2, 5, 36, out, 100] {
                let tile = rows_of_weight * input;
                assert_eq!(tiled(&weight, &x, rows, product, tile), expected, "{product:?}, {rows_of_weight}");
            }
            assert_eq!(matmul(&x, &weight, product, None), expected, "{product:?} of {rows} rows");
        }
    }
}
