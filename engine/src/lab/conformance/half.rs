//! Weights in 16 bits: products with them, and their rows.

use burn::tensor::FloatDType;

use super::{DENSE, HALF_TOLERANCE, Matrix, Suite, TOLERANCE};
use crate::Result;
use crate::lab::Case;
use crate::model::{in_type, indices};
use crate::ops::{ComputeDtype, Ops, Product, half_embedding, half_matmul, select_rows};

/// Weights `[out, in]` and rows beyond the dense products': of more than one tile each way, and where nothing is aligned.
const TILES: [[usize; 3]; 4] = [[130, 264, 136], [257, 130, 72], [17, 131, 263], [129, 1, 300]];
/// The same of as few rows as decoding has: of whole eights, whose kernel takes the weight as it is, and not.
const FEW: [[usize; 3]; 4] = [[2, 264, 130], [7, 1032, 5], [16, 136, 67], [3, 65, 9]];
/// The same of weights in two and three tensors, for one row, some and many.
const PARTS: [[usize; 3]; 4] = [[1, 264, 130], [1, 65, 129], [16, 136, 100], [130, 72, 150]];
/// Tables `[rows, columns]` with rows that begin inside a word.
const TABLES: [[usize; 2]; 4] = [[1, 1], [5, 3], [300, 65], [70, 264]];

impl<B: Ops, P: AsyncFnMut(&Case)> Suite<B, P> {
    /// Both products, in f32 and in each type that the device computes in, and rows.
    pub(super) async fn halves(&mut self) -> Result<()> {
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            for compute in [ComputeDtype::F32, ComputeDtype::Bf16, ComputeDtype::F16] {
                if compute.check::<B>(&self.device).is_err() {
                    continue;
                }
                for [rows, input, out] in DENSE.into_iter().chain(TILES).chain(FEW) {
                    let weight = self.random(out, input).rounded(dtype);
                    for product in [Product::Forward, Product::InputGradient] {
                        self.half((dtype, compute), (&weight, out), rows, product).await?;
                    }
                }
                self.halves_in_parts((dtype, compute)).await?;
            }
        }
        for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
            for table in TABLES {
                self.rows(dtype, table).await?;
                self.conversions(dtype, table).await?;
            }
        }
        Ok(())
    }

    /// A matrix in every other type that the device computes in, as it lies, as columns of a larger one, and of no rows: what it holds
    /// where that is wider, and rounded where it is not.
    async fn conversions(&mut self, from: FloatDType, [count, columns]: [usize; 2]) -> Result<()> {
        let matrix = self.random(count, columns).rounded(from);
        for into in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
            if into == from || [from, into].iter().any(|dtype| !B::supports_dtype(&self.device, (*dtype).into())) {
                continue;
            }
            let tolerance = if into == FloatDType::F32 { 0.0 } else { HALF_TOLERANCE };
            let whole = matrix.values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
            let none = Matrix { values: vec![], columns };
            for (x, expected, layout) in [
                (self.upload_as(&matrix, from), &whole[..], ""),
                (self.within(&matrix, from), &whole[..], ", a slice"),
                (self.upload_as(&none, from), &[], ", of no rows"),
            ] {
                self.poison(expected.len()).await?;
                let kernel = (format!("cast {from:?} to {into:?}"), tolerance);
                self.compare(kernel, format!("[{count}, {columns}]{layout}"), in_type(x, into), expected).await?;
            }
        }
        Ok(())
    }

    /// Weights whose output features lie in several tensors; those in f32, too, come so.
    async fn halves_in_parts(&mut self, (dtype, compute): (FloatDType, ComputeDtype)) -> Result<()> {
        for [rows, input, out] in PARTS {
            for dtype in [dtype, FloatDType::F32] {
                let weight = self.random(out, input).rounded(dtype);
                for product in [Product::Forward, Product::InputGradient] {
                    self.half((dtype, compute), (&weight, 64), rows, product).await?;
                }
            }
        }
        Ok(())
    }

    /// Rows of a table, some of them more than once: what they hold, to the bit.
    async fn rows(&mut self, dtype: FloatDType, [count, columns]: [usize; 2]) -> Result<()> {
        let mut table = self.random(count, columns);
        // f16 has fewer bits for these.
        table.values.iter_mut().step_by(7).for_each(|value| *value *= 1e-5);
        let table = table.rounded(dtype);
        let picked: Vec<usize> = (0..count + 3).map(|i| (i * 7 + count / 2) % count).collect();
        let row = |row: &usize| table.values[row * columns..][..columns].iter().map(|value| f64::from(*value));
        let expected: Vec<f64> = picked.iter().flat_map(row).collect();
        let rows = indices(picked.iter().map(|row| *row as i32), &self.device);
        self.poison(expected.len()).await?;
        let found = half_embedding(self.upload_as(&table, dtype), rows.clone());
        let (kernel, about) =
            (format!("half_embedding {dtype:?}"), format!("{} rows of [{count}, {columns}]", picked.len()));
        self.compare((kernel, 0.0), about.clone(), found, &expected).await?;
        if !B::supports_dtype(&self.device, dtype.into()) {
            return Ok(());
        }
        // As they lie, and as columns of a larger matrix.
        for (table, layout) in [(self.upload_as(&table, dtype), ""), (self.within(&table, dtype), ", a slice")] {
            self.poison(expected.len()).await?;
            let kernel = (format!("select_rows {dtype:?}"), 0.0);
            self.compare(kernel, format!("{about}{layout}"), select_rows(table, rows.clone()), &expected).await?;
        }
        Ok(())
    }

    async fn half(
        &mut self,
        (dtype, compute): (FloatDType, ComputeDtype),
        (weight, at_once): (&Matrix, usize),
        rows: usize,
        product: Product,
    ) -> Result<()> {
        let [out, input] = [weight.values.len() / weight.columns, weight.columns];
        let (taken, given) = product.widths([out, input]);
        let x = self.random(rows, taken);
        let expected = x.times(weight, product == Product::Forward);
        self.poison(rows * given).await?;
        let part = |values: &[f32]| self.upload_as(&Matrix { values: values.to_vec(), columns: input }, dtype);
        let parts = weight.values.chunks(at_once * input).map(part).collect();
        let found = half_matmul(self.upload(&x), parts, product, compute);
        let tolerance = if compute == ComputeDtype::F32 { TOLERANCE } else { HALF_TOLERANCE };
        let kernel = (format!("half_matmul {product:?} {dtype:?} in {compute:?}"), tolerance);
        self.compare(kernel, format!("{rows} rows, [{out}, {input}]"), found, &expected).await
    }
}
