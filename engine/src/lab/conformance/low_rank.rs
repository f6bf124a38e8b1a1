//! Products with the matrices of a low-rank branch.

use burn::tensor::FloatDType;

use super::{HALF_TOLERANCE, Suite, TOLERANCE, held};
use crate::Result;
use crate::lab::Case;
use crate::model::in_type;
use crate::ops::{ComputeDtype, Ops, Product, low_rank, low_rank_gradient};

/// Rows, the wide dimension and the rank: single elements, tiles and their remainders, nothing aligned.
const SHAPES: [[usize; 3]; 6] = [[1, 1, 1], [3, 64, 8], [33, 260, 16], [131, 72, 33], [65, 1031, 4], [70, 128, 130]];

impl<B: Ops, P: AsyncFnMut(&Case)> Suite<B, P> {
    /// Both products and the gradients, in f32 and in each type that the device computes in.
    pub(super) async fn low_rank(&mut self) -> Result<()> {
        for compute in [ComputeDtype::F32, ComputeDtype::Bf16, ComputeDtype::F16] {
            if compute.check::<B>(&self.device).is_err() {
                continue;
            }
            for held in held(compute) {
                for shape in SHAPES {
                    for product in [Product::Forward, Product::InputGradient] {
                        self.through_low_rank(shape, product, compute, held).await?;
                        self.low_rank_gradients(shape, product, compute, held).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn through_low_rank(
        &mut self,
        [rows, wide, rank]: [usize; 3],
        product: Product,
        compute: ComputeDtype,
        held: FloatDType,
    ) -> Result<()> {
        let (forward, scaling) = (product == Product::Forward, 0.7);
        let (x, factor) =
            (self.random(rows, wide), if forward { self.random(rank, wide) } else { self.random(wide, rank) });
        let expected: Vec<f64> = x.times(&factor, forward).into_iter().map(|sum| sum * scaling).collect();
        self.poison(rows * (wide + rank)).await?;
        let [low, rounded] = low_rank(in_type(self.upload(&x), held), self.upload(&factor), product, scaling, compute);
        let about = format!("{rows} rows of {wide}, rank {rank}");
        let name = format!("low_rank {product:?} of {held:?} in {compute:?}");
        self.compare((name.clone(), tolerance(compute)), about.clone(), low, &expected).await?;
        let expected: Vec<f64> = x.values.iter().map(|x| f64::from(*x)).collect();
        self.compare((format!("{name}, its input"), tolerance(compute)), about, rounded, &expected).await
    }

    async fn low_rank_gradients(
        &mut self,
        [rows, wide, rank]: [usize; 3],
        product: Product,
        compute: ComputeDtype,
        held: FloatDType,
    ) -> Result<()> {
        // Of the first matrix, `[rank, wide]`, or of the second one, `[wide, rank]`.
        let [out, input] = if product == Product::Forward { [rank, wide] } else { [wide, rank] };
        let ([grad, x], scaling) = ([self.random(out, rows), self.random(rows, input)], 0.7);
        let expected: Vec<f64> = grad.times(&x, false).into_iter().map(|sum| sum * scaling).collect();
        let grad = in_type(self.upload(&grad).transpose(), held);
        self.poison(out * input).await?;
        let found = low_rank_gradient(grad, in_type(self.upload(&x), held), scaling, compute);
        let kernel = (format!("low_rank_gradient of {held:?} in {compute:?}"), tolerance(compute));
        self.compare(kernel, format!("[{out}, {input}] of {rows} rows"), found, &expected).await
    }
}

fn tolerance(compute: ComputeDtype) -> f64 {
    if compute == ComputeDtype::Bf16 { HALF_TOLERANCE } else { TOLERANCE }
}
