//! Every operation and its gradients against plain f64 formulas, which the backends have to meet on any shape.
//!
//! A formula here is written for reading, not for speed, and shares no code with the engine. Its gradients are central
//! differences, which f64 makes exact to about 1e-9.

use burn::backend::Autodiff;
use burn::tensor::{FloatDType, Int, Tensor, TensorData, bf16};
use halfbyte::lab::conformance;
use halfbyte::model::Table;
use halfbyte::nf4::{Absmax, Nf4Data, quantize};
use halfbyte::ops::{
    Activation, Branch, ComputeDtype, Dropped, Frozen, Nf4Weight, Ops, Product, Variant, cross_entropy, dropout, gated,
    lora_linear, matmul, nf4_matmul, nf4_matmul_by, rms_norm, rotate,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{assert_close, reference::values};

/// A matrix of f64, row by row.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<f64>,
}

impl Matrix {
    pub(crate) fn of(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let values = (0..rows * columns).map(|i| value(i / columns, i % columns)).collect();
        Self { rows, columns, values }
    }

    /// Values that f32 holds exactly, between -1 and 1.
    pub(crate) fn random(rows: usize, columns: usize, random: &mut ChaCha8Rng) -> Self {
        let values = (0..rows * columns).map(|_| f64::from(random.random_range(-1.0f32..1.0))).collect();
        Self { rows, columns, values }
    }

    pub(crate) fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.columns + column]
    }

    fn times(&self, other: &Self) -> Self {
        let dot = |i, j| (0..self.columns).map(|k| self.at(i, k) * other.at(k, j)).sum();
        Self::of(self.rows, other.columns, dot)
    }

    fn transposed(&self) -> Self {
        Self::of(self.columns, self.rows, |i, j| self.at(j, i))
    }

    fn with(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self::of(self.rows, self.columns, |i, j| f(self.at(i, j), other.at(i, j)))
    }

    fn to_f32(&self) -> Vec<f32> {
        self.values.iter().map(|v| *v as f32).collect()
    }

    fn tensor<B: Ops>(&self, device: &B::Device) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(self.to_f32(), [self.rows, self.columns]), device)
    }
}

/// A matrix of a backend under autodiff.
pub(crate) type Lifted<B> = Tensor<Autodiff<B>, 2>;

/// An operation on inputs of given shapes, on a backend and as a formula.
pub(crate) struct Case<'a, B: Ops> {
    pub(crate) name: String,
    pub(crate) inputs: Vec<Matrix>,
    pub(crate) operation: &'a (dyn Fn(&[Lifted<B>]) -> Lifted<B> + 'a),
    pub(crate) formula: &'a dyn Fn(&[Matrix]) -> Matrix,
}

impl<B: Ops> Case<'_, B> {
    /// Compares the result, and the gradient of a random weighting of its elements for every input.
    pub(crate) fn check(&self, device: &B::Device, random: &mut ChaCha8Rng) {
        let inputs: Vec<_> = self.inputs.iter().map(|m| m.tensor::<Autodiff<B>>(device).require_grad()).collect();
        let expected = (self.formula)(&self.inputs);
        let weighting = Matrix::random(expected.rows, expected.columns, random);
        let found = (self.operation)(&inputs);
        assert_eq!(found.dims(), [expected.rows, expected.columns], "{}", self.name);
        let gradients = (found.clone() * weighting.tensor(device)).sum().backward();
        assert_close(&self.name, &values(found.inner()), &expected.to_f32(), 1e-5);
        let weighted = |inputs: &[Matrix]| -> f64 {
            (self.formula)(inputs).values.iter().zip(&weighting.values).map(|(a, b)| a * b).sum()
        };
        for (i, input) in inputs.iter().enumerate() {
            let expected = central_differences(&self.inputs, i, &weighted);
            let found = input.grad(&gradients).unwrap_or_else(|| panic!("{}: no gradient for input {i}", self.name));
            assert_close(&format!("{}, gradient of input {i}", self.name), &values(found), &expected, 1e-5);
        }
    }
}

/// The derivative of `f` for each element of input `i`.
fn central_differences(inputs: &[Matrix], i: usize, f: &dyn Fn(&[Matrix]) -> f64) -> Vec<f32> {
    const STEP: f64 = 1e-5;
    let mut moved = inputs.to_vec();
    let mut at = |element: usize, by: f64| {
        moved[i].values[element] = inputs[i].values[element] + by;
        let value = f(&moved);
        moved[i].values[element] = inputs[i].values[element];
        value
    };
    (0..inputs[i].values.len()).map(|e| ((at(e, STEP) - at(e, -STEP)) / (2.0 * STEP)) as f32).collect()
}

fn random_weight(shape: [usize; 2], block_size: usize, double: bool, random: &mut ChaCha8Rng) -> (Nf4Data, Matrix) {
    let weight = Matrix::random(shape[0], shape[1], random);
    let data = quantize(&weight.to_f32(), shape, block_size, double).expect("finite weights");
    let decoded = data.dequantize();
    (data, Matrix::of(shape[0], shape[1], |i, j| f64::from(decoded[i * shape[1] + j])))
}

/// Dense products: one row to many, inner dimensions that are no whole number of tiles, views that are transposed, batches.
pub fn products_match<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    for [m, k, n] in [[1, 1, 1], [1, 8, 64], [1, 104, 20], [17, 8, 33], [33, 40, 24], [9, 72, 35]] {
        let case = Case::<B> {
            name: format!("matmul of [{m}, {k}] and [{k}, {n}]"),
            inputs: vec![Matrix::random(m, k, &mut random), Matrix::random(k, n, &mut random)],
            operation: &|x| matmul(x[0].clone(), x[1].clone()),
            formula: &|x| x[0].times(&x[1]),
        };
        case.check(device, &mut random);
        let case = Case::<B> {
            name: format!("matmul of transposed [{k}, {m}] and [{n}, {k}] between elementwise operations"),
            inputs: [[k, m], [n, k], [m, n]].map(|[m, n]| Matrix::random(m, n, &mut random)).to_vec(),
            operation: &|x| matmul((x[0].clone() * 2.0).transpose(), x[1].clone().transpose()) + x[2].clone(),
            formula: &|x| {
                let product = x[0].transposed().times(&x[1].transposed());
                product.with(&x[2], |product, other| 2.0 * product + other)
            },
        };
        case.check(device, &mut random);
        // The operands of one product in every place of a batch of 2 x 3, as attention has them: heads swapped with tokens.
        let (lhs, rhs) = (Matrix::random(m, 6 * k, &mut random), Matrix::random(k, 6 * n, &mut random));
        let heads = |x: &Matrix, width: usize| {
            x.tensor::<B>(device).reshape([x.rows, 2, 3, width]).swap_dims(0, 1).swap_dims(1, 2)
        };
        let found = values(matmul(heads(&lhs, k), heads(&rhs, n)));
        let part = |x: &Matrix, i: usize, width: usize| Matrix::of(x.rows, width, |row, c| x.at(row, i * width + c));
        let expected = (0..6).flat_map(|i| part(&lhs, i, k).times(&part(&rhs, i, n)).to_f32()).collect::<Vec<_>>();
        assert_close(&format!("six products of [{m}, {k}] and [{k}, {n}]"), &found, &expected, 1e-5);
    }
}

/// The library's own suite, with values that nobody has seen.
pub fn kernels_conform<B: Ops>(device: &B::Device) {
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
    let report = pollster::block_on(conformance::<B>(device, seed, async |_| {})).expect("a device that can be read");
    let failures: Vec<_> = report.failures().collect();
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
    assert!(report.cases.len() > 300, "{} comparisons", report.cases.len());
}

/// The product of a row with a weight that is decoded part by part, its codes more than the 128 MiB that WebGPU binds at once.
pub fn large_products_match<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let shape = [66_000, 4096];
    let data = random_codes(shape, &mut random);
    let (weight, dense) = (Nf4Weight::<B>::upload(&data, device).expect("fits"), data.dequantize());
    for product in [Product::Forward, Product::InputGradient] {
        let (taken, given) = product.widths(shape);
        let x: Vec<f32> = (0..taken).map(|_| random.random_range(-1.0f32..1.0)).collect();
        let mut expected = vec![0.0f64; given];
        for (j, w) in dense.chunks(shape[1]).enumerate() {
            match product {
                Product::Forward => expected[j] = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum(),
                Product::InputGradient => {
                    expected.iter_mut().zip(w).for_each(|(y, w)| *y += f64::from(x[j]) * f64::from(*w));
                }
            }
        }
        let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
        let x = Tensor::from_data(TensorData::new(x, [1, taken]), device);
        let found = values(nf4_matmul_by(Variant::Decoded, x, &weight, product, FloatDType::F32));
        assert_close(&format!("{product:?} with {shape:?}"), &found, &expected, 2e-5);
    }
}

/// A head of more bytes than WebGPU binds at once by default, in bf16, as [`Table`] has it there: for a row, a few and many.
pub fn large_tables_match<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(12);
    let [vocab, hidden] = [70_000, 1024];
    let values_of = |count: usize, random: &mut ChaCha8Rng| -> Vec<f32> {
        (0..count).map(|_| bf16::from_f32(random.random_range(-1.0f32..1.0)).to_f32()).collect()
    };
    let dense = values_of(vocab * hidden, &mut random);
    let held = dense.iter().map(|value| bf16::from_f32(*value)).collect();
    let table = Table::<B>::upload(TensorData::new::<bf16, _>(held, [vocab, hidden]), device);
    let tokens = [69_999, 0, 65_535, 65_536, 1, 69_999];
    let expected: Vec<f32> =
        tokens.iter().flat_map(|token| dense[*token as usize * hidden..][..hidden].iter().copied()).collect();
    assert!(values(table.rows(&tokens)) == expected, "rows of a large table");
    for rows in [1, 3, 20] {
        let x = values_of(rows * hidden, &mut random);
        let dot =
            |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32;
        let expected: Vec<f32> = x.chunks(hidden).flat_map(|x| dense.chunks(hidden).map(move |w| dot(x, w))).collect();
        let x = Tensor::<Autodiff<B>, 2>::from_data(TensorData::new(x, [rows, hidden]), device).require_grad();
        let logits = table.map("", &mut |_, part| part.lift()).logits(x.clone(), ComputeDtype::F32);
        assert_close(&format!("{rows} rows of logits"), &values(logits.clone().inner()), &expected, 1e-5);
        // Of one token in each of a few places, so that what is expected is quickly found.
        let asked = [5usize, 65_600, 69_999];
        let places = Tensor::<Autodiff<B>, 1, Int>::from_data(asked.map(|token| token as i32), device);
        let gradients = logits.select(1, places).sum().backward();
        let row: Vec<f32> = (0..hidden).map(|i| asked.iter().map(|token| dense[token * hidden + i]).sum()).collect();
        let found = values(x.grad(&gradients).expect("a gradient"));
        assert_close(&format!("the gradient of {rows} rows"), &found, &row.repeat(rows), 1e-5);
    }
}

/// A weight of random codes and scales: quantizing one of this size would take longer than the test.
fn random_codes(shape: [usize; 2], random: &mut ChaCha8Rng) -> Nf4Data {
    let count = shape[0] * shape[1];
    let mut packed = vec![0; count.div_ceil(2)];
    random.fill_bytes(&mut packed);
    let mut codes = vec![0; count.div_ceil(64)];
    random.fill_bytes(&mut codes);
    let nested = (0..codes.len().div_ceil(256)).map(|_| random.random_range(0.001f32..0.02)).collect();
    Nf4Data { shape, block_size: 64, packed: packed.into(), absmax: Absmax::Double { codes, nested, offset: 0.02 } }
}

/// Products with 4-bit weights as the model calls them, in both directions, and their gradients.
pub fn nf4_products_match<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for (i, shape) in [[1, 1], [5, 65], [33, 127], [130, 256]].into_iter().enumerate() {
        let (data, weight) = random_weight(shape, [64, 128, 32][i % 3], i % 2 == 0, &mut random);
        let held = Nf4Weight::<Autodiff<B>>::upload(&data, device).expect("a valid weight");
        for (rows, product) in
            [1, 65].into_iter().flat_map(|n| [Product::Forward, Product::InputGradient].map(|p| (n, p)))
        {
            let (taken, given) = product.widths(shape);
            let matrix = if product == Product::Forward { weight.transposed() } else { weight.clone() };
            let x = Matrix::random(rows, taken, &mut random);
            let name = format!("{product:?} of {rows} rows with {shape:?}");
            let input = x.tensor::<Autodiff<B>>(device).require_grad();
            let y = nf4_matmul(input.clone(), &held, product, FloatDType::F32);
            assert_close(&name, &values(y.clone().inner()), &x.times(&matrix).to_f32(), 1e-5);
            // The product is linear: its gradient is the weighting times the other orientation.
            let weighting = Matrix::random(rows, given, &mut random);
            let gradients = (y * weighting.tensor(device)).sum().backward();
            let found = values(input.grad(&gradients).expect("a gradient"));
            assert_close(&name, &found, &weighting.times(&matrix.transposed()).to_f32(), 1e-5);
        }
    }
}

/// Normalisation, activation and rotation.
pub fn elementwise_blocks_match<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for [rows, columns] in [[1, 3], [3, 24], [17, 65]] {
        let x = Matrix::random(rows, columns, &mut random);
        let norm = |inputs: &[Matrix]| {
            let (x, weight) = (&inputs[0], &inputs[1]);
            let rms = |i| ((0..columns).map(|j| x.at(i, j).powi(2)).sum::<f64>() / columns as f64 + 1e-5).sqrt();
            Matrix::of(rows, columns, |i, j| x.at(i, j) / rms(i) * weight.at(0, j))
        };
        let case = Case::<B> {
            name: format!("rms_norm of [{rows}, {columns}]"),
            inputs: vec![x.clone(), Matrix::random(1, columns, &mut random)],
            operation: &|x| rms_norm(x[0].clone(), x[1].clone(), 1e-5, FloatDType::F32),
            formula: &norm,
        };
        case.check(device, &mut random);
        let up = Matrix::random(rows, columns, &mut random);
        let activations: [(Activation, &dyn Fn(f64) -> f64); 2] = [
            (Activation::Silu, &|x| x / (1.0 + (-x).exp())),
            (Activation::GeluTanh, &|x| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }),
        ];
        for (activation, formula) in activations {
            let case = Case::<B> {
                name: format!("{activation:?} gate of [{rows}, {columns}]"),
                inputs: vec![x.clone(), up.clone()],
                operation: &|x| gated(x[0].clone() * 6.0, x[1].clone(), activation),
                formula: &|x| x[0].with(&x[1], |gate, up| formula(6.0 * gate) * up),
            };
            case.check(device, &mut random);
        }
    }
    rotation_matches::<B>(device, &mut random);
}

fn rotation_matches<B: Ops>(device: &B::Device, random: &mut ChaCha8Rng) {
    let (tokens, heads, half) = (5, 3, 4);
    let angles = Matrix::random(tokens, half, random).with(&Matrix::of(tokens, half, |_, _| 3.0), |a, b| a * b);
    let table = |value: &dyn Fn(f64, f64) -> f64| {
        let both = |t: usize| [-1.0, 1.0].into_iter().flat_map(move |sign| (0..half).map(move |i| (t, i, sign)));
        let values = (0..tokens).flat_map(both).map(|(t, i, sign)| value(angles.at(t, i), sign) as f32).collect();
        Tensor::<Autodiff<B>, 4>::from_data(TensorData::new(values, [tokens, 1, 2, half]), device)
    };
    let tables = [table(&|angle, _| angle.cos()), table(&|angle, sign| sign * angle.sin())];
    let turned = |inputs: &[Matrix]| {
        let x = &inputs[0];
        Matrix::of(tokens, x.columns, |t, column| {
            let (head, within) = (column / (2 * half), column % (2 * half));
            let pair = |part: usize| x.at(t, head * 2 * half + part * half + within % half);
            let (sin, cos) = angles.at(t, within % half).sin_cos();
            if within < half { pair(0) * cos - pair(1) * sin } else { pair(1) * cos + pair(0) * sin }
        })
    };
    let case = Case::<B> {
        name: "rotate".into(),
        inputs: vec![Matrix::random(tokens, heads * 2 * half, random)],
        operation: &|x| rotate(x[0].clone(), &tables),
        formula: &turned,
    };
    case.check(device, random);
}

/// A linear layer with its branch, over a dense and a 4-bit weight, with and without dropped elements.
pub fn lora_linear_matches<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let shapes = [([1, 1], 1, 1), ([33, 65], 5, 3), ([20, 24], 17, 8), ([70, 256], 2, 2)];
    for (i, ([out, input], rows, r)) in shapes.into_iter().enumerate() {
        let (data, weight) = random_weight([out, input], 64, true, &mut random);
        // In 4 bits whole, and in pieces of 64 features where it has more.
        let [whole, pieces] = [u64::MAX, 1]
            .map(|most| Frozen::nf4(&Nf4Weight::upload_within(&data, most, device).expect("a valid weight")));
        let frozen = [Frozen::dense(weight.tensor::<Autodiff<B>>(device)), whole, pieces];
        let dropped = Dropped::new(random.random(), 0.3);
        let mask = Matrix::of(rows, input, |i, j| f64::from(dropped.factor(i * input + j)));
        for (kind, frozen) in frozen.iter().enumerate() {
            let mask = (i + kind).is_multiple_of(2).then_some(&mask);
            let case = Case::<B> {
                name: format!("lora_linear [{out}, {input}], rank {r}, {rows} rows, mask {}", mask.is_some()),
                inputs: [[rows, input], [r, input], [out, r]].map(|[m, n]| Matrix::random(m, n, &mut random)).to_vec(),
                operation: &|x| {
                    let dropped = mask.map(|_| dropped);
                    let branch = Branch::new(x[1].clone(), x[2].clone(), dropped, 0.5);
                    lora_linear(x[0].clone(), frozen, branch, FloatDType::F32)
                },
                formula: &|x| {
                    let dropped = mask.map_or(x[0].clone(), |mask| x[0].with(mask, |a, b| a * b));
                    let branch = dropped.times(&x[1].transposed()).times(&x[2].transposed());
                    x[0].times(&weight.transposed()).with(&branch, |base, branch| base + 0.5 * branch)
                },
            };
            case.check(device, &mut random);
        }
    }
}

/// What is dropped is what the key says, on every backend, and of the gradient the same.
pub fn dropout_matches<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    for [rows, columns] in [[1, 1], [3, 5], [33, 65], [70, 1024]] {
        let dropped = Dropped::new(random.random(), 0.1);
        let factors = Matrix::of(rows, columns, |i, j| f64::from(dropped.factor(i * columns + j)));
        let case = Case::<B> {
            name: format!("dropout [{rows}, {columns}]"),
            inputs: vec![Matrix::random(rows, columns, &mut random)],
            operation: &|x| dropout(x[0].clone(), dropped),
            formula: &|x| x[0].with(&factors, |x, factor| x * factor),
        };
        case.check(device, &mut random);
    }
}

/// Cross entropy and the gradient that it returns.
pub fn cross_entropy_matches<B: Ops>(device: &B::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for [rows, vocab] in [[1, 2], [5, 33], [17, 130]] {
        let mut logits = Matrix::random(rows, vocab, &mut random);
        logits.values.iter_mut().for_each(|v| *v *= 8.0);
        let targets: Vec<usize> = (0..rows).map(|i| (i * 11 + 1) % vocab).collect();
        let loss = |inputs: &[Matrix]| -> f64 {
            let x = &inputs[0];
            let of_row = |i: usize| (0..vocab).map(|j| x.at(i, j).exp()).sum::<f64>().ln() - x.at(i, targets[i]);
            (0..rows).map(of_row).sum()
        };
        let ids: Vec<i32> = targets.iter().map(|t| *t as i32).collect();
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [rows, 1]), device);
        let (sum, gradient) = cross_entropy(logits.tensor::<B>(device), ids);
        let name = format!("cross_entropy of [{rows}, {vocab}]");
        let logits = [logits];
        assert_close(&name, &values(sum), &[loss(&logits) as f32], 1e-5);
        let expected = central_differences(&logits, 0, &loss);
        assert_close(&name, &values(gradient), &expected, 1e-5);
    }
}
