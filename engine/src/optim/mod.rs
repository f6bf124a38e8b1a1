//! Optimizers over named tensors, and the gradient norm.

mod adamw;
mod clip;
mod config;
mod optimizer;
mod pages;
mod state;

pub use adamw::{AdamWConfig, is_decayed, is_loraplus};
pub use clip::{clip_factor, grad_norm};
pub use config::{DeviceBudget, Optim, OptimizerConfig};
pub use optimizer::{MIN_8BIT_SIZE, Optimizer};
pub use pages::{PagingReport, Traffic};
pub use state::StateTensor;

use std::collections::BTreeMap;

use burn::tensor::Tensor;

/// Gradients by the path of their parameter, in a fixed order so that sums over them are the same every time.
pub type Gradients<B> = BTreeMap<String, Tensor<B, 2>>;

/// Adds `more` into `sum`.
pub fn accumulate<B: burn::tensor::backend::Backend>(sum: &mut Gradients<B>, more: Gradients<B>) {
    for (path, gradient) in more {
        let total = match sum.remove(&path) {
            Some(before) => before + gradient,
            None => gradient,
        };
        sum.insert(path, total);
    }
}
