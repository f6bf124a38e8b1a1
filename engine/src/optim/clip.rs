//! Clipping by the global gradient norm, on the devices.

use burn::tensor::backend::BackendTypes;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

use super::Gradients;
use super::optimizer::{AT_ONCE, primitive};
use crate::model::moved;
use crate::ops::Ops;

/// A device, and what it has of something.
type Of<B, K> = (<B as BackendTypes>::Device, Vec<(K, FloatTensor<B>)>);

/// What each device has, in its order.
fn by_device<B: Ops, K>(gradients: impl Iterator<Item = (K, Tensor<B, 2>)>) -> Vec<Of<B, K>> {
    let mut groups: Vec<Of<B, K>> = Vec::new();
    for (key, gradient) in gradients {
        let (device, gradient) = (gradient.device(), (key, primitive(gradient)));
        match groups.iter_mut().find(|(of, _)| *of == device) {
            Some((_, group)) => group.push(gradient),
            None => groups.push((device, vec![gradient])),
        }
    }
    groups
}

/// The Euclidean norm over all gradients together: `[1]` on the first one's device; `None` where there are none.
pub fn grad_norm<B: Ops>(gradients: &Gradients<B>) -> Option<Tensor<B, 1>> {
    let groups = by_device(gradients.values().map(|gradient| ((), gradient.clone())));
    let first = groups.first()?.0.clone();
    // What several devices hold is added up on each first.
    let sums = groups.into_iter().map(|(_, group)| {
        let sum = B::sum_of_squares(group.into_iter().map(|(_, gradient)| gradient).collect());
        moved(Tensor::from_primitive(TensorPrimitive::Float(sum)), &first)
    });
    sums.reduce(|a: Tensor<B, 1>, b| a + b).map(Tensor::sqrt)
}

/// All gradients times a factor.
pub(crate) fn scaled<B: Ops>(gradients: Gradients<B>, factor: f64) -> Gradients<B> {
    let mut results = Gradients::new();
    for (_, group) in by_device(gradients.into_iter()) {
        let mut group = group.into_iter().peekable();
        while group.peek().is_some() {
            let (paths, part): (Vec<_>, Vec<_>) = group.by_ref().take(AT_ONCE).unzip();
            let part = B::scaled(part, factor).into_iter().map(TensorPrimitive::Float).map(Tensor::from_primitive);
            results.extend(paths.into_iter().zip(part));
        }
    }
    results
}
