//! A frozen linear layer with a low-rank branch beside it, as one operation (LoRA, arXiv:2106.09685, equation 3).
//!
//! One operation, because on its own each half reads the activations and writes the result once more, and because the
//! gradient of the activations is the sum of both halves'.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, Tensor};

use super::fused::{cast, dtype, primitive, tensor, wide};
use super::{ComputeDtype, Dropped, Nf4Weight, Ops, Product, matmul};

/// A weight `[out, in]` as its products see it. Beside a branch it is not trained.
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

    /// `x · Wᵀ` in the type `into`: `[rows, in] -> [rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>, into: FloatDType) -> Tensor<B, 2> {
        tensor(self.product(primitive(x), Product::Forward, into))
    }

    /// What a product of these rows with the weight rounds them to.
    fn rounding(&self, x: &FloatTensor<B>, product: Product) -> ComputeDtype {
        match self {
            Self::Nf4(weight) => weight.rounding(x, product),
            Self::Dense(_) => ComputeDtype::F32,
        }
    }

    /// Either product with what a branch adds to it.
    fn product_with(&self, x: FloatTensor<B>, product: Product, update: Update<B>, into: FloatDType) -> FloatTensor<B> {
        match self {
            Self::Nf4(weight) => weight.product_with(x, product, update, None, into),
            Self::Dense(_) => cast::<B>(update.added_to(self.product(x, product, FloatDType::F32), product), into),
        }
    }

    /// Either product of rows of activations with the weight.
    fn product(&self, x: FloatTensor<B>, product: Product, into: FloatDType) -> FloatTensor<B> {
        match self {
            Self::Nf4(weight) => weight.product(x, product, None, into),
            Self::Dense(weight) => {
                let weight = match product {
                    Product::Forward => B::float_swap_dims(weight.clone(), 0, 1),
                    Product::InputGradient => weight.clone(),
                };
                cast::<B>(B::matmul(wide::<B>(x), weight), into)
            }
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

/// What a branch adds to the output of the layer, `scaling · low · Bᵀ`, or to the gradient of its input, `scaling · low · A`.
#[derive(Clone, Debug)]
pub struct Update<B: Backend> {
    /// `[tokens, r]`: the activations through `A`, or the gradients through `B`.
    pub low: FloatTensor<B>,
    /// `B`, `[out, r]`, or `A`, `[r, in]`.
    pub b: FloatTensor<B>,
    /// Multiplies the branch.
    pub scaling: f64,
}

impl<B: Ops> Update<B> {
    /// The sum with a product of the frozen layer, in f32, by operations of their own.
    pub(super) fn added_to(self, y: FloatTensor<B>, product: Product) -> FloatTensor<B> {
        let (y, low, b) = (tensor::<B, 2>(y), tensor::<B, 2>(wide::<B>(self.low)), tensor::<B, 2>(self.b));
        // The scale is applied where the tensor is smallest.
        let b = if product == Product::Forward { b.transpose() } else { b };
        primitive(y + matmul(scaled(low, self.scaling), b))
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

/// `dropout(x) · Aᵀ`, and `x` as the product with the weight takes it.
pub(super) fn inner<B: Ops>(x: FloatTensor<B>, weight: &Frozen<B>, branch: &Branch<B>) -> [FloatTensor<B>; 2] {
    let compute = weight.rounding(&x, Product::Forward);
    let through_a = |x| B::low_rank(x, branch.a.clone(), Product::Forward, 1.0, compute);
    match branch.dropped {
        None => through_a(x),
        Some(dropped) => {
            let [low, _] = through_a(B::dropout(x.clone(), dropped));
            [low, x]
        }
    }
}

/// `x · Wᵀ + scaling · dropout(x) · Aᵀ · Bᵀ` in the type `into`, and `dropout(x) · Aᵀ`, which the backward pass takes.
pub(super) fn forward<B: Ops>(
    x: FloatTensor<B>,
    weight: &Frozen<B>,
    branch: Branch<B>,
    into: FloatDType,
) -> [FloatTensor<B>; 2] {
    let [low, x] = inner::<B>(x, weight, &branch);
    let Branch { b, scaling, .. } = branch;
    [weight.product_with(x, Product::Forward, Update { low: low.clone(), b, scaling }, into), low]
}

/// The gradients of [`forward`] from that of its first result.
pub(super) fn backward<B: Ops>(
    [x, low]: [FloatTensor<B>; 2],
    weight: &Frozen<B>,
    branch: Branch<B>,
    grad: FloatTensor<B>,
    for_x: bool,
) -> LoraGradients<B> {
    let Branch { a, b, dropped, scaling } = branch;
    let compute = weight.rounding(&grad, Product::InputGradient);
    let of_x = dtype::<B>(&x);
    let kept = |x| match dropped {
        Some(dropped) => B::dropout(x, dropped),
        None => x,
    };
    let [d_low, grad] = B::low_rank(grad, b, Product::InputGradient, scaling, compute);
    let d_b = B::low_rank_gradient(grad.clone(), low, scaling, compute);
    let d_a = B::low_rank_gradient(d_low.clone(), kept(x), 1.0, compute);
    let d_x = for_x.then(|| match dropped {
        None => {
            let update = Update { low: d_low, b: a, scaling: 1.0 };
            weight.product_with(grad, Product::InputGradient, update, of_x)
        }
        Some(_) => {
            let of_branch = kept(B::matmul(wide::<B>(d_low), a));
            let of_weight = weight.product(grad, Product::InputGradient, FloatDType::F32);
            cast::<B>(B::float_add(of_weight, of_branch), of_x)
        }
    });
    LoraGradients { x: d_x, a: d_a, b: d_b }
}

fn scaled<B: Ops>(x: Tensor<B, 2>, scaling: f64) -> Tensor<B, 2> {
    if scaling == 1.0 { x } else { x * scaling }
}

/// [`low_rank`](super::low_rank) by a dense product.
pub(super) fn low_rank<B: Ops>(
    x: FloatTensor<B>,
    factor: FloatTensor<B>,
    product: Product,
    scaling: f64,
) -> [FloatTensor<B>; 2] {
    let factor = tensor::<B, 2>(factor);
    let factor = if product == Product::Forward { factor.transpose() } else { factor };
    [primitive(scaled(matmul(tensor(wide::<B>(x.clone())), factor), scaling)), x]
}

/// [`low_rank_gradient`](super::low_rank_gradient) by a dense product.
pub(super) fn low_rank_gradient<B: Ops>(grad: FloatTensor<B>, x: FloatTensor<B>, scaling: f64) -> FloatTensor<B> {
    let [grad, x] = [grad, x].map(|x| tensor::<B, 2>(wide::<B>(x)));
    // The scale is applied where the tensor is smallest.
    let (grad, x) = match grad.dims()[1] < x.dims()[1] {
        true => (scaled(grad, scaling), x),
        false => (grad, scaled(x, scaling)),
    };
    primitive(matmul(grad.transpose(), x))
}
