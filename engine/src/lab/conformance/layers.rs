//! What a decoder layer and the loss compute elementwise or by rows, and its gradients, against plain loops in f64.

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use rand::RngExt;

use super::{Case, Matrix, Suite, TOLERANCE, cancellation, norm};
use crate::Result;
use crate::model::in_type;
use crate::ops::{Activation, Ops, backward_from, cross_entropy, gated, rms_norm, rotate};

/// Rows and columns: none, single elements, primes, more than a workgroup, more rows than a dispatch has workgroups in one dimension.
const SHAPES: [[usize; 2]; 8] = [[0, 5], [1, 1], [3, 5], [17, 64], [70_001, 3], [33, 257], [131, 1000], [2, 14_336]];
/// Tokens, heads, and half of a head's width.
const HEADS: [[usize; 3]; 5] = [[0, 2, 4], [1, 1, 1], [3, 2, 5], [17, 3, 32], [131, 9, 64]];
/// Rows of logits, and tokens of a vocabulary.
const LOGITS: [[usize; 2]; 7] = [[0, 7], [1, 1], [1, 7], [5, 1000], [3, 4099], [259, 33], [2, 128_256]];
/// Keeps the root away from zero, and the gradient of a single element's norm from being nothing but rounding.
const EPS: f64 = 1e-2;

/// The function on a gate, and its slope.
fn activated(activation: Activation, x: f64) -> [f64; 2] {
    match activation {
        Activation::Silu => {
            let sigma = 1.0 / (1.0 + (-x).exp());
            [x * sigma, sigma + x * sigma * (1.0 - sigma)]
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (root * (x + 0.044715 * x.powi(3))).tanh();
            let slope = root * (1.0 + 3.0 * 0.044715 * x * x);
            [0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope]
        }
    }
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().map(|value| f64::from(*value))
}

impl<B: Ops, P: AsyncFnMut(&Case)> Suite<B, P> {
    pub(super) async fn layers(&mut self) -> Result<()> {
        for held in self.types() {
            for [rows, columns] in SHAPES {
                for (activation, largest) in
                    [(Activation::Silu, 6.0), (Activation::GeluTanh, 6.0), (Activation::Silu, 200.0)]
                {
                    self.gates([rows, columns], activation, largest, held).await?;
                }
                // What is composed for the gradient of a norm's weight launches nothings, which CUDA refuses.
                if rows > 0 {
                    self.norms([rows, columns], held).await?;
                }
            }
            for shape in HEADS {
                self.rotations(shape, held).await?;
            }
        }
        for shape in LOGITS {
            self.losses(shape, 1.0).await?;
            self.losses(shape, 50.0).await?;
        }
        Ok(())
    }

    /// A matrix in a type that holds its elements, as the columns of a larger one, which is how a layer that was joined with another gives
    /// its results.
    pub(super) fn within(&self, matrix: &Matrix, dtype: FloatDType) -> Tensor<B, 2> {
        let (x, columns) = (in_type(self.upload(matrix), dtype), matrix.columns);
        if matrix.values.is_empty() {
            return x;
        }
        Tensor::cat(vec![x.clone(), x.clone(), x], 1).narrow(1, columns, columns)
    }

    /// One that a gradient is wanted of.
    fn tracked(x: Tensor<B, 2>) -> Tensor<Autodiff<B>, 2> {
        Tensor::from_inner(x).require_grad()
    }

    /// Compares a result and gradients that have one shape.
    async fn compare_all(
        &mut self,
        (about, tolerance): (&str, f64),
        compared: Vec<(String, Option<Tensor<B, 2>>, Vec<f64>)>,
    ) -> Result<()> {
        for (kernel, found, expected) in compared {
            let found = found.unwrap_or_else(|| Tensor::zeros([0, 1], &self.device));
            let kernel = if found.dtype() == DType::F32 { kernel } else { format!("{kernel} in {:?}", found.dtype()) };
            self.compare((kernel, tolerance), about.to_string(), found, &expected).await?;
        }
        Ok(())
    }

    async fn gates(
        &mut self,
        [rows, columns]: [usize; 2],
        activation: Activation,
        largest: f32,
        (held, tolerance): (FloatDType, f64),
    ) -> Result<()> {
        let [mut gate, up, grad] = std::array::from_fn(|_| self.random(rows, columns).rounded(held));
        gate.values.iter_mut().for_each(|value| *value *= largest);
        // One that is open, or there may be nothing but numbers too small for f32.
        gate.values.iter_mut().take(1).for_each(|value| *value = value.abs());
        let gate = gate.rounded(held);
        let (mut expected, mut d_gate, mut d_up) = (Vec::new(), Vec::new(), Vec::new());
        for ((x, up), grad) in wide(&gate.values).zip(wide(&up.values)).zip(wide(&grad.values)) {
            let [active, slope] = activated(activation, x);
            expected.push(active * up);
            d_gate.push(grad * up * slope);
            d_up.push(grad * active);
        }
        let gate = Self::tracked(in_type(self.upload(&gate), held));
        let (up, grad) = (Self::tracked(self.within(&up, held)), self.within(&grad, held));
        for _ in 0..3 {
            self.poison(rows * columns).await?;
        }
        let y = gated(gate.clone(), up.clone(), activation);
        let grads = backward_from(y.clone(), grad);
        let name = format!("gated {activation:?}");
        let compared = vec![
            (name.clone(), Some(y.inner()), expected),
            (format!("{name} d_gate"), gate.grad(&grads), d_gate),
            (format!("{name} d_up"), up.grad(&grads), d_up),
        ];
        self.compare_all((&format!("[{rows}, {columns}], gates up to {largest}"), tolerance), compared).await
    }

    async fn norms(&mut self, [rows, columns]: [usize; 2], (held, tolerance): (FloatDType, f64)) -> Result<()> {
        let [x, grad] = std::array::from_fn(|_| self.random(rows, columns).rounded(held));
        let weight = self.random(1, columns);
        let (mut expected, mut d_x, mut d_weight) = (Vec::new(), Vec::new(), vec![0.0; columns]);
        let mut parts = Vec::new();
        for (x, grad) in x.values.chunks(columns).zip(grad.values.chunks(columns)) {
            let inverse = 1.0 / (wide(x).map(|x| x * x).sum::<f64>() / columns as f64 + EPS).sqrt();
            let normal: Vec<f64> = wide(x).map(|x| x * inverse).collect();
            let scaled: Vec<f64> = wide(grad).zip(wide(&weight.values)).map(|(grad, weight)| grad * weight).collect();
            let along = normal.iter().zip(&scaled).map(|(a, b)| a * b).sum::<f64>() / columns as f64;
            expected.extend(normal.iter().zip(wide(&weight.values)).map(|(normal, weight)| normal * weight));
            parts.extend(scaled.iter().map(|scaled| scaled * inverse));
            d_x.extend(normal.iter().zip(&scaled).map(|(normal, scaled)| (scaled - normal * along) * inverse));
            let of_row = normal.iter().zip(wide(grad)).map(|(normal, grad)| normal * grad);
            d_weight.iter_mut().zip(of_row).for_each(|(sum, value)| *sum += value);
        }
        // Of a single column hardly anything is left.
        let allowed = tolerance.max(TOLERANCE * cancellation(norm(&parts), &d_x));
        // Frozen, as norms are beside adapters, and trained: then on some rows, over which Burn sums.
        for trained in [false, true].into_iter().take(1 + rows.min(1)) {
            let (x, grad) = (Self::tracked(self.within(&x, held)), in_type(self.upload(&grad), held));
            let weight = Tensor::from_inner(self.upload(&weight));
            let weight = if trained { weight.require_grad() } else { weight };
            for _ in 0..2 {
                self.poison(rows * columns).await?;
            }
            let y = rms_norm(x.clone(), weight.clone(), EPS, held);
            let grads = backward_from(y.clone(), grad);
            let about = format!("[{rows}, {columns}], trained {trained}");
            let y = vec![("rms_norm".to_string(), Some(y.inner()), expected.clone())];
            self.compare_all((&about, tolerance), y).await?;
            let d_x = vec![("rms_norm d_x".to_string(), x.grad(&grads), d_x.clone())];
            self.compare_all((&about, allowed), d_x).await?;
            if trained {
                let found = weight.grad(&grads).expect("a trained weight has one");
                // A sum over rows, one after the other in f32.
                let tolerance = TOLERANCE * (rows as f64 / 4096.0).max(1.0);
                self.compare(("rms_norm d_weight".to_string(), tolerance), about, found, &d_weight).await?;
            }
        }
        Ok(())
    }

    async fn rotations(
        &mut self,
        [tokens, heads, half]: [usize; 3],
        (held, tolerance): (FloatDType, f64),
    ) -> Result<()> {
        let [x, grad] = std::array::from_fn(|_| self.random(tokens, heads * 2 * half).rounded(held));
        let [cos, sin] = std::array::from_fn(|_| self.random(tokens, half));
        let turned = |x: &Matrix, sign: f64| -> Vec<f64> {
            let element = |i: usize| {
                let (token, within) = (i / x.columns, i % (2 * half));
                let (first, angle) = (within < half, token * half + within % half);
                let other = if first { i + half } else { i - half };
                let signed = f64::from(sin.values[angle]) * if first { -sign } else { sign };
                f64::from(x.values[i]) * f64::from(cos.values[angle]) + f64::from(x.values[other]) * signed
            };
            (0..x.values.len()).map(element).collect()
        };
        let (expected, d_x) = (turned(&x, 1.0), turned(&grad, -1.0));
        let table = |values: &[f32], signs: [f32; 2]| {
            let of_token = |values: &[f32]| signs.map(|sign| values.iter().map(|v| sign * v).collect::<Vec<_>>());
            let values: Vec<f32> = values.chunks(half).flat_map(of_token).flatten().collect();
            Tensor::<Autodiff<B>, 4>::from_data(TensorData::new(values, [tokens, 1, 2, half]), &self.device)
        };
        let rotation = [table(&cos.values, [1.0, 1.0]), table(&sin.values, [-1.0, 1.0])];
        let (x, grad) = (Self::tracked(self.within(&x, held)), in_type(self.upload(&grad), held));
        for _ in 0..2 {
            self.poison(expected.len()).await?;
        }
        let y = rotate(x.clone(), &rotation);
        let grads = backward_from(y.clone(), grad);
        let compared = vec![("rotate".into(), Some(y.inner()), expected), ("rotate back".into(), x.grad(&grads), d_x)];
        self.compare_all((&format!("{heads} heads of {}, {tokens} tokens", 2 * half), tolerance), compared).await
    }

    async fn losses(&mut self, [rows, vocab]: [usize; 2], largest: f32) -> Result<()> {
        let mut logits = self.random(rows, vocab);
        logits.values.iter_mut().for_each(|value| *value *= largest);
        let mut targets: Vec<usize> = (0..rows).map(|_| self.random.random_range(0..vocab)).collect();
        // One improbable target at least, or the loss may be nothing but rounding.
        if let (Some(target), Some(row)) = (targets.first_mut(), logits.values.chunks(vocab).next()) {
            *target = (0..vocab).min_by(|i, j| row[*i].total_cmp(&row[*j])).unwrap_or(0);
        }
        // The only token of a vocabulary has no loss, and nothing is relative to zero.
        let beside = if vocab == 1 { 1.0 } else { 0.0 };
        let (mut loss, mut gradient) = (beside, Vec::new());
        for (row, target) in logits.values.chunks(vocab).zip(&targets) {
            let peak = wide(row).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = wide(row).map(|x| (x - peak).exp()).sum();
            loss += sum.ln() + peak - f64::from(row[*target]);
            let one = |i: usize| if i == *target { 1.0 } else { 0.0 };
            gradient.extend(wide(row).enumerate().map(|(i, x)| (x - peak).exp() / sum - one(i) + beside));
        }
        let targets: Vec<i32> = targets.into_iter().map(|target| target as i32).collect();
        let targets = Tensor::<B, 2, Int>::from_data(TensorData::new(targets, [rows, 1]), &self.device);
        let logits = self.within(&logits, FloatDType::F32);
        self.poison(rows * vocab).await?;
        let (found_loss, found) = cross_entropy(logits, targets);
        let found_loss = found_loss.reshape([1, 1]);
        let [found_loss, found] = [found_loss, found].map(|x| if vocab == 1 { x + beside } else { x });
        let compared = vec![
            ("cross_entropy".to_string(), Some(found_loss), vec![loss]),
            ("cross_entropy gradient".to_string(), Some(found), gradient),
        ];
        self.compare_all((&format!("[{rows}, {vocab}], logits up to {largest}"), TOLERANCE), compared).await
    }
}
