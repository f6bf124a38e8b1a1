//! Weights in 4 bits on the host.

use burn_flex::Flex;
use rayon::prelude::*;

use super::encoded::{self, Encoded, PARALLEL};
use crate::nf4;
use crate::ops::{Nf4Primitive, Product, Variant};

/// A weight on the host, with its block scales decoded.
struct HostWeight<'a> {
    packed: &'a [u8],
    absmax: Vec<f32>,
    block_size: usize,
    shape: [usize; 2],
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
        Self { packed: bytemuck::cast_slice(codes), absmax, block_size, shape: weight.shape }
    }
}

impl Encoded for HostWeight<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode(&self, start: usize, out: &mut [f32]) {
        nf4::decode(self.packed, &self.absmax, self.block_size, start, out);
    }
}

/// The whole weight, row-major.
pub(super) fn dequantize(weight: &Nf4Primitive<Flex>) -> Vec<f32> {
    let mut dense = vec![0.0; weight.shape.iter().product()];
    encoded::decode_parallel(&HostWeight::new(weight), 0, &mut dense);
    dense
}

/// The product of the rows of `x` with the weight.
pub(super) fn matmul(x: &[f32], weight: &Nf4Primitive<Flex>, product: Product, variant: Option<Variant>) -> Vec<f32> {
    encoded::matmul(x, &HostWeight::new(weight), product, variant)
}
