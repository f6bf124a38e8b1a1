//! Clipping by the global gradient norm, on the devices.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Gradients;
use crate::model::moved;
use crate::ops::{Ops, primitive, tensor};

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
    let sums = groups.into_iter().map(|(_, group)| moved(tensor(B::sum_of_squares(group)), &first));
    sums.reduce(|a: Tensor<B, 1>, b| a + b).map(Tensor::sqrt)
}

/// By what gradients of this norm are multiplied so that it is `max_norm` at most, `[1]` (`torch.nn.utils.clip_grad_norm_`); 1 where that is
/// 0. Where the norm or the loss, `[1]` on the same device, is not a number, 0: such a step is not to be applied.
pub fn clip_factor<B: Backend>(loss: Tensor<B, 1>, norm: Tensor<B, 1>, max_norm: f64) -> Tensor<B, 1> {
    let finite = loss.is_finite().bool_and(norm.clone().is_finite());
    let factor = match max_norm > 0.0 {
        // Never so small that it were taken for 0.
        true => (norm.full_like(max_norm) / (norm + 1e-6)).clamp(f32::MIN_POSITIVE, 1.0),
        false => norm.ones_like(),
    };
    factor.zeros_like().mask_where(finite, factor)
}
