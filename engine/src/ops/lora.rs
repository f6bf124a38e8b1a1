//! A frozen linear layer with a low-rank branch beside it, as one operation (LoRA, arXiv:2106.09685, equation 3).
//!
//! One operation, because on its own each half reads the activations and writes the result once more, and because the
//! gradient of the activations is the sum of both halves'.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::fused::{primitive, tensor};
use super::{Dropped, Nf4Weight, Ops, Product, dropout, matmul};

/// A weight `[out, in]` that is not trained.
#[derive(Clone, Debug)]
pub enum Frozen<B: Backend> {
    /// In f32.
    Dense(FloatTensor<B>),
    /// In 4 bits.
    Nf4(Nf4Weight<B>),
}

impl<B: Backend> Branch<B> {
    /// From tensors.
    pub fn new(a: Tensor<B, 2>, b: Tensor<B, 2>, dropped: Option<Dropped>, scaling: f64) -> Self {
        Self { a: primitive(a), b: primitive(b), dropped, scaling }
    }
}

impl<B: Ops> Frozen<B> {
    /// A weight in f32.
    pub fn dense(weight: Tensor<B, 2>) -> Self {
        Self::Dense(primitive(weight))
    }

    /// A weight in 4 bits.
    pub fn nf4(weight: &Nf4Weight<B>) -> Self {
        Self::Nf4(weight.clone())
    }

    /// `x · Wᵀ`: `[rows, in] -> [rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        tensor(self.product(primitive(x), Product::Forward))
    }

    /// Either product of rows of activations with the weight.
    fn product(&self, x: FloatTensor<B>, product: Product) -> FloatTensor<B> {
        match (self, product) {
            (Self::Nf4(weight), product) => weight.product(x, product, None),
            (Self::Dense(weight), Product::Forward) => B::matmul(x, B::float_swap_dims(weight.clone(), 0, 1)),
            (Self::Dense(weight), Product::InputGradient) => B::matmul(x, weight.clone()),
        }
    }
}

/// The branch: `scaling * B(A(dropout(x)))`.
#[derive(Clone, Debug)]
pub struct Branch<B: Backend> {
    /// `[r, in]`.
    pub a: FloatTensor<B>,
    /// `[out, r]`.
    pub b: FloatTensor<B>,
    /// What is dropped of its input, in training.
    pub dropped: Option<Dropped>,
    /// Multiplies the branch.
    pub scaling: f64,
}

/// What a branch adds to the output of the layer: `scaling · low · Bᵀ`.
#[derive(Clone, Debug)]
pub struct Update<B: Backend> {
    /// `[tokens, r]`: the activations through `A`.
    pub low: FloatTensor<B>,
    /// `[out, r]`.
    pub b: FloatTensor<B>,
    /// Multiplies the branch.
    pub scaling: f64,
}

impl<B: Ops> Update<B> {
    /// The sum with the output of the frozen layer, by operations of their own.
    pub(super) fn added_to(self, y: FloatTensor<B>) -> FloatTensor<B> {
        let (y, low, b) = (tensor::<B, 2>(y), tensor::<B, 2>(self.low), tensor::<B, 2>(self.b));
        // The scale is applied where the tensor is smallest.
        primitive(y + matmul(low * self.scaling, b.transpose()))
    }
}

/// The gradients of the operation.
pub struct LoraGradients<B: Backend> {
    /// `[tokens, in]`, where it was asked for.
    pub x: Option<FloatTensor<B>>,
    /// `[r, in]`.
    pub a: FloatTensor<B>,
    /// `[out, r]`.
    pub b: FloatTensor<B>,
}

/// `x · Wᵀ + scaling · dropout(x) · Aᵀ · Bᵀ`, and `dropout(x) · Aᵀ`, which the backward pass takes.
pub(super) fn forward<B: Ops>(x: FloatTensor<B>, weight: &Frozen<B>, branch: Branch<B>) -> [FloatTensor<B>; 2] {
    let kept = match branch.dropped {
        Some(dropped) => B::dropout(x.clone(), dropped),
        None => x.clone(),
    };
    let low = primitive(matmul(tensor::<B, 2>(kept), tensor::<B, 2>(branch.a).transpose()));
    let update = Update { low: low.clone(), b: branch.b, scaling: branch.scaling };
    let y = match weight {
        Frozen::Nf4(weight) => weight.product_with(x, update, None),
        Frozen::Dense(_) => update.added_to(weight.product(x, Product::Forward)),
    };
    [y, low]
}

/// The gradients of [`forward`] from that of its first result.
pub(super) fn backward<B: Ops>(
    [x, low]: [FloatTensor<B>; 2],
    weight: &Frozen<B>,
    branch: Branch<B>,
    grad: FloatTensor<B>,
    for_x: bool,
) -> LoraGradients<B> {
    let (low, a, b) = (tensor::<B, 2>(low), tensor::<B, 2>(branch.a), tensor::<B, 2>(branch.b));
    let kept = |x: Tensor<B, 2>| match branch.dropped {
        Some(dropped) => dropout(x, dropped),
        None => x,
    };
    let dy = tensor::<B, 2>(grad.clone());
    let d_low = matmul(dy.clone(), b) * branch.scaling;
    let d_b = matmul(dy.transpose(), low * branch.scaling);
    let d_a = matmul(d_low.clone().transpose(), kept(tensor(x)));
    let d_x = for_x.then(|| {
        let of_base = tensor::<B, 2>(weight.product(grad, Product::InputGradient));
        primitive(of_base + kept(matmul(d_low, a)))
    });
    LoraGradients { x: d_x, a: primitive(d_a), b: primitive(d_b) }
}
