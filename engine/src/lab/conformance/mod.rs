//! Whether a backend's kernels are right: every variant on adversarial shapes against the plain code of
//! [`crate::nf4`] in f64; attention; products with weights in 16 bits; and what is elementwise or by rows.

mod attention;
mod half;
mod layers;
mod low_rank;

use ::half::{bf16, f16};
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::Result;
use crate::files::{quantized, read};
use crate::lab::judged_error;
use crate::model::in_type;
use crate::nf4::quantize;
use crate::ops::{
    ComputeDtype, Dropped, Nf4Weight, Ops, Product, Variant, dropout, matmul, nf4_lora_by, nf4_matmul_by,
};

/// What f32 results may be off by, `||found - expected|| / ||expected||`.
const TOLERANCE: f64 = 1e-5;
/// The same where operands are rounded to f16 or bf16.
const HALF_TOLERANCE: f64 = 1e-2;
/// Weights `[out, in]`: single elements, primes, rows that begin inside a byte, a word or a block, tiles and their remainders.
const WEIGHTS: [[usize; 2]; 12] = [
    [1, 1],
    [3, 5],
    [7, 64],
    [5, 65],
    [33, 127],
    [64, 129],
    [4, 8],
    [67, 136],
    [130, 256],
    [1028, 24],
    [24, 1032],
    [200, 288],
];
/// Rows of activations: none, the limits of the skinny kernel, tiles and their remainders.
const ROWS: [usize; 9] = [0, 1, 2, 7, 16, 17, 64, 65, 131];
/// Rows up to which products are compared with a branch beside the weight too; more are the sum of two compared products.
const BRANCH_ROWS: usize = 17;
/// Ranks of such branches.
const RANKS: [usize; 5] = [1, 8, 33, 64, 130];
/// Dense products `[m, k, n]`.
const DENSE: [[usize; 3]; 6] = [[1, 1, 1], [1, 8, 64], [1, 104, 20], [17, 8, 33], [65, 40, 24], [129, 200, 66]];

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// The operation, and which variant of it.
    pub kernel: String,
    /// The shapes, and what is special about them.
    pub shapes: String,
    /// `||found - expected|| / ||expected||`; infinite where the result is not a number.
    pub error: f64,
    /// How large it may be.
    pub tolerance: f64,
}

impl Case {
    /// Whether the error is small enough.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// A suite's results.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Conformance {
    /// All comparisons, in the order in which they were made.
    pub cases: Vec<Case>,
}

impl Conformance {
    /// The comparisons that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(|case| !case.passed())
    }

    /// Each kernel with its number of comparisons, how many passed, and the worst error.
    pub fn by_kernel(&self) -> Vec<(&str, usize, usize, f64)> {
        let mut kernels: Vec<(&str, usize, usize, f64)> = Vec::new();
        for case in &self.cases {
            if kernels.iter().all(|kernel| kernel.0 != case.kernel) {
                kernels.push((&case.kernel, 0, 0, 0.0));
            }
            for (_, count, passed, worst) in kernels.iter_mut().filter(|kernel| kernel.0 == case.kernel) {
                *count += 1;
                *passed += usize::from(case.passed());
                *worst = worst.max(case.error);
            }
        }
        kernels
    }
}

/// Runs the suite; `seed` decides all values, `progress` sees each comparison, and may rest after it.
///
/// ```no_run
/// # async fn test() -> halfbyte::Result<()> {
/// use halfbyte::{backends::Cpu, lab::conformance};
///
/// let report = conformance::<Cpu>(&Default::default(), 7, async |_| {}).await?;
/// for (kernel, cases, failed, worst) in report.by_kernel() {
///     println!("{kernel}: {failed} of {cases} wrong, relative error at most {worst:.1e}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When the device cannot be read. A wrong result is no error: it is in the report.
pub async fn conformance<B: Ops>(
    device: &B::Device,
    seed: u64,
    progress: impl AsyncFnMut(&Case),
) -> Result<Conformance> {
    let random = ChaCha8Rng::seed_from_u64(seed);
    let mut suite = Suite::<B, _> { device: device.clone(), random, report: Conformance::default(), progress };
    for [m, k, n] in DENSE {
        suite.dense(m, k, n).await?;
    }
    for (i, shape) in WEIGHTS.into_iter().enumerate() {
        let (block_size, double_quant) = ([64, 128, 32][i % 3], i % 2 == 0);
        suite.quantize(shape, block_size, double_quant).await?;
        suite.weight(shape, block_size, double_quant, &ROWS).await?;
    }
    suite.weight([40, 72], 64, true, &[4097]).await?;
    suite.parts().await?;
    suite.halves().await?;
    suite.low_rank().await?;
    suite.dropout().await?;
    suite.layers().await?;
    suite.attention().await?;
    Ok(suite.report)
}

fn tolerance(variant: Variant) -> f64 {
    match ComputeDtype::of(Some(variant)) {
        ComputeDtype::F32 => TOLERANCE,
        ComputeDtype::Bf16 | ComputeDtype::F16 => HALF_TOLERANCE,
    }
}

/// The types that activations around products in a type come in: f32, and the one that they are held in where that is another.
fn held(compute: ComputeDtype) -> impl Iterator<Item = FloatDType> {
    let other = Some(compute.activations()).filter(|held| *held != FloatDType::F32);
    [FloatDType::F32].into_iter().chain(other)
}

/// The Euclidean norm.
fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// How many times as large as sums their terms are, by the norm of all of them, and at least one: terms are what is rounded.
fn cancellation(terms: f64, sums: &[f64]) -> f64 {
    let sums = norm(sums);
    if sums > 0.0 { (terms / sums).max(1.0) } else { 1.0 }
}

struct Suite<B: Ops, P> {
    device: B::Device,
    random: ChaCha8Rng,
    report: Conformance,
    progress: P,
}

/// A row-major matrix.
#[derive(Clone)]
struct Matrix {
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// With elements that a type holds.
    fn rounded(mut self, dtype: FloatDType) -> Self {
        let round = match dtype {
            FloatDType::F16 => |value| f16::from_f32(value).to_f32(),
            FloatDType::BF16 => |value| bf16::from_f32(value).to_f32(),
            _ => |value| value,
        };
        self.values.iter_mut().for_each(|value| *value = round(*value));
        self
    }

    /// `self · other` in f64, `other` transposed or not.
    fn times(&self, other: &Self, transposed: bool) -> Vec<f64> {
        let columns = if transposed { other.values.len() / other.columns } else { other.columns };
        let at = |k: usize, j: usize| other.values[if transposed { j * other.columns + k } else { k * columns + j }];
        let row =
            |row: &[f32], j: usize| row.iter().enumerate().map(|(k, x)| f64::from(*x) * f64::from(at(k, j))).sum();
        self.values.chunks(self.columns).flat_map(|x| (0..columns).map(move |j| row(x, j))).collect()
    }

    /// The norm of all terms of [`times`](Self::times).
    fn terms(&self, other: &Self, transposed: bool) -> f64 {
        let squares =
            |of: &Self| Self { columns: of.columns, values: of.values.iter().map(|value| value * value).collect() };
        squares(self).times(&squares(other), transposed).iter().sum::<f64>().sqrt()
    }
}

impl<B: Ops, P: AsyncFnMut(&Case)> Suite<B, P> {
    fn random(&mut self, rows: usize, columns: usize) -> Matrix {
        let values = (0..rows * columns).map(|_| self.random.random_range(-1.0f32..1.0)).collect();
        Matrix { columns, values }
    }

    fn upload(&self, matrix: &Matrix) -> Tensor<B, 2> {
        self.upload_as(matrix, FloatDType::F32)
    }

    /// In a type that the device may have no arithmetic in.
    fn upload_as(&self, matrix: &Matrix, dtype: FloatDType) -> Tensor<B, 2> {
        let shape = [matrix.values.len() / matrix.columns, matrix.columns];
        let data = TensorData::new(matrix.values.clone(), shape).convert_dtype(dtype.into());
        Tensor::from_data(data, (&self.device, dtype.into()))
    }

    /// The types that activations may have on the device, each with what results in it may be off by.
    fn types(&self) -> Vec<(FloatDType, f64)> {
        let all = [(FloatDType::F32, TOLERANCE), (FloatDType::BF16, HALF_TOLERANCE), (FloatDType::F16, HALF_TOLERANCE)];
        all.into_iter().filter(|(dtype, _)| B::supports_dtype(&self.device, (*dtype).into())).collect()
    }

    /// Fills memory with NaN and gives it back, so that a result which is not written whole is not right by chance.
    async fn poison(&self, length: usize) -> Result<()> {
        let poison = Tensor::<B, 1>::full([length.max(1)], f32::NAN, &self.device);
        read(poison.narrow(0, 0, 1)).await.map(|_| ())
    }

    async fn compare(
        &mut self,
        (kernel, tolerance): (String, f64),
        shapes: String,
        found: Tensor<B, 2>,
        expected: &[f64],
    ) -> Result<()> {
        let error = judged_error(&read(in_type(found, FloatDType::F32)).await?, expected);
        let case = Case { kernel, shapes, error, tolerance };
        (self.progress)(&case).await;
        self.report.cases.push(case);
        Ok(())
    }

    async fn dense(&mut self, m: usize, k: usize, n: usize) -> Result<()> {
        let (a, b) = (self.random(m, k), self.random(k, n));
        self.poison(m * n).await?;
        let found = matmul(self.upload(&a), self.upload(&b));
        self.compare(("matmul".into(), TOLERANCE), format!("[{m}, {k}] x [{k}, {n}]"), found, &a.times(&b, false)).await
    }

    /// Dropped are those elements that the key says, on every device.
    async fn dropout(&mut self) -> Result<()> {
        for (held, tolerance) in self.types() {
            // In f32 there is nothing to be off by.
            let tolerance = if held == FloatDType::F32 { 0.0 } else { tolerance };
            for [rows, columns] in [[0, 5], [1, 1], [3, 5], [17, 33], [131, 1000]] {
                let (x, dropped) = (self.random(rows, columns), Dropped::new(self.random.random(), 0.1));
                let factor = |(i, x): (usize, &f32)| f64::from(x * dropped.factor(i));
                let expected: Vec<f64> = x.values.iter().enumerate().map(factor).collect();
                self.poison(rows * columns).await?;
                let found = in_type(dropout(in_type(self.upload(&x), held), dropped), FloatDType::F32);
                let what = format!("[{rows}, {columns}] in {held:?}");
                self.compare(("dropout".into(), tolerance), what, found, &expected).await?;
            }
        }
        Ok(())
    }

    /// Weights quantized on the device: decoded there, they are what the plain code makes of them, bit by bit.
    async fn quantize(&mut self, shape: [usize; 2], block_size: usize, double: bool) -> Result<()> {
        let [out, input] = shape;
        // As files hold them: every device quantizes 16 bits, also where it does not compute in them.
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let values = TensorData::new(self.random(out, input).values, shape).convert_dtype(dtype);
            // A GPU may round the decode of a double-quantized scale once instead of twice; it does so to both.
            let expected = Nf4Weight::<B>::upload(&quantized(&values, shape, block_size, double)?, &self.device)?;
            let expected: Vec<f64> = read(expected.dequantize()).await?.into_iter().map(f64::from).collect();
            self.poison(out * input).await?;
            let weight = Nf4Weight::<B>::quantize(values, shape, block_size, double, &self.device).await?;
            let scales = if double { "double" } else { "plain" };
            let about = format!("[{out}, {input}] in {dtype:?}, {scales} scales of {block_size}");
            self.compare(("nf4_quantize".into(), 0.0), about, weight.dequantize(), &expected).await?;
        }
        Ok(())
    }

    /// The decode of a weight, and its products by every variant.
    async fn weight(&mut self, shape: [usize; 2], block_size: usize, double: bool, rows: &[usize]) -> Result<()> {
        let [out, input] = shape;
        let values = self.random(out, input).values;
        let data = quantize(&values, shape, block_size, double)?;
        let weight = Nf4Weight::<B>::upload(&data, &self.device)?;
        let dense = Matrix { columns: input, values: data.dequantize() };
        let scales = if double { "double" } else { "plain" };
        let about = format!("[{out}, {input}], {scales} scales of {block_size}");
        self.poison(out * input).await?;
        let expected: Vec<f64> = dense.values.iter().map(|v| f64::from(*v)).collect();
        self.compare(("nf4_dequantize".into(), TOLERANCE), about.clone(), weight.dequantize(), &expected).await?;
        for (rows, product) in
            rows.iter().flat_map(|rows| [Product::Forward, Product::InputGradient].map(|p| (*rows, p)))
        {
            let (taken, given) = product.widths(shape);
            let x = self.random(rows, taken);
            let forward = product == Product::Forward;
            let (expected, terms) = (x.times(&dense, forward), x.terms(&dense, forward));
            let allowed = cancellation(terms, &expected);
            for variant in B::nf4_variants(&self.device, shape, rows, product) {
                // The rows as they lie, out of the middle of a larger tensor, and as columns of a transposed one.
                let layouts = ["", ", a slice", ", transposed"];
                for layout in layouts.into_iter().take(if rows == 0 { 1 } else { layouts.len() }) {
                    let operand = match layout {
                        "" => self.upload(&x),
                        ", transposed" => self.upload(&x).transpose().mul_scalar(1.0).transpose(),
                        _ => {
                            let around = Tensor::zeros([1, taken], &self.device);
                            Tensor::cat(vec![around.clone(), self.upload(&x), around], 0).narrow(0, 1, rows)
                        }
                    };
                    self.poison(rows * given).await?;
                    let found = nf4_matmul_by(variant, operand, &weight, product, FloatDType::F32);
                    let kernel = (format!("nf4_matmul {product:?} {variant:?}"), allowed * tolerance(variant));
                    self.compare(kernel, format!("{rows} rows{layout}, {about}"), found, &expected).await?;
                }
                // As activations are held beside the products that round them.
                for held in held(ComputeDtype::of(Some(variant))).skip(1) {
                    self.poison(rows * given).await?;
                    let found = nf4_matmul_by(variant, in_type(self.upload(&x), held), &weight, product, held);
                    let kernel = (format!("nf4_matmul {product:?} {variant:?} of {held:?}"), allowed * HALF_TOLERANCE);
                    self.compare(kernel, format!("{rows} rows, {about}"), found, &expected).await?;
                }
            }
            if rows <= BRANCH_ROWS {
                self.branch((&x, expected, terms), (&weight, product), &about).await?;
            }
        }
        Ok(())
    }

    /// Products with a weight that is held in pieces, the last one smaller than the others.
    async fn parts(&mut self) -> Result<()> {
        let shape = [200, 1024];
        let values = self.random(shape[0], shape[1]).values;
        let data = quantize(&values, shape, 64, true)?;
        let weight = Nf4Weight::<B>::upload_within(&data, 32_768, &self.device)?;
        let dense = Matrix { columns: shape[1], values: data.dequantize() };
        let expected: Vec<f64> = dense.values.iter().map(|v| f64::from(*v)).collect();
        let about = "[200, 1024] in pieces of 64 features";
        self.compare(("nf4_dequantize".into(), TOLERANCE), about.into(), weight.dequantize(), &expected).await?;
        for (rows, product) in [(3, Product::Forward), (3, Product::InputGradient), (70, Product::InputGradient)] {
            let x = self.random(rows, product.widths(shape).0);
            let forward = product == Product::Forward;
            let (expected, terms) = (x.times(&dense, forward), x.terms(&dense, forward));
            for variant in B::nf4_variants(&self.device, shape, rows, product) {
                let kernel = (format!("nf4_matmul {product:?} {variant:?}"), tolerance(variant));
                let found = nf4_matmul_by(variant, self.upload(&x), &weight, product, FloatDType::F32);
                self.compare(kernel, format!("{rows} rows, {about}"), found, &expected).await?;
            }
            self.branch((&x, expected, terms), (&weight, product), about).await?;
        }
        Ok(())
    }

    /// The same products with a branch beside the weight; `expected` is what they are without one, of terms whose norm is `terms`.
    async fn branch(
        &mut self,
        (x, expected, terms): (&Matrix, Vec<f64>, f64),
        (weight, product): (&Nf4Weight<B>, Product),
        about: &str,
    ) -> Result<()> {
        let (rows, rank) = (x.values.len() / x.columns, RANKS[self.random.random_range(0..RANKS.len())]);
        let ([out, input], scaling) = (weight.shape(), 0.7);
        let forward = product == Product::Forward;
        let (low, b) =
            (self.random(rows, rank), if forward { self.random(out, rank) } else { self.random(rank, input) });
        let added = low.times(&b, forward);
        let expected: Vec<f64> = expected.iter().zip(added).map(|(y, added)| y + scaling * added).collect();
        let allowed = cancellation(terms.hypot(scaling * low.terms(&b, forward)), &expected);
        for variant in B::nf4_variants(&self.device, [out, input], rows, product) {
            for held in held(ComputeDtype::of(Some(variant))) {
                self.poison(expected.len()).await?;
                let [x, low, b] = [x, &low, &b].map(|matrix| self.upload(matrix));
                let branch = ([in_type(low, held), b], scaling);
                let found = nf4_lora_by(variant, in_type(x, held), weight, product, branch, held);
                let kernel = (format!("nf4_lora {product:?} {variant:?} of {held:?}"), allowed * tolerance(variant));
                self.compare(kernel, format!("{rows} rows, rank {rank}, {about}"), found, &expected).await?;
            }
        }
        Ok(())
    }
}
