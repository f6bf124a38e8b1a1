//! A run walked through as the engine goes: every tensor is held when it comes to exist and freed when its last owner
//! drops it. Shapes only; the order is that of `engine/src/model` and `engine/src/ops`, named at each function.

use crate::ledger::{Component, Ledger};
use crate::run::product;
use crate::shape::LinearShape;
use crate::weights::F32;
use crate::{Device, Method, ModelShape, Run};

/// Elements of a weight that the CPU decodes at a time (`ops/cpu/nf4.rs`).
pub(crate) const TILE: u64 = 1 << 24;
/// Up to this many rows the CPU decodes one row of a weight at a time (`ops/cpu/nf4.rs`).
pub(crate) const SKINNY_ROWS: u64 = 40;
/// Bytes of scores up to which attention is composed on every GPU (`ops/attention/masking.rs`).
const FEW_SCORES: u64 = 8 << 20;
/// Queries that the CPU's attention takes at a time (`ops/cpu/attention.rs`).
pub(crate) const BLOCK: u64 = 128;
/// Rows of the `gemm` crate's register tile with AVX-512: what its packing buffers are rounded to.
const TILE_ROWS: u64 = 64;
/// Inner dimension that `gemm` packs at a time.
const DEPTH: u64 = 512;

/// Bytes of a frozen weight or a head that a GPU widens to f32 at a time (`shaders/src/matmul.rs`).
pub(crate) const SCRATCH: u64 = 256 << 20;
/// Up to so many tokens all activations are f32 (`model/mod.rs`).
const FEW_TOKENS: u64 = 16;

/// The linear layers of a decoder layer, by their place in [`ModelShape::linears`].
pub(crate) const Q: usize = 0;
pub(crate) const K: usize = 1;
pub(crate) const V: usize = 2;
pub(crate) const O: usize = 3;
pub(crate) const GATE: usize = 4;
pub(crate) const UP: usize = 5;
pub(crate) const DOWN: usize = 6;

/// A walk and what it goes by.
pub(crate) struct Walk<'a> {
    pub(crate) model: &'a ModelShape,
    pub(crate) run: &'a Run,
    pub(crate) ledger: Ledger,
    pub(crate) linears: [LinearShape; 7],
    /// Tokens of a micro-batch.
    pub(crate) tokens: u64,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(model: &'a ModelShape, run: &'a Run) -> Self {
        Self {
            model,
            run,
            ledger: Ledger::new(!matches!(run.device, Device::Cpu { .. })),
            linears: model.linears(),
            tokens: run.tokens(),
        }
    }

    /// A walk through what goes on in host memory.
    pub(crate) fn of_files(model: &'a ModelShape, run: &'a Run) -> Self {
        Self { ledger: Ledger::new(false), ..Self::new(model, run) }
    }

    /// Bytes of activations with this many features for every token.
    pub(crate) fn wide(&self, features: u64) -> u64 {
        product([self.tokens, features, F32])
    }

    /// Whether what lies between the products of a layer, and its gradients, are held in the 16 bits that products take.
    pub(crate) fn narrow(&self) -> bool {
        self.run.in_bf16() && self.tokens > FEW_TOKENS
    }

    /// Bytes of activations between the products of a layer with this many features for every token.
    pub(crate) fn inner(&self, features: u64) -> u64 {
        if self.narrow() { product([self.tokens, features, 2]) } else { self.wide(features) }
    }

    /// Features of the queries, and of the keys or values.
    pub(crate) fn heads(&self) -> (u64, u64) {
        (self.model.heads * self.model.head(), self.model.kv() * self.model.head())
    }

    pub(crate) fn cpu(&self) -> bool {
        matches!(self.run.device, Device::Cpu { .. })
    }

    /// Whether a GPU's kernels compute attention without its scores in memory: else they are few, and it is composed of dense products over
    /// padded sequences.
    pub(crate) fn fused(&self) -> bool {
        let longest = self.run.longest();
        let scores = product([F32, self.run.rows(), self.model.heads, longest, longest]);
        self.run.device == Device::Gpu && scores > FEW_SCORES
    }

    /// Bytes of what such kernels give for the backward pass: the logarithm of every query's sum of exponentials.
    pub(crate) fn logarithms(&self) -> u64 {
        product([self.tokens, self.model.heads, F32])
    }

    pub(crate) fn hold(&mut self, component: Component, bytes: u64) {
        self.ledger.hold(component, bytes);
    }

    pub(crate) fn free(&mut self, component: Component, bytes: u64) {
        self.ledger.free(component, bytes);
    }

    /// Tensors of these sizes exist together for a moment.
    pub(crate) fn touch<const N: usize>(&mut self, component: Component, tensors: [u64; N]) {
        self.hold_all(component, &tensors);
        self.free_all(component, &tensors);
    }

    pub(crate) fn hold_all(&mut self, component: Component, tensors: &[u64]) {
        tensors.iter().for_each(|bytes| self.hold(component, *bytes));
    }

    pub(crate) fn free_all(&mut self, component: Component, tensors: &[u64]) {
        tensors.iter().for_each(|bytes| self.free(component, *bytes));
    }

    /// Whether something of a linear layer is trained, so that its input is kept.
    pub(crate) fn trains(&self, linear: usize) -> bool {
        self.run.method == Method::Full || self.run.adapts(self.linears[linear].name)
    }

    /// Whether the graph keeps a linear layer's input: with DoRA and dropout it keeps what was not dropped of it instead.
    pub(crate) fn keeps_input(&self, linear: usize) -> bool {
        self.trains(linear) && !(self.run.dora && self.run.dropout)
    }

    /// What `gemm` packs for a product with `out` columns over `inner`: the weight, where it lies across and is no more than
    /// two of the panels that fit the second-level cache (gemm-common 0.19, `kernel_params`, with a cache of eight ways);
    /// the activations, where the result is wide.
    pub(crate) fn packing(&self, out: u64, inner: u64, across: bool) -> u64 {
        let Device::Cpu { cache, .. } = self.run.device else { return 0 };
        let depth = inner.div_ceil(inner.div_ceil(DEPTH).max(1)).max(1);
        let fitting = (cache / 8 * 6 / product([F32, depth]) / TILE_ROWS * TILE_ROWS).max(TILE_ROWS);
        let panel = out.div_ceil(out.div_ceil(fitting).max(1)).next_multiple_of(TILE_ROWS).min(8 * TILE_ROWS);
        let weight = if across && out <= 2 * panel { out.next_multiple_of(TILE_ROWS) } else { 0 };
        let rows = if out > 128 * TILE_ROWS { self.tokens } else { 0 };
        product([depth, weight.saturating_add(rows), F32])
    }

    /// Bytes of the attention weights of all heads over padded sequences: `[rows, heads, longest, longest]`.
    pub(crate) fn scores(&self) -> u64 {
        let longest = self.run.longest();
        product([self.run.rows(), self.model.heads, longest, longest, F32])
    }

    /// Bytes of a tensor of this many features over padded sequences, where lengths differ.
    fn padded(&self, features: u64) -> (u64, u64) {
        let bytes = product([self.run.rows(), self.run.longest(), features, F32]);
        let ragged = self.run.sequences.iter().any(|length| *length != self.run.longest());
        (bytes, if ragged { bytes } else { 0 })
    }

    /// Attention; its result is held as `result` (`ops/cpu/attention.rs`, `ops/attention/composed.rs`, `attention` of
    /// `halfbyte-shaders`). With a graph, what kernels give for the backward pass is kept.
    pub(crate) fn attention(&mut self, graph: bool, result: Component) {
        let (q, k) = self.heads();
        let bytes = self.inner(q);
        if self.cpu() {
            // The heads' results, then the tensor that they are put into.
            self.hold(Component::Work, bytes);
            self.hold(result, bytes);
            return self.free(Component::Work, bytes);
        }
        if self.fused() {
            let logarithms = self.logarithms();
            self.hold(result, bytes);
            self.hold(Component::Graph, logarithms);
            return self.free(Component::Graph, if graph { 0 } else { logarithms });
        }
        let ((q, q_copy), (_, k_copy)) = (self.padded(q), self.padded(k));
        // Queries by groups, and padded copies of all three where lengths differ.
        let copies = [q, q_copy, k_copy, k_copy];
        let scores = self.scores();
        self.hold_all(Component::Work, &copies);
        self.hold(Component::Scores, scores);
        self.hold(Component::Work, q);
        self.free_all(Component::Work, &copies);
        self.free(Component::Scores, scores);
        self.hold(result, bytes);
        self.free(Component::Work, q);
    }

    /// The backward pass of attention, whose result's gradient the caller holds: the gradients of queries, keys and values.
    pub(crate) fn attention_backward(&mut self) {
        let (q, k) = self.heads();
        let gradients = [self.inner(q), self.inner(k), self.inner(k)];
        if self.cpu() {
            self.hold_all(Component::Work, &gradients);
            self.hold_all(Component::Backward, &gradients);
            return self.free_all(Component::Work, &gradients);
        }
        if self.fused() {
            // The sums over heads of the gradient times the result, and both lists in one.
            let logarithms = self.logarithms();
            self.hold_all(Component::Work, &[logarithms, logarithms]);
            self.hold_all(Component::Backward, &gradients);
            return self.free_all(Component::Work, &[logarithms, logarithms]);
        }
        let ((q, q_copy), (k, k_copy)) = (self.padded(q), self.padded(k));
        let scores = self.scores();
        // Queries and the gradient by groups, padded copies, and the gradient of the values.
        let copies = [q, q, q_copy, q_copy, k_copy, k_copy, k];
        self.hold_all(Component::Work, &copies);
        // The weights, their gradient, and the product of both that is summed over the keys.
        self.touch(Component::Scores, [scores; 3]);
        self.hold(Component::Scores, scores);
        self.hold_all(Component::Work, &[q, k]);
        self.hold_all(Component::Backward, &gradients);
        self.free(Component::Scores, scores);
        self.free_all(Component::Work, &copies);
        self.free_all(Component::Work, &[q, k]);
    }
}
