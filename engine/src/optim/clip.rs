//! Clipping by the global gradient norm, on the devices.

use burn::tensor::{Tensor, TensorPrimitive};

use super::Gradients;
use super::optimizer::{AT_ONCE, primitive};
use crate::model::moved;
use crate::ops::Ops;

/// What belongs to each device, in the order in which it comes.
pub(super) fn by_device<D: PartialEq, T>(all: impl IntoIterator<Item = (D, T)>) -> Vec<(D, Vec<T>)> {
    let mut groups: Vec<(D, Vec<T>)> = Vec::new();
    for (device, one) in all {
        match groups.iter_mut().find(|(of, _)| *of == device) {
            Some((_, group)) => group.push(one),
            None => groups.push((device, vec![one])),
        }
    }
    groups
}

/// The Euclidean norm over all gradients together: `[1]` on the first one's device; `None` where there are none.
pub fn grad_norm<B: Ops>(gradients: &Gradients<B>) -> Option<Tensor<B, 1>> {
    let groups = by_device(gradients.values().map(|gradient| (gradient.device(), primitive(gradient.clone()))));
    let first = groups.first()?.0.clone();
    // What several devices hold is added up on each first.
    let sums = groups
        .into_iter()
        .map(|(_, group)| moved(Tensor::from_primitive(TensorPrimitive::Float(B::sum_of_squares(group))), &first));
    sums.reduce(|a: Tensor<B, 1>, b| a + b).map(Tensor::sqrt)
}

/// All gradients times a factor.
pub(crate) fn scaled<B: Ops>(gradients: Gradients<B>, factor: f64) -> Gradients<B> {
    let mut results = Gradients::new();
    for (_, group) in by_device(gradients.into_iter().map(|(path, gradient)| (gradient.device(), (path, gradient)))) {
        let mut group = group.into_iter().peekable();
        while group.peek().is_some() {
            let part = group.by_ref().take(AT_ONCE).map(|(path, gradient)| (path, primitive(gradient)));
            let (paths, part): (Vec<_>, Vec<_>) = part.unzip();
            let part = B::scaled(part, factor).into_iter().map(TensorPrimitive::Float).map(Tensor::from_primitive);
            results.extend(paths.into_iter().zip(part));
        }
    }
    results
}
