//! A product with a weight whose output features lie in several tensors, from the products with each.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::fused::{primitive, tensor};
use super::{Ops, Product};

/// Either product of rows with the parts of a weight `[out, in]`, which `of_part` multiplies one of.
///
/// # Panics
/// When there is none.
pub(super) fn of_parts<B: Ops>(
    x: FloatTensor<B>,
    mut weight: Vec<FloatTensor<B>>,
    product: Product,
    of_part: impl Fn(FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    if weight.len() == 1 {
        return of_part(x, weight.remove(0));
    }
    let (x, mut before) = (tensor::<B, 2>(x), 0);
    let parts = weight.into_iter().map(|part| {
        let count = part.shape()[0];
        let x = match product {
            Product::Forward => x.clone(),
            Product::InputGradient => x.clone().narrow(1, before, count),
        };
        before += count;
        tensor::<B, 2>(of_part(primitive(x), part))
    });
    primitive(match product {
        Product::Forward => Tensor::cat(parts.collect(), 1),
        Product::InputGradient => parts.reduce(|sum, more| sum + more).expect("a weight of at least one tensor"),
    })
}
