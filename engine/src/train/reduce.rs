//! The gradients of all ranks of a data-parallel run, added up on the host.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::files::read_all;
use crate::model::Transformer;
use crate::ops::Ops;
use crate::optim::Gradients;
use crate::parallel::Collective;

/// A step's sums over all ranks.
pub(super) struct Summed<B: Ops> {
    pub(super) gradients: Gradients<B>,
    /// Of the losses of the trained tokens.
    pub(super) loss: f64,
    /// The Euclidean norm of all gradients together.
    pub(super) norm: f64,
}

/// The sums of what each rank has; one whose share of the step is empty has nothing. Memory on the host is 4 bytes for each
/// trained parameter, twice.
///
/// The norm is taken here, in f64 and in one order, so that ranks with other numbers of threads clip by the same factor.
pub(super) async fn sum_over_ranks<B: Ops>(
    collective: &dyn Collective,
    model: &Transformer<B>,
    gradients: Gradients<B>,
    loss: Option<Tensor<B, 1>>,
) -> Result<Summed<B>> {
    let mut shapes = BTreeMap::new();
    model.visit(|path, parameter| {
        if parameter.trainable {
            shapes.insert(path.to_string(), (parameter.value.dims(), parameter.value.device()));
        }
    });
    let (paths, mut tensors): (Vec<String>, Vec<Tensor<B, 2>>) = gradients.into_iter().unzip();
    tensors.extend(loss.map(|loss| loss.unsqueeze()));
    let mut read = read_all(tensors).await?;
    let loss = if read.len() > paths.len() { read.pop() } else { None };
    let here: BTreeMap<String, Vec<f32>> = paths.into_iter().zip(read).collect();
    // All gradients, for each whether there is one, and the loss.
    let size: usize = shapes.values().map(|([rows, columns], _)| rows * columns).sum();
    let mut values = Vec::with_capacity(size + shapes.len() + 1);
    for (path, ([rows, columns], _)) in &shapes {
        match here.get(path) {
            Some(gradient) => values.extend(gradient),
            None => values.extend(std::iter::repeat_n(0.0, rows * columns)),
        }
    }
    values.extend(shapes.keys().map(|path| f32::from(u8::from(here.contains_key(path)))));
    values.push(loss.map_or(0.0, |loss| loss.iter().sum()));
    drop(here);
    collective.all_reduce(&mut values)?;
    let (mut rest, others) = values.split_at(size);
    let (present, loss) = others.split_at(shapes.len());
    let mut summed = Summed { gradients: Gradients::new(), loss: loss.iter().copied().map(f64::from).sum(), norm: 0.0 };
    for ((path, (shape, device)), present) in shapes.into_iter().zip(present) {
        let (gradient, after) = rest.split_at(shape[0] * shape[1]);
        rest = after;
        // What no rank has a gradient of is left alone, as in one process.
        if *present > 0.0 {
            summed.norm += gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
            let gradient = Tensor::from_data(TensorData::new(gradient.to_vec(), shape), &device);
            summed.gradients.insert(path, gradient);
        }
    }
    summed.norm = summed.norm.sqrt();
    Ok(summed)
}

/// A digest of everything that is trained: names, shapes and the values' bits.
pub(super) async fn digest<B: Ops>(model: &Transformer<B>) -> Result<[u8; 32]> {
    let (mut paths, mut tensors) = (Vec::new(), Vec::new());
    model.visit(|path, parameter| {
        if parameter.trainable {
            paths.push(format!("{path} {:?}", parameter.value.dims()));
            tensors.push(parameter.value.clone());
        }
    });
    let mut sha256 = Sha256::new();
    for (path, values) in paths.iter().zip(read_all(tensors).await?) {
        sha256.update(path.as_bytes());
        values.chunks(1 << 16).for_each(|values| {
            sha256.update(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        });
    }
    Ok(sha256.finalize().into())
}
