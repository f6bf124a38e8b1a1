//! The branch beside one linear layer: `scaling * B(A(dropout(x)))`.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::{Parameter, Shares, join};
use crate::ops::{Branch, Ops};

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
    /// Multiplies the output.
    pub scaling: f64,
    /// Share of the input that is dropped in training.
    pub dropout: f64,
    /// The layer's place in the model, mixed into the dropout's randomness.
    pub place: u64,
}

impl<B: Ops> LoraBranch<B> {
    /// The branch for activations `[tokens, in]`.
    pub fn operand(&self, shape: [usize; 2], dropout: Option<&Dropout>) -> Branch<B> {
        let dropout = dropout.filter(|_| self.dropout > 0.0);
        let mask = dropout.map(|key| self.mask(shape, key, &self.a.value.device()));
        Branch::new(self.a.value.clone(), self.b.value.clone(), mask, self.scaling)
    }

    /// `0` for a dropped element and `1 / (1 - p)` for a kept one.
    fn mask(&self, shape: [usize; 2], key: &Dropout, device: &B::Device) -> Tensor<B, 2> {
        let mut seed = [0u8; 32];
        for (part, value) in seed.chunks_mut(8).zip([key.seed, key.step, key.micro, self.place]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        let mut random = ChaCha8Rng::from_seed(seed);
        let threshold = (self.dropout * f64::from(u32::MAX)) as u32;
        let kept = (1.0 / (1.0 - self.dropout)) as f32;
        let values = (0..shape[0] * shape[1]).map(|_| if random.next_u32() < threshold { 0.0 } else { kept });
        Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), shape), device)
    }

    /// Rebuilds the branch with `f(path, parameter)` in place of its two matrices.
    pub fn map<C: Shares<B>>(
        &self,
        path: &str,
        f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>,
    ) -> LoraBranch<C> {
        LoraBranch {
            a: f(&join(path, "lora_A.weight"), &self.a),
            b: f(&join(path, "lora_B.weight"), &self.b),
            scaling: self.scaling,
            dropout: self.dropout,
            place: self.place,
        }
    }
}
