//! The global gradient norm, computed on the device.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

use super::Gradients;
use super::optimizer::primitive;
use crate::model::moved;
use crate::ops::Ops;

/// The Euclidean norm over all gradients together: `[1]` on the first one's device; `None` where there are none.
pub fn grad_norm<B: Ops>(gradients: &Gradients<B>) -> Option<Tensor<B, 1>> {
    // What several devices hold is added up on each first.
    let mut groups: Vec<(B::Device, Vec<FloatTensor<B>>)> = Vec::new();
    for gradient in gradients.values() {
        let (device, gradient) = (gradient.device(), primitive(gradient.clone()));
        match groups.iter_mut().find(|(of, _)| *of == device) {
            Some((_, group)) => group.push(gradient),
            None => groups.push((device, vec![gradient])),
        }
    }
    let first = groups.first()?.0.clone();
    let sums = groups.into_iter().map(|(_, group)| B::sum_of_squares(group));
    let sums = sums.map(|sum| moved(Tensor::from_primitive(TensorPrimitive::Float(sum)), &first));
    sums.reduce(|a: Tensor<B, 1>, b| a + b).map(Tensor::sqrt)
}
