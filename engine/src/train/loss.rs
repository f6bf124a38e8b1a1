//! The language-model loss and its gradient, over chunks of tokens: full logits never exist.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;

use crate::data::Batch;
use crate::model::{Head, Parameter, indices};
use crate::ops::{Ops, apart, backward_from, cross_entropy, select_rows};
use crate::optim::{Gradients, accumulate};

/// What the loss is taken on: rows of the hidden states and the token that each must predict.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// Rows of `[tokens, hidden]`.
    pub rows: Vec<usize>,
    /// The token that each row must predict.
    pub tokens: Vec<u32>,
}

impl Targets {
    /// A batch's targets. Rows that predict nothing never reach the output head.
    pub fn of(batch: &Batch) -> Self {
        let (rows, tokens) = batch.targets.iter().copied().unzip();
        Self { rows, tokens }
    }

    /// How many tokens the loss is taken on.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the loss is taken on nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Rows of hidden states that a chunk takes, and what they must predict.
struct Rows<B: Ops> {
    indices: Tensor<B, 1, Int>,
    targets: Tensor<B, 2, Int>,
}

/// At most so many rows whose logits the device holds as one tensor.
///
/// What is kept for tensors to come is given back before each chunk that has other sizes than the one before: logits are of sizes that
/// nothing else has. The caller does the same when it is done with the last.
fn chunks<'a, B: Ops>(
    head: &Head<B>,
    targets: &'a Targets,
    chunk: usize,
    device: &'a B::Device,
) -> impl Iterator<Item = Rows<B>> + use<'a, B> {
    let most = B::largest_tensor(device) / (4 * head.weight.dims()[0].max(1)) as u64;
    let chunk = (chunk as u64).min(most).max(1) as usize;
    let pairs = targets.rows.chunks(chunk).zip(targets.tokens.chunks(chunk));
    let mut before = 0;
    pairs.map(move |(rows, tokens)| {
        if rows.len() != std::mem::replace(&mut before, rows.len()) {
            B::release_memory(device);
        }
        let values: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
        Rows {
            indices: indices(rows.iter().map(|r| *r as i32), device),
            targets: Tensor::from_data(TensorData::new(values, [tokens.len(), 1]), device),
        }
    })
}

/// The sum of the losses `[1]`, and how many targets have the largest logit `[1]`, without gradients. `hidden` is
/// `[tokens, hidden]`.
pub fn loss_and_hits<B: Ops>(
    head: &Head<B>,
    hidden: Tensor<B, 2>,
    targets: &Targets,
    chunk: usize,
) -> [Tensor<B, 1>; 2] {
    let device = hidden.device();
    let zero = || Tensor::zeros([1], &device);
    let sums = chunks(head, targets, chunk, &device).fold([zero(), zero()], |[loss, hits], rows| {
        let logits = head.forward(select_rows(hidden.clone(), rows.indices));
        let hit = logits.clone().argmax(1).equal(rows.targets.clone()).float().sum();
        [loss + cross_entropy(logits, rows.targets).0, hits + hit]
    });
    B::release_memory(&device);
    sums
}

/// The sum of the losses `[1]`, the gradient of `weight * sum` with respect to `hidden` `[tokens, hidden]`, and that of
/// the head's trainable parameters.
///
/// The gradient of the logits is `softmax - onehot`, written down rather than derived, and takes their place, so that a chunk holds one
/// `[chunk, vocab]` tensor.
pub fn head_loss<B: Ops>(
    head: &Head<B>,
    hidden: Tensor<B, 2>,
    targets: &Targets,
    weight: f64,
    chunk: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>, Gradients<B>) {
    let device = hidden.device();
    let lifted = head.map(&mut |_, parameter: &Parameter<B>| parameter.lift::<Autodiff<B>>());
    let mut loss = Tensor::zeros([1], &device);
    let mut gradient = Tensor::zeros(hidden.dims(), &device);
    let mut gradients = Gradients::new();
    for rows in chunks(head, targets, chunk, &device) {
        let x = select_rows(hidden.clone(), rows.indices.clone());
        let x = Tensor::<Autodiff<B>, 2>::from_inner(x).require_grad();
        let (logits, place) = apart(lifted.forward(x.clone()));
        let (sum, d_logits) = cross_entropy(logits, rows.targets);
        let grads = backward_from(place, d_logits * weight);
        loss = loss + sum;
        if let Some(dx) = x.grad(&grads) {
            gradient = gradient.select_assign(0, rows.indices, dx, IndexingUpdateOp::Add);
        }
        let mut of_head = Gradients::new();
        lifted.map::<Autodiff<B>>(&mut |path, parameter| {
            collect(path, parameter, &grads, &mut of_head);
            parameter.clone()
        });
        accumulate(&mut gradients, of_head);
    }
    B::release_memory(&device);
    (loss, gradient, gradients)
}

/// Takes a trainable parameter's gradient out of a finished backward pass.
pub(super) fn collect<B: Ops>(
    path: &str,
    parameter: &Parameter<Autodiff<B>>,
    grads: &<Autodiff<B> as AutodiffBackend>::Gradients,
    into: &mut Gradients<B>,
) {
    if parameter.trainable
        && let Some(gradient) = parameter.value.grad(grads)
    {
        into.insert(path.to_string(), gradient);
    }
}
