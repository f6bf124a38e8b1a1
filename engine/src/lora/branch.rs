//! The branch beside one linear layer: `scaling * B(A(dropout(x)))`, with DoRA's lengths where they are trained.

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Dora;
use crate::model::{Parameter, Shares, in_type, join};
use crate::ops::{Branch, Dropped, Frozen, Ops, lora_linear, lora_linear_unseen};

/// Where the randomness of dropout comes from: a function of the run's seed, the step, the micro-batch and the place in
/// the model, so that a layer that is computed again drops the same elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropout {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Micro-batch inside the step.
    pub micro: u64,
}

/// One layer's adapter.
#[derive(Clone, Debug)]
pub struct LoraBranch<B: Backend> {
    /// `[r, in]`.
    pub a: Parameter<B>,
    /// `[out, r]`.
    pub b: Parameter<B>,
    /// The rows' lengths, for DoRA.
    pub dora: Option<Dora<B>>,
    /// Multiplies the output.
    pub scaling: f64,
    /// Share of the input that is dropped in training.
    pub dropout: f64,
    /// The layer's place in the model, mixed into the dropout's randomness.
    pub place: u64,
}

impl<B: Ops> LoraBranch<B> {
    /// The frozen layer and its branch: `[tokens, in] -> [tokens, out]` in the type `into`, the layer's bias left out.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        weight: &Frozen<B>,
        dropout: Option<&Dropout>,
        into: FloatDType,
    ) -> Tensor<B, 2> {
        let dropped = self.drops(dropout);
        let Some(dora) = &self.dora else { return lora_linear(x, weight, self.branch(dropped), into) };
        let (scale, wide) = (dora.scale(self, weight), FloatDType::F32);
        let y = match dropped {
            None => lora_linear(x, weight, self.branch(None), wide) * scale,
            // The frozen layer sees all of the input; what is scaled, the frozen weight's part of it included, sees what
            // was kept (PEFT, `DoraLinearVariant.forward`): `x W + (scale - 1) kept W + scale s kept A B`.
            Some(dropped) => {
                let x = in_type(x, wide);
                let kept = crate::ops::dropout(x.clone(), dropped);
                weight.forward(x - kept.clone(), wide) + lora_linear(kept, weight, self.branch(None), wide) * scale
            }
        };
        in_type(y, into)
    }

    /// [`forward`](Self::forward) in f32 for the gradients that go through it alone.
    pub fn unseen(&self, x: Tensor<B, 2>, weight: &Frozen<B>, dropout: Option<&Dropout>) -> Tensor<B, 2> {
        // DoRA's lengths have gradients of what they scale.
        if self.dora.is_some() {
            return self.forward(x, weight, dropout, FloatDType::F32);
        }
        lora_linear_unseen(x, weight, self.branch(self.drops(dropout)))
    }

    fn branch(&self, dropped: Option<Dropped>) -> Branch<B> {
        Branch::new(self.a.value.clone(), self.b.value.clone(), dropped, self.scaling)
    }

    /// What is dropped in training, if something is.
    fn drops(&self, dropout: Option<&Dropout>) -> Option<Dropped> {
        dropout.filter(|_| self.dropout > 0.0).map(|key| self.dropped(key))
    }

    /// What is dropped at a key.
    fn dropped(&self, key: &Dropout) -> Dropped {
        let mut seed = [0u8; 32];
        for (part, value) in seed.chunks_mut(8).zip([key.seed, key.step, key.micro, self.place]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        Dropped::new(ChaCha8Rng::from_seed(seed).next_u64(), self.dropout)
    }

    /// Rebuilds the branch with `f(path, parameter)` in place of its parameters.
    pub fn map<C: Shares<B>>(
        &self,
        path: &str,
        f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>,
    ) -> LoraBranch<C> {
        LoraBranch {
            a: f(&join(path, "lora_A.weight"), &self.a),
            b: f(&join(path, "lora_B.weight"), &self.b),
            dora: self.dora.as_ref().map(|dora| dora.map(path, f)),
            scaling: self.scaling,
            dropout: self.dropout,
            place: self.place,
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backends::Cpu;
    use crate::model::Weight;
    use crate::nf4;
    use crate::ops::Nf4Weight;

    /// PEFT's formula with dropout, term by term and in f64, over a weight that was decoded.
    #[test]
    fn dora_with_dropout_is_the_sum_of_its_terms() {
        let (out, input, rank, rows) = (5, 64, 3, 4);
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut normal = |n: usize| (0..n).map(|_| (random.next_u32() as f32 / 2e9) - 1.0).collect::<Vec<f32>>();
        let (dense, a, b) = (normal(out * input), normal(rank * input), normal(out * rank));
        let (x, lengths) = (normal(rows * input), normal(out));
        let data = nf4::quantize(&dense, [out, input], 64, true).unwrap();
        let (device, decoded) = (Default::default(), data.dequantize());
        let weight = Weight::Nf4(Nf4Weight::<Cpu>::upload(&data, &device).unwrap());
        let parameter = |values: &[f32], shape| Parameter::<Cpu>::frozen(values.to_vec(), shape, &device);
        let lora = LoraBranch {
            a: parameter(&a, [rank, input]),
            b: parameter(&b, [out, rank]),
            dora: Some(Dora::with(parameter(&lengths, [1, out]), &weight)),
            scaling: 0.7,
            dropout: 0.3,
            place: 1,
        };
        let key = Dropout { seed: 1, step: 2, micro: 3 };
        let dropped = lora.dropped(&key);
        let mask: Vec<f32> = (0..rows * input).map(|element| dropped.factor(element)).collect();
        let frozen = match &weight {
            Weight::Nf4(weight) => Frozen::nf4(weight),
            Weight::Dense(_) => unreachable!(),
        };
        let x_tensor = parameter(&x, [rows, input]).value;
        let found: Vec<f32> =
            lora.forward(x_tensor, &frozen, Some(&key), FloatDType::F32).into_data().to_vec().unwrap();
        assert!(mask.contains(&0.0));
        for (t, o) in (0..rows).flat_map(|t| (0..out).map(move |o| (t, o))) {
            let w = |i: usize| f64::from(decoded[o * input + i]);
            let update =
                |i: usize| (0..rank).map(|k| f64::from(b[o * rank + k]) * f64::from(a[k * input + i])).sum::<f64>();
            let length = (0..input).map(|i| (w(i) + 0.7 * update(i)).powi(2)).sum::<f64>().sqrt();
            let scale = f64::from(lengths[o]) / length;
            let [whole, kept, low] = (0..input).fold([0.0; 3], |[whole, kept, low], i| {
                let x = f64::from(x[t * input + i]);
                let dropped = x * f64::from(mask[t * input + i]);
                [whole + x * w(i), kept + dropped * w(i), low + dropped * update(i)]
            });
            let expected = whole + (scale - 1.0) * kept + scale * 0.7 * low;
            assert!((f64::from(found[t * out + o]) - expected).abs() < 1e-4, "{t} {o}: {expected}");
        }
    }
}
