//! The global gradient norm, computed on the device.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Gradients;

/// The Euclidean norm over all gradients together: `[1]` on their device; `None` where there are none.
pub fn grad_norm<B: Backend>(gradients: &Gradients<B>) -> Option<Tensor<B, 1>> {
    let squares = gradients.values().map(|g| (g.clone() * g.clone()).sum());
    squares.reduce(|a, b| a + b).map(Tensor::sqrt)
}
