//! Autodiff for the 4-bit operations: the gradient flows to the activations, never to the frozen weight.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops as Step, OpsKind, unary};

use super::{Nf4Primitive, Ops, Product};

/// The backward pass of one product is the other product, with the weight still in 4 bits: no dense weight and no
/// weight gradient ever exists (QLoRA, arXiv:2305.14314, section 3).
#[derive(Debug)]
struct Nf4MatmulBackward;

impl<B: Ops> Backward<B, 1> for Nf4MatmulBackward {
    type State = (Nf4Primitive<B>, Product);

    fn backward(self, step: Step<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (weight, product) = step.state;
        unary::<B, _>(step.parents, step.node, grads, |grad| B::nf4_matmul(grad, &weight, product.flipped()));
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
        match Nf4MatmulBackward.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::nf4_matmul(x.primitive, &weight, product);
                prep.finish((weight, product), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::nf4_matmul(x.primitive, &weight, product)),
        }
    }
}
