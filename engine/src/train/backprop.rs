//! Layer-wise backpropagation: one decoder layer's graph at a time, from the top.
//!
//! The forward pass keeps each layer's input. Going back, a layer is computed again with a graph, gives up the gradients
//! of its adapters and of its input, and the graph is dropped; the peak is one layer, whatever the depth (recomputation
//! at every layer boundary: Chen et al., arXiv:1604.06174). The inputs may wait in host memory.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use serde::{Deserialize, Serialize};

use super::loss::{Targets, collect, head_loss};
use super::pipeline::pipeline;
use super::sums::Sums;
use crate::data::Batch;
use crate::lora::Dropout;
use crate::model::{Away, DecoderLayer, EMBEDDING, Pass, Stage, Transformer, indices, layer_path, moved};
use crate::ops::{Held, Ops, Sequences, backward_from};
use crate::optim::Gradients;

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
    /// Has `compute` give a layer's output with a graph. The input asks for a gradient unless nothing below is trained.
    fn new(
        layer: &DecoderLayer<B>,
        path: &str,
        input: Tensor<B, 2>,
        below: bool,
        compute: impl FnOnce(&DecoderLayer<Autodiff<B>>, Tensor<Autodiff<B>, 2>) -> Tensor<Autodiff<B>, 2>,
    ) -> Self {
        let layer = layer.map(path, &mut |_, parameter| parameter.lift::<Autodiff<B>>());
        let input = Tensor::from_inner(input);
        let input = if below { input.require_grad() } else { input };
        let output = compute(&layer, input.clone());
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
    /// The input, in host memory or on its way there.
    Away(Away),
    Graph(Box<Graph<B>>),
}

/// Waits until what was kept last is in host memory, if it goes there: until then it takes the device's, beside what is computed.
fn settle<B: Ops>(kept: &mut [Vec<Kept<B>>]) {
    for last in kept.iter_mut().filter_map(|of_stage| of_stage.last_mut()) {
        if let Kept::Away(input) = last {
            input.wait();
        }
    }
}

/// How a step's micro-batches are backpropagated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// One over the number of trained tokens of all micro-batches, so that they add up to the mean over tokens.
    pub(super) weight: f64,
    /// Tokens whose logits exist at a time.
    pub(super) chunk: usize,
    pub(super) recompute: Recompute,
}

/// A micro-batch on its way up through the stages of a model, and back down.
pub(super) struct Flight<'a, B: Ops> {
    model: &'a Transformer<B>,
    batch: &'a Batch,
    settings: Settings,
    passes: Vec<Pass<B>>,
    /// What each stage's backward pass finds, of the layers that get a gradient.
    kept: Vec<Vec<Kept<B>>>,
    /// On the way up the hidden states behind the stage that was passed last, on the way down their gradient; nothing where no
    /// gradient goes.
    carried: Option<Tensor<B, 2>>,
    /// Where the input came from that was brought back last.
    held: Held,
    /// The lowest layer that is trained. Nothing is kept of those below it, and no gradient goes there.
    lowest: usize,
    loss_sum: Option<Tensor<B, 1>>,
    of_head: Gradients<B>,
}

impl<'a, B: Ops> Flight<'a, B> {
    /// A micro-batch below the first stage: `embedded` `[tokens, hidden]` are the embeddings of its tokens, to which noise may have
    /// been added.
    pub(super) fn new(
        model: &'a Transformer<B>,
        embedded: Tensor<B, 2>,
        batch: &'a Batch,
        settings: Settings,
        dropout: Option<Dropout>,
    ) -> Self {
        let mut passes = model.passes(&Sequences::new(&batch.lengths));
        passes.iter_mut().for_each(|pass| pass.dropout = dropout.clone());
        Self {
            model,
            batch,
            settings,
            kept: passes.iter().map(|_| Vec::new()).collect(),
            passes,
            carried: Some(embedded),
            held: None,
            lowest: model.lowest_trained(),
            loss_sum: None,
            of_head: Gradients::new(),
        }
    }

    /// How many stages there are.
    pub(super) fn stages(&self) -> usize {
        self.passes.len()
    }

    /// How many layers the stage with the most of them has.
    pub(super) fn highest_stage(&self) -> usize {
        self.model.stages.iter().map(|stage| stage.layers.len()).max().unwrap_or(0)
    }

    /// Brings what the stage before gave to the device of this one. This waits for what that one still computes.
    pub(super) fn arrive(&mut self, stage: usize) {
        let device = &self.model.stages[stage].device;
        settle(&mut self.kept);
        self.carried = self.carried.take().map(|x| moved(x, device));
    }

    /// Whether a layer's input has a gradient.
    fn below(&self, layer: usize) -> bool {
        layer > self.lowest || self.model.embedding.trainable()
    }

    /// Up through a layer of a stage, counted from the stage's bottom, if it has so many.
    pub(super) fn up(&mut self, stage: usize, nth: usize) {
        let (model, pass) = (self.model, &self.passes[stage]);
        let Some(i) = model.stages[stage].layers.clone().nth(nth) else { return };
        let Some(x) = self.carried.take() else { return };
        let layer = &model.layers[i];
        if i < self.lowest {
            self.carried = Some(layer.forward(x, pass, None));
            return;
        }
        let kept = match self.settings.recompute {
            Recompute::Layers => Kept::Input(x.clone()),
            Recompute::LayersFromHost => {
                settle(&mut self.kept);
                Kept::Away(Away::leave(x.clone()))
            }
            Recompute::None => {
                let forward = |layer: &DecoderLayer<_>, x| layer.forward(x, &pass.lift(), None);
                Kept::Graph(Box::new(Graph::new(layer, &layer_path(i), x.clone(), self.below(i), forward)))
            }
        };
        self.carried = Some(match &kept {
            Kept::Graph(graph) => graph.output.clone().inner(),
            _ => layer.forward(x, pass, None),
        });
        self.kept[stage].push(kept);
    }

    /// The loss, if the stage is the last one.
    pub(super) fn turn(&mut self, stage: usize) {
        let Some(x) = self.carried.take_if(|_| stage + 1 == self.passes.len()) else { return };
        settle(&mut self.kept);
        let Settings { weight, chunk, .. } = self.settings;
        let (loss_sum, d_hidden, of_head) = head_loss(&self.model.head, x, &Targets::of(self.batch), weight, chunk);
        (self.loss_sum, self.carried, self.of_head) = (Some(loss_sum), Some(d_hidden), of_head);
    }

    /// Down through the layers of a stage; their parameters' gradients are added `into` those of the micro-batches before, layer by layer,
    /// so that beside the sums no more than a layer's exist.
    pub(super) fn down(&mut self, stage: usize, into: &mut Sums<B>) {
        let model = self.model;
        let graph_pass = self.passes[stage].lift();
        let mut of_head = std::mem::take(&mut self.of_head);
        // The gradient of a tied head belongs to the embedding, and goes where that is.
        if let Some(of_tied) = of_head.remove(EMBEDDING) {
            of_head.insert(EMBEDDING.to_string(), moved(of_tied, &model.device()));
        }
        into.add(of_head);
        let Stage { device, layers } = model.stages[stage].clone();
        for i in layers.rev() {
            let Some(kept) = self.kept[stage].pop() else { break };
            let Some(d_output) = self.carried.take() else { break };
            let (path, below) = (layer_path(i), self.below(i));
            // Its output was computed, and seen, on the way up.
            let unseen = |layer: &DecoderLayer<_>, x| layer.unseen(x, &graph_pass);
            let again = |input| Graph::new(&model.layers[i], &path, input, below, unseen);
            let graph = match kept {
                Kept::Graph(graph) => *graph,
                Kept::Input(input) => again(input),
                Kept::Away(input) => {
                    let (input, held) = input.back(&device);
                    // The one before has arrived long since: its layer was computed after it.
                    self.held = held;
                    again(input)
                }
            };
            let mut of_layer = Gradients::new();
            self.carried = graph.backward(&path, d_output, &mut of_layer);
            into.add(of_layer);
            into.passed(i);
        }
        if stage == 0
            && let Some(d_embedded) = self.carried.take().filter(|_| model.embedding.trainable())
        {
            let d_embedding = model.embed_backward(&self.batch.tokens, d_embedded);
            into.add(Gradients::from([(EMBEDDING.to_string(), d_embedding)]));
        }
    }

    /// The sum of the losses, once it was all the way up.
    pub(super) fn loss_sum(self) -> Option<Tensor<B, 1>> {
        self.loss_sum
    }
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
    let settings = Settings { weight, chunk, recompute };
    let mut sums = Sums::alone();
    let flight = Flight::new(model, model.embed(&batch.tokens), batch, settings, dropout);
    let loss_sum = pipeline(vec![flight], &mut sums).next();
    let loss_sum = loss_sum.unwrap_or_else(|| Tensor::zeros([1], &model.device()));
    Step { loss_sum, gradients: sums.gradients() }
}

/// The same loss and gradients from one graph over a model of one stage: what layer-wise backpropagation is tested against.
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
