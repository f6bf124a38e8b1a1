//! Autodiff for the operations: one graph node each, which keeps the operation's inputs and nothing in between. The
//! gradient of a 4-bit product flows to the activations, never to the frozen weight.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{FloatDType, TensorMetadata};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops as Step, OpsKind, unary};

use super::fused::{cast, dtype};
use super::{
    Activation, Attended, AttentionForm, AttentionShape, Branch, ComputeDtype, Dropped, Frozen, LoraGradients, Masking,
    Nf4Primitive, Ops, Product, Reading, Variant, lora,
};

#[derive(Debug)]
struct Matmul;

impl<B: Ops> Backward<B, 2> for Matmul {
    /// Each operand, kept where the other one is trained.
    type State = [Option<FloatTensor<B>>; 2];

    fn backward(self, step: Step<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [lhs, rhs] = step.state;
        let [of_lhs, of_rhs] = step.parents;
        let grad = grads.consume::<B>(&step.node);
        if let (Some(node), Some(rhs)) = (of_lhs, rhs) {
            grads.register::<B>(node.id, B::matmul(grad.clone(), B::float_transpose(rhs)));
        }
        if let (Some(node), Some(lhs)) = (of_rhs, lhs) {
            grads.register::<B>(node.id, B::matmul(B::float_transpose(lhs), grad));
        }
    }
}

/// The backward pass of one product is the other product, with the weight still in 4 bits: no dense weight and no
/// weight gradient ever exists (QLoRA, arXiv:2305.14314, section 3).
#[derive(Debug)]
struct Nf4Matmul;

impl<B: Ops> Backward<B, 1> for Nf4Matmul {
    /// And the type of its input.
    type State = (Nf4Primitive<B>, Product, ComputeDtype, FloatDType);

    fn backward(self, step: Step<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (weight, product, compute, of_x) = step.state;
        let product = product.flipped();
        unary::<B, _>(step.parents, step.node, grads, |grad| {
            let (device, rows) = (B::float_device(&grad), grad.shape()[0]);
            let variant = compute.variant::<B>(&device, weight.shape, rows, product);
            B::nf4_matmul(grad, &weight, product, variant, of_x)
        });
    }
}

#[derive(Debug)]
struct Cast;

impl<B: Ops> Backward<B, 1> for Cast {
    /// The type that it was cast from.
    type State = FloatDType;

    fn backward(self, step: Step<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let of_x = step.state;
        unary::<B, _>(step.parents, step.node, grads, |grad| cast::<B>(grad, of_x));
    }
}

#[derive(Debug)]
struct Rotate;

impl<B: Ops> Backward<B, 1> for Rotate {
    type State = (FloatTensor<B>, FloatTensor<B>, bool);

    fn backward(self, step: Step<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (cos, sin, back) = step.state;
        unary::<B, _>(step.parents, step.node, grads, |grad| B::rotate(grad, cos, sin, !back));
    }
}

#[derive(Debug)]
struct RmsNorm;

impl<B: Ops> Backward<B, 2> for RmsNorm {
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, step: Step<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, eps) = step.state;
        let [of_x, of_weight] = step.parents;
        let grad = grads.consume::<B>(&step.node);
        let (d_x, d_weight) = B::rms_norm_backward(x, weight, grad, eps, of_weight.is_some());
        if let Some(node) = of_x {
            grads.register::<B>(node.id, d_x);
        }
        if let (Some(node), Some(d_weight)) = (of_weight, d_weight) {
            grads.register::<B>(node.id, d_weight);
        }
    }
}

#[derive(Debug)]
struct Gated;

impl<B: Ops> Backward<B, 2> for Gated {
    type State = (FloatTensor<B>, FloatTensor<B>, Activation);

    fn backward(self, step: Step<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (gate, up, activation) = step.state;
        let grad = grads.consume::<B>(&step.node);
        let (d_gate, d_up) = B::gated_backward(gate, up, grad, activation);
        for (node, gradient) in step.parents.into_iter().zip([d_gate, d_up]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// The graph keeps the weight as it is, not what was widened of it.
#[derive(Debug)]
struct HalfMatmul;

impl<B: Ops> Backward<B, 1> for HalfMatmul {
    type State = (Vec<FloatTensor<B>>, Product, ComputeDtype);

    fn backward(self, step: Step<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (weight, product, compute) = step.state;
        unary::<B, _>(step.parents, step.node, grads, |grad| B::half_matmul(grad, weight, product.flipped(), compute));
    }
}

/// A frozen linear layer with a branch, whose result and inner activations `compute` gives.
fn lora_linear<B: Ops, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: &Frozen<Autodiff<B, C>>,
    branch: Branch<Autodiff<B, C>>,
    compute: impl FnOnce(FloatTensor<B>, &Frozen<B>, Branch<B>) -> [FloatTensor<B>; 2],
) -> [FloatTensor<Autodiff<B, C>>; 2] {
    let nodes = [x.node.clone(), branch.a.node.clone(), branch.b.node.clone()];
    let weight = frozen(weight);
    let Branch { a, b, dropped, scaling } = branch;
    let branch = Branch { a: a.primitive, b: b.primitive, dropped, scaling };
    let [y, low] = compute(x.primitive.clone(), &weight, branch.clone());
    let y = match LoraLinear.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(([x.primitive, low.clone()], weight, branch), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    };
    [y, <Autodiff<B, C> as AutodiffBackend>::from_inner(low)]
}

#[derive(Debug)]
struct LoraLinear;

impl<B: Ops> Backward<B, 3> for LoraLinear {
    type State = ([FloatTensor<B>; 2], Frozen<B>, Branch<B>);

    fn backward(self, step: Step<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (inputs, weight, branch) = step.state;
        let [of_x, of_a, of_b] = step.parents;
        let grad = grads.consume::<B>(&step.node);
        let LoraGradients { x, a, b } = B::lora_linear_backward(inputs, &weight, branch, grad, of_x.is_some());
        for (node, gradient) in [(of_x, x), (of_a, Some(a)), (of_b, Some(b))] {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// What was dropped has no gradient: the gradient is dropped as the tensor was.
#[derive(Debug)]
struct Dropout;

impl<B: Ops> Backward<B, 1> for Dropout {
    type State = Dropped;

    fn backward(self, step: Step<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(step.parents, step.node, grads, |grad| B::dropout(grad, step.state));
    }
}

#[derive(Debug)]
struct Attention;

impl<B: Ops> Backward<B, 3> for Attention {
    type State = ([FloatTensor<B>; 3], Option<[FloatTensor<B>; 2]>, Masking<B>, AttentionShape);

    fn backward(self, step: Step<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (qkv, attended, masking, shape) = step.state;
        let grad = grads.consume::<B>(&step.node);
        let gradients = B::causal_attention_backward(qkv, attended, &masking, grad, &shape);
        for (node, gradient) in step.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

fn frozen<B: Backend, C: CheckpointStrategy>(weight: &Frozen<Autodiff<B, C>>) -> Frozen<B> {
    match weight {
        Frozen::Dense(weight) => Frozen::Dense(weight.primitive.clone()),
        Frozen::Nf4(weight) => Frozen::Nf4(weight.cast()),
    }
}

/// The weight as the decorated backend sees it: integer tensors are the same on both sides.
fn inner<B: Backend, C: CheckpointStrategy>(weight: &Nf4Primitive<Autodiff<B, C>>) -> Nf4Primitive<B> {
    let Nf4Primitive { codes, absmax, header, shape } = weight.clone();
    Nf4Primitive { codes, absmax, header, shape }
}

impl<B: Ops, C: CheckpointStrategy> Ops for Autodiff<B, C> {
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = B::matmul(lhs.primitive.clone(), rhs.primitive.clone());
        let [of_lhs, of_rhs] = [lhs.is_tracked(), rhs.is_tracked()];
        let kept = [of_rhs.then_some(lhs.primitive), of_lhs.then_some(rhs.primitive)];
        match Matmul.prepare::<C>([lhs.node, rhs.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn cast(x: FloatTensor<Self>, to: FloatDType) -> FloatTensor<Self> {
        let of_x = dtype::<B>(&x.primitive);
        let y = B::cast(x.primitive, to);
        match Cast.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(of_x, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn nf4_quantize(weights: FloatTensor<Self>, block_size: usize) -> [IntTensor<Self>; 2] {
        B::nf4_quantize(weights.primitive, block_size)
    }

    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::nf4_dequantize(&inner(weight)))
    }

    fn nf4_matmul(
        x: FloatTensor<Self>,
        weight: &Nf4Primitive<Self>,
        product: Product,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<Self> {
        let (weight, of_x) = (inner(weight), dtype::<B>(&x.primitive));
        let y = B::nf4_matmul(x.primitive, &weight, product, variant, into);
        match Nf4Matmul.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, product, ComputeDtype::of(variant), of_x), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn half_matmul(
        x: FloatTensor<Self>,
        weight: Vec<FloatTensor<Self>>,
        product: Product,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let weight: Vec<_> = weight.into_iter().map(|part| part.primitive).collect();
        let y = B::half_matmul(x.primitive, weight.clone(), product, compute);
        match HalfMatmul.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, product, compute), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn half_embedding(table: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::half_embedding(table.primitive, rows))
    }

    fn nf4_variants(device: &Self::Device, shape: [usize; 2], rows: usize, product: Product) -> Vec<Variant> {
        B::nf4_variants(device, shape, rows, product)
    }

    fn start_read(x: FloatTensor<Self>) -> Reading {
        B::start_read(x.primitive)
    }

    fn check(device: &Self::Device) -> Result<(), String> {
        B::check(device)
    }

    fn largest_tensor(device: &Self::Device) -> u64 {
        B::largest_tensor(device)
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, into: FloatDType) -> FloatTensor<Self> {
        let y = B::rms_norm(x.primitive.clone(), weight.primitive.clone(), eps, into);
        match RmsNorm.prepare::<C>([x.node.clone(), weight.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x.primitive, weight.primitive, eps), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let y = B::gated(gate.primitive.clone(), up.primitive.clone(), activation);
        match Gated.prepare::<C>([gate.node.clone(), up.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((gate.primitive, up.primitive, activation), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        let y = B::rotate(x.primitive, cos.primitive.clone(), sin.primitive.clone(), back);
        match Rotate.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((cos.primitive, sin.primitive, back), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn dropout(x: FloatTensor<Self>, dropped: Dropped) -> FloatTensor<Self> {
        let y = B::dropout(x.primitive, dropped);
        match Dropout.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(dropped, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn lora_linear(
        x: FloatTensor<Self>,
        weight: &Frozen<Self>,
        branch: Branch<Self>,
        into: FloatDType,
    ) -> [FloatTensor<Self>; 2] {
        lora_linear::<B, C>(x, weight, branch, |x, weight, branch| B::lora_linear(x, weight, branch, into))
    }

    /// What the backward pass takes is computed, and zeros stand for the result.
    fn lora_linear_unseen(x: FloatTensor<Self>, weight: &Frozen<Self>, branch: Branch<Self>) -> FloatTensor<Self> {
        let [y, _] = lora_linear::<B, C>(x, weight, branch, |x, weight, branch| {
            let (shape, device) = ([x.shape()[0], branch.b.shape()[0]], B::float_device(&x));
            let [low, _] = lora::inner::<B>(x, weight, &branch);
            [B::float_zeros(shape.into(), &device, FloatDType::F32), low]
        });
        y
    }

    const ATTENTION_FORMS: &'static [AttentionForm] = B::ATTENTION_FORMS;
    const BOUNDED_ATTENTION: bool = B::BOUNDED_ATTENTION;

    fn causal_attention(
        qkv: [FloatTensor<Self>; 3],
        masking: &Masking<Self>,
        shape: &AttentionShape,
    ) -> Attended<Self> {
        let nodes = qkv.each_ref().map(|x| x.node.clone());
        let qkv = qkv.map(|x| x.primitive);
        let masking = masking.inner();
        let Attended { y, lse } = B::causal_attention(qkv.clone(), &masking, shape);
        let attended = lse.clone().map(|lse| [y.clone(), lse]);
        let y = match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((qkv, attended, masking, shape.clone()), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        Attended { y, lse: lse.map(<Self as AutodiffBackend>::from_inner) }
    }

    fn causal_attention_backward(
        qkv: [FloatTensor<Self>; 3],
        attended: Option<[FloatTensor<Self>; 2]>,
        masking: &Masking<Self>,
        grad: FloatTensor<Self>,
        shape: &AttentionShape,
    ) -> [FloatTensor<Self>; 3] {
        // A gradient of a gradient is asked for by no one.
        let attended = attended.map(|attended| attended.map(|x| x.primitive));
        let qkv = qkv.map(|x| x.primitive);
        B::causal_attention_backward(qkv, attended, &masking.inner(), grad.primitive, shape)
            .map(<Self as AutodiffBackend>::from_inner)
    }
}
