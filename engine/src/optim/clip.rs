//! The global gradient norm, computed on the device.

use burn::tensor::Tensor;

use super::Gradients;
use crate::model::moved;
use crate::ops::Ops;

/// The Euclidean norm over all gradients together: `[1]` on the first one's device; `None` where there are none.
pub fn grad_norm<B: Ops>(gradients: &Gradients<B>) -> Option<Tensor<B, 1>> {
    // What several devices hold is added up on each first.
    let mut sums: Vec<Tensor<B, 1>> = Vec::new();
    for gradient in gradients.values() {
        let (device, squares) = (gradient.device(), (gradient.clone() * gradient.clone()).sum());
        match sums.iter_mut().find(|sum| sum.device() == device) {
            Some(sum) => *sum = sum.clone() + squares,
            None => sums.push(squares),
        }
    }
    let first = sums.first()?.device();
    sums.into_iter().map(|sum| moved(sum, &first)).reduce(|a, b| a + b).map(Tensor::sqrt)
}
