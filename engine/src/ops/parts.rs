//! A product with a weight whose output features lie in several pieces, from the products with each.

use std::ops::Range;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::fused::{primitive, tensor};
use super::{Ops, Product};

/// Either product of rows with a weight `[out, in]`, of which `of_part` multiplies a piece with the rows, or with those of their columns
/// that belong to it. Pieces come with their output features; what they make for a gradient is added up.
///
/// # Panics
/// When there is none.
pub(super) fn of_parts<B: Ops, P>(
    x: FloatTensor<B>,
    mut parts: Vec<(P, Range<usize>)>,
    product: Product,
    of_part: impl Fn(FloatTensor<B>, P, Range<usize>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    if parts.len() == 1 {
        let (whole, features) = parts.remove(0);
        return of_part(x, whole, features);
    }
    let x = tensor::<B, 2>(x);
    let results = parts.into_iter().map(|(part, features)| {
        let x = match product {
            Product::Forward => x.clone(),
            Product::InputGradient => x.clone().narrow(1, features.start, features.len()),
        };
        of_part(primitive(x), part, features)
    });
    match product {
        Product::Forward => joined::<B>(results.collect(), 1),
        Product::InputGradient => {
            let sum = results.map(tensor::<B, 2>).reduce(|sum, more| sum + more);
            primitive(sum.expect("a weight has a part"))
        }
    }
}

/// [`of_parts`] of a weight in several tensors.
pub(super) fn of_tensors<B: Ops>(
    x: FloatTensor<B>,
    weight: Vec<FloatTensor<B>>,
    product: Product,
    of_part: impl Fn(FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let mut before = 0;
    let parts = weight.into_iter().map(|part| {
        let first = before;
        before += part.shape()[0];
        (part, first..before)
    });
    of_parts::<B, _>(x, parts.collect(), product, |x, part, _| of_part(x, part))
}

/// Tensors one after the other along a dimension; a single one as it is.
pub(super) fn joined<B: Ops>(mut tensors: Vec<FloatTensor<B>>, dim: usize) -> FloatTensor<B> {
    match tensors.len() {
        1 => tensors.swap_remove(0),
        _ => primitive(Tensor::<B, 2>::cat(tensors.into_iter().map(tensor).collect(), dim)),
    }
}
