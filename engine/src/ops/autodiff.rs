//! Autodiff for the operations: one graph node each, which keeps the operation's inputs and nothing in between. The
//! gradient of a 4-bit product flows to the activations, never to the frozen weight.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops as Step, OpsKind, unary};

use super::{AttentionShape, Nf4Primitive, Ops, Product};

/// The backward pass of one product is the other product, with the weight still in 4 bits: no dense weight and no
/// weight gradient ever exists (QLoRA, arXiv:2305.14314, section 3).
#[derive(Debug)]
struct Nf4Matmul;

impl<B: Ops> Backward<B, 1> for Nf4Matmul {
    type State = (Nf4Primitive<B>, Product);

    fn backward(self, step: Step<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (weight, product) = step.state;
        unary::<B, _>(step.parents, step.node, grads, |grad| B::nf4_matmul(grad, &weight, product.flipped()));
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
struct Swiglu;

impl<B: Ops> Backward<B, 2> for Swiglu {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, step: Step<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (gate, up) = step.state;
        let grad = grads.consume::<B>(&step.node);
        let (d_gate, d_up) = B::swiglu_backward(gate, up, grad);
        for (node, gradient) in step.parents.into_iter().zip([d_gate, d_up]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Attention;

impl<B: Ops> Backward<B, 3> for Attention {
    type State = ([FloatTensor<B>; 3], Option<FloatTensor<B>>, AttentionShape);

    fn backward(self, step: Step<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (qkv, mask, shape) = step.state;
        let grad = grads.consume::<B>(&step.node);
        let gradients = B::causal_attention_backward(qkv, mask, grad, shape);
        for (node, gradient) in step.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// The weight as the decorated backend sees it: integer tensors are the same on both sides.
fn inner<B: Backend, C: CheckpointStrategy>(weight: &Nf4Primitive<Autodiff<B, C>>) -> Nf4Primitive<B> {
    let Nf4Primitive { codes, absmax, header, shape } = weight.clone();
    Nf4Primitive { codes, absmax, header, shape }
}

impl<B: Ops, C: CheckpointStrategy> Ops for Autodiff<B, C> {
    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::nf4_dequantize(&inner(weight)))
    }

    fn nf4_matmul(x: FloatTensor<Self>, weight: &Nf4Primitive<Self>, product: Product) -> FloatTensor<Self> {
        let weight = inner(weight);
        match Nf4Matmul.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::nf4_matmul(x.primitive, &weight, product);
                prep.finish((weight, product), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::nf4_matmul(x.primitive, &weight, product)),
        }
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        let y = B::rms_norm(x.primitive.clone(), weight.primitive.clone(), eps);
        match RmsNorm.prepare::<C>([x.node.clone(), weight.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x.primitive, weight.primitive, eps), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = B::swiglu(gate.primitive.clone(), up.primitive.clone());
        match Swiglu.prepare::<C>([gate.node.clone(), up.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((gate.primitive, up.primitive), y),
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

    fn causal_attention(
        qkv: [FloatTensor<Self>; 3],
        mask: Option<FloatTensor<Self>>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let nodes = qkv.each_ref().map(|x| x.node.clone());
        let qkv = qkv.map(|x| x.primitive);
        let mask = mask.map(|mask| mask.primitive);
        let y = B::causal_attention(qkv.clone(), mask.clone(), shape);
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((qkv, mask, shape), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
