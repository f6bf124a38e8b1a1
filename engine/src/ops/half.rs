//! Products with a frozen weight in 16 bits: as much of it as fits a scratch is widened at a time, so that all arithmetic is f32.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, FloatDType, Tensor};

use super::fused::{primitive, tensor};
use super::{Ops, Product, matmul};

/// Bytes of the scratch.
const SCRATCH: usize = 256 << 20;

/// Either product of f32 rows with a weight `[out, in]` of any type.
pub(super) fn product<B: Ops>(x: FloatTensor<B>, weight: FloatTensor<B>, product: Product) -> FloatTensor<B> {
    product_within::<B>(x, weight, product, SCRATCH)
}

fn product_within<B: Ops>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    product: Product,
    scratch: usize,
) -> FloatTensor<B> {
    let (x, weight) = (tensor::<B, 2>(x), tensor::<B, 2>(weight));
    let [out, input] = weight.dims();
    let at_once = match weight.dtype() {
        DType::F32 => out,
        _ => (scratch / (4 * input.max(1))).clamp(1, out.max(1)),
    };
    let parts = (0..out).step_by(at_once.max(1)).map(|first| {
        let count = at_once.min(out - first);
        let part = weight.clone().narrow(0, first, count).cast(FloatDType::F32);
        match product {
            Product::Forward => matmul(x.clone(), part.transpose()),
            Product::InputGradient => matmul(x.clone().narrow(1, first, count), part),
        }
    });
    primitive(match product {
        Product::Forward => Tensor::cat(parts.collect(), 1),
        Product::InputGradient => parts.reduce(|sum, more| sum + more).unwrap_or_else(|| x.zeros_like()),
    })
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use burn::tensor::{FloatDType, Tensor, TensorData};
    use burn_flex::Flex;

    use super::{Product, primitive, product_within, tensor};

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
                    tensor::<Flex, 2>(product_within::<Flex>(primitive(x.clone()), weight, product, scratch))
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
