//! The blocks of a decoder layer as single operations, and the same blocks composed from Burn's tensor operations.
//!
//! A backend takes the composed form (fusion then joins the elementwise parts) or overrides it. Each operation has its
//! backward written beside it, so that autodiff keeps the inputs of a block and nothing in between.

use burn::tensor::activation::sigmoid;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, IndexingUpdateOp, Int, Tensor, TensorMetadata, TensorPrimitive};

use super::{Activation, Ops, matmul};

pub(crate) fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A tensor in another type; itself where it has it.
pub(crate) fn cast<B: Ops>(x: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    if x.dtype() == dtype.into() { x } else { B::cast(x, dtype) }
}

/// The type of a tensor.
pub(super) fn dtype<B: Backend>(x: &FloatTensor<B>) -> FloatDType {
    x.dtype().into()
}

/// A tensor in f32.
pub(super) fn wide<B: Ops>(x: FloatTensor<B>) -> FloatTensor<B> {
    cast::<B>(x, FloatDType::F32)
}

/// `x / sqrt(mean(x²) + eps) * weight`: `x` `[tokens, hidden]`, `weight` `[1, hidden]`.
pub(super) fn rms_norm<B: Ops>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    into: FloatDType,
) -> FloatTensor<B> {
    let (x, weight) = (tensor::<B, 2>(wide::<B>(x)), tensor::<B, 2>(weight));
    cast::<B>(primitive(x.clone() * inverse_rms(x, eps) * weight), into)
}

fn inverse_rms<B: Backend>(x: Tensor<B, 2>, eps: f64) -> Tensor<B, 2> {
    x.powi_scalar(2).mean_dim(1).add_scalar(eps).sqrt().recip()
}

/// The gradients of [`rms_norm`] for `x` and, where asked for, `weight`.
pub(super) fn rms_norm_backward<B: Ops>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    eps: f64,
    for_weight: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let of_x = dtype::<B>(&x);
    let (x, weight, grad) = (tensor::<B, 2>(wide::<B>(x)), tensor::<B, 2>(weight), tensor::<B, 2>(wide::<B>(grad)));
    let inverse = inverse_rms(x.clone(), eps);
    let normal = x * inverse.clone();
    let d_weight = for_weight.then(|| primitive(sum_of_rows(grad.clone() * normal.clone())));
    let scaled = grad * weight;
    let along = (scaled.clone() * normal.clone()).mean_dim(1);
    (cast::<B>(primitive((scaled - normal * along) * inverse), of_x), d_weight)
}

/// The sum of `x`'s rows, `[1, columns]`. Burn 0.21's own forgets those from the 65,533rd on, seen on Vulkan.
fn sum_of_rows<B: Ops>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let ones = Tensor::<B, 2>::ones([1, x.dims()[0]], &x.device()).cast(x.dtype());
    matmul(ones, x)
}

/// `z` of [`Activation`], whose function is `x · sigmoid(z)`, and its slope `dz/dx`; the slope only where it is no constant.
fn inner<B: Backend>(x: Tensor<B, 2>, activation: Activation) -> (Tensor<B, 2>, Option<Tensor<B, 2>>) {
    let (linear, cubic) = activation.coefficients();
    if (linear, cubic) == (1.0, 0.0) {
        return (x, None);
    }
    let square = x.clone().powi_scalar(2);
    (x * (square.clone() * cubic + linear), Some(square * (3.0 * cubic) + linear))
}

/// `activation(gate) * up`, elementwise.
pub(super) fn gated<B: Ops>(gate: FloatTensor<B>, up: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    let of_gate = dtype::<B>(&gate);
    let (gate, up) = (tensor::<B, 2>(wide::<B>(gate)), tensor::<B, 2>(wide::<B>(up)));
    let (z, _) = inner(gate.clone(), activation);
    cast::<B>(primitive(gate * sigmoid(z) * up), of_gate)
}

/// The gradients of [`gated`] for `gate` and `up`.
pub(super) fn gated_backward<B: Ops>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let types = [&gate, &up].map(dtype::<B>);
    let (gate, up, grad) =
        (tensor::<B, 2>(wide::<B>(gate)), tensor::<B, 2>(wide::<B>(up)), tensor::<B, 2>(wide::<B>(grad)));
    let (z, of_z) = inner(gate.clone(), activation);
    let sigma = sigmoid(z);
    let active = gate * sigma.clone();
    let through_z = active.clone() * (sigma.clone().neg() + 1.0);
    let through_z = match of_z {
        Some(of_z) => through_z * of_z,
        None => through_z,
    };
    let gradients = [grad.clone() * up * (sigma + through_z), grad * active];
    let [d_gate, d_up] = gradients.map(primitive);
    (cast::<B>(d_gate, types[0]), cast::<B>(d_up, types[1]))
}

/// Rotates the two halves of every head by the angles of its position: `x` `[tokens, heads * head_dim]`; `cos` and the
/// signed `sin` `[tokens, 1, 2, head_dim / 2]`. Turned `back`, it is its own gradient.
pub(super) fn rotate<B: Ops>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    back: bool,
) -> FloatTensor<B> {
    let of_x = dtype::<B>(&x);
    let (x, cos, sin) = (tensor::<B, 2>(wide::<B>(x)), tensor::<B, 4>(cos), tensor::<B, 4>(sin));
    let ([tokens, width], [_, _, _, half]) = (x.dims(), cos.dims());
    let halves = x.reshape([tokens, width / (2 * half), 2, half]);
    let swapped = halves.clone().flip([2]) * sin;
    let turned = halves * cos;
    let rotated = if back { turned - swapped } else { turned + swapped };
    cast::<B>(primitive(rotated.reshape([tokens, width])), of_x)
}

/// Cross entropy of `logits` `[n, vocab]` against the tokens `targets` `[n, 1]`: the sum of the losses `[1]`, and its
/// gradient for the logits, `softmax - onehot`.
pub(super) fn cross_entropy<B: Backend>(
    logits: FloatTensor<B>,
    targets: Tensor<B, 2, Int>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let logits = tensor::<B, 2>(logits);
    // In the place of the logits, where nobody else has them.
    let largest = logits.clone().max_dim(1);
    let shifted = logits - largest;
    let exponents = shifted.clone().exp();
    let sums = exponents.clone().sum_dim(1);
    let loss = (sums.clone().log() - shifted.gather(1, targets.clone())).sum();
    let minus_one = Tensor::full(targets.dims(), -1.0, &loss.device());
    let gradient = (exponents / sums).scatter(1, targets, minus_one, IndexingUpdateOp::Add);
    (primitive(loss), primitive(gradient))
}
