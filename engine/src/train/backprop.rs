//! Layer-wise backpropagation: one decoder layer's graph at a time, from the top.
//!
//! The forward pass keeps each layer's input. Going back, a layer is computed again with a graph, gives up the gradients
//! of its adapters and of its input, and the graph is dropped; the peak is one layer, whatever the depth (recomputation
//! at every layer boundary: Chen et al., arXiv:1604.06174). The inputs may wait in host memory.

use burn::tensor::{Tensor, TensorData};
use burn_autodiff::Autodiff;
use serde::{Deserialize, Serialize};

use super::loss::{Targets, collect, head_loss};
use crate::data::Batch;
use crate::lora::Dropout;
use crate::model::{DecoderLayer, EMBEDDING, Pass, Transformer, indices, layer_path};
use crate::ops::{Ops, Sequences, backward_from};
use crate::optim::{Gradients, accumulate};

/// Whether the forward pass of a layer is done again in the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Keep only the layers' inputs and compute each layer again: memory of one layer.
    Layers,
    /// The same with the layers' inputs in host memory until they are asked for: the device's memory does not grow with the number
    /// of layers but for the adapters. A backend must be able to wait for a tensor, which a browser's cannot.
    LayersFromHost,
    /// Keep every layer's graph: fastest, for models that fit.
    None,
}

/// What one micro-batch contributes to an optimizer step.
pub struct Step<B: Ops> {
    /// Sum of the losses of its trained tokens, `[1]`.
    pub loss_sum: Tensor<B, 1>,
    /// Gradients of `weight * loss_sum`.
    pub gradients: Gradients<B>,
}

/// One layer's graph: its lifted parameters, its input and its output.
struct Graph<B: Ops> {
    layer: DecoderLayer<Autodiff<B>>,
    input: Tensor<Autodiff<B>, 2>,
    output: Tensor<Autodiff<B>, 2>,
}

impl<B: Ops> Graph<B> {
    /// Computes a layer with a graph. The input asks for a gradient unless nothing below is trained.
    fn new(layer: &DecoderLayer<B>, path: &str, input: Tensor<B, 2>, pass: &Pass<Autodiff<B>>, below: bool) -> Self {
        let layer = layer.map(path, &mut |_, parameter| parameter.lift::<Autodiff<B>>());
        let input = Tensor::from_inner(input);
        let input = if below { input.require_grad() } else { input };
        let output = layer.forward(input.clone(), pass, None);
        Self { layer, input, output }
    }

    /// Backpropagates through the layer: its parameters' gradients go `into`, its input's is returned.
    fn backward(self, path: &str, d_output: Tensor<B, 2>, into: &mut Gradients<B>) -> Option<Tensor<B, 2>> {
        let grads = backward_from(self.output, d_output);
        self.layer.map::<Autodiff<B>>(path, &mut |path, parameter| {
            collect(path, parameter, &grads, into);
            parameter.clone()
        });
        self.input.grad(&grads)
    }
}

/// What the forward pass keeps of a layer.
enum Kept<B: Ops> {
    Input(Tensor<B, 2>),
    /// The input, in host memory.
    Away(TensorData),
    Graph(Box<Graph<B>>),
}

/// Waits for the device. A browser, whose thread cannot wait, is refused what asks for it ([`TrainerConfig::check`]).
///
/// [`TrainerConfig::check`]: super::TrainerConfig::check
#[cfg_attr(target_arch = "wasm32", allow(clippy::disallowed_methods))]
fn to_host<B: Ops>(x: &Tensor<B, 2>) -> TensorData {
    x.to_data()
}

/// The loss of a batch and the gradients of `weight * sum of losses` for every trainable parameter.
///
/// `weight` is one over the number of trained tokens of the whole accumulated batch, so that micro-batches add up to the
/// mean over tokens; `chunk` is how many tokens' logits exist at a time.
pub fn backpropagate<B: Ops>(
    model: &Transformer<B>,
    batch: &Batch,
    weight: f64,
    chunk: usize,
    recompute: Recompute,
    dropout: Option<Dropout>,
) -> Step<B> {
    backpropagate_from(model, model.embed(&batch.tokens), batch, weight, chunk, recompute, dropout)
}

/// [`backpropagate`] from these embeddings `[tokens, hidden]` of the batch's tokens, to which noise may have been added.
pub(super) fn backpropagate_from<B: Ops>(
    model: &Transformer<B>,
    embedded: Tensor<B, 2>,
    batch: &Batch,
    weight: f64,
    chunk: usize,
    recompute: Recompute,
    dropout: Option<Dropout>,
) -> Step<B> {
    let mut pass = model.pass(Sequences::new(&batch.lengths));
    pass.dropout = dropout;
    let graph_pass = pass.lift();
    // Nothing is kept of the layers below the lowest that is trained, and no gradient goes there.
    let lowest = model.lowest_trained();
    let below = |i: usize| i > lowest || model.embedding.trainable;
    let (untouched, trained) = model.layers.split_at(lowest);
    let mut x = untouched.iter().fold(embedded, |x, layer| layer.forward(x, &pass, None));
    let mut kept = Vec::with_capacity(trained.len());
    for (i, layer) in (lowest..).zip(trained) {
        match recompute {
            Recompute::Layers => {
                kept.push(Kept::Input(x.clone()));
                x = layer.forward(x, &pass, None);
            }
            Recompute::LayersFromHost => {
                kept.push(Kept::Away(to_host(&x)));
                x = layer.forward(x, &pass, None);
            }
            Recompute::None => {
                let graph = Graph::new(layer, &layer_path(i), x, &graph_pass, below(i));
                x = graph.output.clone().inner();
                kept.push(Kept::Graph(Box::new(graph)));
            }
        }
    }
    let (loss_sum, d_hidden, mut gradients) = head_loss(&model.head, x, &Targets::of(batch), weight, chunk);
    let mut gradient = Some(d_hidden);
    for (i, kept) in kept.into_iter().enumerate().rev() {
        let Some(d_output) = gradient.take() else { break };
        let path = layer_path(lowest + i);
        let graph = match kept {
            Kept::Graph(graph) => *graph,
            Kept::Input(input) => Graph::new(&trained[i], &path, input, &graph_pass, below(lowest + i)),
            Kept::Away(input) => {
                let input = Tensor::from_data(input, &model.device());
                Graph::new(&trained[i], &path, input, &graph_pass, below(lowest + i))
            }
        };
        gradient = graph.backward(&path, d_output, &mut gradients);
    }
    if let Some(d_embedded) = gradient.filter(|_| model.embedding.trainable) {
        let d_embedding = model.embed_backward(&batch.tokens, d_embedded);
        accumulate(&mut gradients, Gradients::from([(EMBEDDING.to_string(), d_embedding)]));
    }
    Step { loss_sum, gradients }
}

/// The same loss and gradients from one graph over the whole model: what layer-wise backpropagation is tested against.
pub fn whole_graph<B: Ops>(model: &Transformer<B>, batch: &Batch, weight: f64) -> Step<B> {
    let lifted = model.map(|_, parameter| parameter.lift::<Autodiff<B>>());
    let logits = lifted.logits(&batch.tokens, &batch.lengths);
    let targets = Targets::of(batch);
    let device = model.device();
    let rows = Tensor::from_inner(indices::<B>(targets.rows.iter().map(|r| *r as i32), &device));
    let tokens = indices::<B>(targets.tokens.iter().map(|t| *t as i32), &device).reshape([targets.len(), 1]);
    let log_softmax = burn::tensor::activation::log_softmax(logits.select(0, rows), 1);
    let loss_sum = log_softmax.gather(1, Tensor::from_inner(tokens)).sum().neg();
    let grads = (loss_sum.clone() * weight).backward();
    let mut gradients = Gradients::new();
    lifted.visit(|path, parameter| collect(path, parameter, &grads, &mut gradients));
    Step { loss_sum: loss_sum.inner(), gradients }
}
