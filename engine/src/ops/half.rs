//! Products with a frozen weight in 16 bits: as much of it as fits a scratch is widened at a time, so that all arithmetic is f32.

use std::ops::Range;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, FloatDType, Tensor, TensorMetadata};

use super::fused::{primitive, tensor};
use super::{Ops, Product, matmul};

/// Bytes of the scratch.
const SCRATCH: usize = 256 << 20;

/// Either product of f32 rows with a weight `[out, in]` of any type, some of whose rows `widen` gives in f32.
pub(super) fn product<B: Ops>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    product: Product,
    widen: impl Fn(&FloatTensor<B>, Range<usize>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    product_within::<B>(x, weight, product, widen, SCRATCH)
}

/// Rows of a matrix in f32.
pub(super) fn widened<B: Ops>(matrix: &FloatTensor<B>, rows: Range<usize>) -> FloatTensor<B> {
    primitive(tensor::<B, 2>(matrix.clone()).slice_dim(0, rows).cast(FloatDType::F32))
}

fn product_within<B: Ops>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    product: Product,
    widen: impl Fn(&FloatTensor<B>, Range<usize>) -> FloatTensor<B>,
    scratch: usize,
) -> FloatTensor<B> {
    let (x, [out, input]) = (tensor::<B, 2>(x), weight.shape().dims());
    let at_once = match weight.dtype() {
        DType::F32 => out,
        _ => (scratch / (4 * input.max(1))).clamp(1, out.max(1)),
    };
    let mut parts = (0..out).step_by(at_once.max(1)).map(|first| {
        let count = at_once.min(out - first);
        let part = tensor::<B, 2>(widen(&weight, first..first + count));
        match product {
            Product::Forward => matmul(x.clone(), part.transpose()),
            Product::InputGradient => matmul(x.clone().narrow(1, first, count), part),
        }
    });
    primitive(match product {
        // Of one part it would be a copy.
        Product::Forward if at_once >= out => {
            parts.next().unwrap_or_else(|| Tensor::zeros([x.dims()[0], 0], &x.device()))
        }
        Product::Forward => Tensor::cat(parts.collect(), 1),
        Product::InputGradient => parts.reduce(|sum, more| sum + more).unwrap_or_else(|| x.zeros_like()),
    })
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use burn::tensor::{FloatDType, Tensor, TensorData};
    use burn_flex::Flex;

    use super::{Product, primitive, product_within, tensor, widened};

    fn values(rows: usize, columns: usize, seed: usize) -> Tensor<Flex, 2> {
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 64.0 - 0.75).collect();
        Tensor::from_data(TensorData::new(values, [rows, columns]), &Default::default())
    }

    #[test]
    fn parts_make_the_whole_product() {
        // 64ths below two need eight bits, which both types hold.
        let (x, weight, d_y) = (values(3, 8, 1), values(21, 8, 2), values(3, 21, 3));
        let expected = [x.clone().matmul(weight.clone().transpose()), d_y.clone().matmul(weight.clone())];
        for dtype in [FloatDType::BF16, FloatDType::F16, FloatDType::F32] {
            // All at once, rows that leave one over, and a row at a time.
            for scratch in [1 << 20, 5 * 32, 1] {
                let of = |x: &Tensor<Flex, 2>, product| {
                    let weight = primitive(weight.clone().cast(dtype));
                    tensor::<Flex, 2>(product_within::<Flex>(
                        primitive(x.clone()),
                        weight,
                        product,
                        widened::<Flex>,
                        scratch,
                    ))
                };
                let found = [of(&x, Product::Forward), of(&d_y, Product::InputGradient)];
                for (found, expected) in found.into_iter().zip(&expected) {
                    assert_eq!(found.dims(), expected.dims());
                    let error = (found - expected.clone()).abs().max().into_scalar();
                    assert!(error < 1e-5, "{dtype:?} within {scratch}: off by {error}");
                }
            }
        }
    }
}
