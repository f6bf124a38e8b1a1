//! The end of a graph: its value apart from its place, and backpropagation from a gradient that is known.

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops as Step, OpsKind, unary};

use super::fused::{primitive, tensor};

/// The end of a graph whose gradient is known: it hands it to its parent.
#[derive(Debug)]
struct Known;

impl<B: Backend> Backward<B, 1> for Known {
    type State = FloatTensor<B>;

    fn backward(self, step: Step<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(step.parents, step.node, grads, |_| step.state);
    }
}

/// A tensor's value, and what is left of the tensor: its place in the graph, which [`backward_from`] asks for alone. Whoever then has the
/// value may write over it.
pub(crate) fn apart<B: Backend, const D: usize>(
    output: Tensor<Autodiff<B>, D>,
) -> (Tensor<B, D>, Tensor<Autodiff<B>, D>) {
    let nothing = primitive(Tensor::<B, D>::zeros([1; D], &output.device()));
    let mut place: FloatTensor<Autodiff<B>> = primitive(output);
    let value = std::mem::replace(&mut place.primitive, nothing);
    (tensor(value), tensor(place))
}

/// Backpropagates `d_output` through the graph of `output`. Burn's own `backward` starts from a gradient of ones; a product
/// with `d_output` before it would cost two more tensors of the size of `output`.
pub(crate) fn backward_from<B: Backend, const D: usize>(
    output: Tensor<Autodiff<B>, D>,
    d_output: Tensor<B, D>,
) -> <Autodiff<B> as AutodiffBackend>::Gradients {
    let nothing = primitive(Tensor::<B, 1>::zeros([1], &output.device()));
    let output: FloatTensor<Autodiff<B>> = primitive(output);
    let root = match Known.prepare::<NoCheckpointing>([output.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(primitive(d_output), nothing),
        OpsKind::UnTracked(prep) => prep.finish(nothing),
    };
    <Autodiff<B> as AutodiffBackend>::backward(root)
}
