//! Products with weights in 16 bits.

use burn::tensor::FloatDType;

use super::{DENSE, HALF_TOLERANCE, Matrix, Suite, TOLERANCE};
use crate::Result;
use crate::lab::Case;
use crate::ops::{ComputeDtype, Ops, Product, half_matmul};

/// Weights `[out, in]` and rows beyond the dense products': of more than one tile each way, and where nothing is aligned.
const TILES: [[usize; 3]; 4] = [[130, 264, 136], [257, 130, 72], [17, 131, 263], [129, 1, 300]];

impl<B: Ops, P: AsyncFnMut(&Case)> Suite<B, P> {
    /// Both products, in f32 and in each type that the device computes in.
    pub(super) async fn halves(&mut self) -> Result<()> {
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            if !B::supports_dtype(&self.device, dtype.into()) {
                continue;
            }
            for compute in [ComputeDtype::F32, ComputeDtype::Bf16, ComputeDtype::F16] {
                if compute.check::<B>(&self.device).is_err() {
                    continue;
                }
                for [rows, input, out] in DENSE.into_iter().chain(TILES) {
                    // Of so few bits that both types hold them.
                    let mut weight = self.random(out, input);
                    weight.values.iter_mut().for_each(|value| *value = (*value * 64.0).round() / 64.0);
                    for product in [Product::Forward, Product::InputGradient] {
                        self.half((dtype, compute), &weight, rows, product).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn half(
        &mut self,
        (dtype, compute): (FloatDType, ComputeDtype),
        weight: &Matrix,
        rows: usize,
        product: Product,
    ) -> Result<()> {
        let [out, input] = [weight.values.len() / weight.columns, weight.columns];
        let (taken, given) = product.widths([out, input]);
        let x = self.random(rows, taken);
        let expected = x.times(weight, product == Product::Forward);
        self.poison(rows * given).await?;
        let found = half_matmul(self.upload(&x), self.upload(weight).cast(dtype), product, compute);
        let tolerance = if compute == ComputeDtype::F32 { TOLERANCE } else { HALF_TOLERANCE };
        let kernel = (format!("half_matmul {product:?} {dtype:?} in {compute:?}"), tolerance);
        self.compare(kernel, format!("{rows} rows, [{out}, {input}]"), found, &expected).await
    }
}
