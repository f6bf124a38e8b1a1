//! Weight-decomposed adaptation (DoRA, arXiv:2402.09353): the adapted weight's rows keep their direction, and their lengths
//! are trained on their own.

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};

use super::LoraBranch;
use crate::model::{Parameter, Shares, Weight, join};
use crate::ops::{Frozen, Ops, matmul};

/// The name under which the frozen weight's squared row lengths pass through a model's rebuilding. They follow from the
/// weight: they are no parameter and are never saved.
pub(crate) const SQUARES: &str = "lora_weight_squares";

/// What DoRA adds to a layer's adapter.
#[derive(Clone, Debug)]
pub struct Dora<B: Backend> {
    /// `[1, out]`: the length of every row of the adapted weight.
    pub magnitude: Parameter<B>,
    /// `[1, out]`: the squared length of every row of the frozen weight.
    squares: Parameter<B>,
}

impl<B: Ops> Dora<B> {
    /// Lengths that change nothing: those of the frozen weight's own rows.
    pub fn new(weight: &Weight<B>) -> Self {
        let squares = squares(weight);
        let magnitude = Parameter { value: squares.clone().sqrt(), trainable: true };
        Self { magnitude, squares: Parameter { value: squares, trainable: false } }
    }

    /// Lengths that were trained, `[1, out]`, over this weight.
    pub fn with(magnitude: Parameter<B>, weight: &Weight<B>) -> Self {
        Self { magnitude, squares: Parameter { value: squares(weight), trainable: false } }
    }

    /// Rebuilds it with `f(path, parameter)` in place of its parameters.
    pub fn map<C: Shares<B>>(&self, path: &str, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> Dora<C> {
        Dora {
            magnitude: f(&join(path, "lora_magnitude_vector"), &self.magnitude),
            squares: f(&join(path, SQUARES), &self.squares),
        }
    }

    /// What every output is multiplied by, `[1, out]`: the trained length over that of the row of `W + s B A`. As in the
    /// paper (section 4.3) and in PEFT, the latter gets no gradient.
    ///
    /// `‖w + s b A‖² = ‖w‖² + 2 s b · (A w) + s² b (A Aᵀ) bᵀ` for a row `w` of `W` and `b` of `B`, so that `W` is read by
    /// one product with the `r` rows of `A`, in 4 bits where it is held so, and neither it nor `B A` is ever made.
    pub(super) fn scale(&self, lora: &LoraBranch<B>, weight: &Frozen<B>) -> Tensor<B, 2> {
        // Burn's `detach` leaves a tensor that wants a gradient, of which nothing would come but a graph.
        let [a, b] = [&lora.a, &lora.b].map(|factor| factor.value.clone().detach().set_require_grad(false));
        let (rank, device) = (a.dims()[0], a.device());
        // Turned by a product: Burn 0.21's fusion reads tensors that are turned wrong, if others of other shapes are around (seen on Vulkan).
        let b = matmul(Tensor::eye(rank, &device), b.transpose());
        let with_weight = weight.forward(a.clone(), FloatDType::F32);
        let among = matmul(matmul(a.clone(), a.transpose()), b.clone());
        let added = b * (with_weight * (2.0 * lora.scaling) + among * (lora.scaling * lora.scaling));
        let squares = self.squares.value.clone() + matmul(Tensor::ones([1, rank], &device), added);
        self.magnitude.value.clone() / squares.clamp_min(1e-30).sqrt()
    }
}

/// `[1, out]`, the weight decoded once where it is in 4 bits.
fn squares<B: Ops>(weight: &Weight<B>) -> Tensor<B, 2> {
    let weight = match weight {
        Weight::Dense(weight) => weight.value.clone(),
        Weight::Nf4(weight) => weight.dequantize(),
    };
    let ([out, input], device) = (weight.dims(), weight.device());
    // As a product: Burn 0.21's sums, turned, are zeros on Vulkan.
    matmul(weight.clone() * weight, Tensor::ones([input, 1], &device)).reshape([1, out])
}
