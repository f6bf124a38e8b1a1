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
    fn narrow(&self) -> bool {
        self.run.in_bf16() && self.tokens > FEW_TOKENS
    }

    /// Bytes of activations between the products of a layer with this many features for every token.
    pub(crate) fn inner(&self, features: u64) -> u64 {
        if self.narrow() { product([self.tokens, features, 2]) } else { self.wide(features) }
    }

    /// Whether a linear layer's result is added to the hidden states, which are wide.
    fn joins(linear: usize) -> bool {
        matches!(linear, O | DOWN)
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

    /// A product with a frozen weight; its result, of so many bytes, is held as `result` (`ops/lora.rs`, `ops/cpu/nf4.rs`, and
    /// `nf4_matmul` of `halfbyte-shaders`).
    fn frozen(&mut self, linear: usize, forward: bool, (result, bytes): (Component, u64)) {
        let LinearShape { out, input, .. } = self.linears[linear];
        let (inner, width) = if forward { (input, out) } else { (out, input) };
        let quantized = self.run.method == Method::Qlora;
        let elements = product([out, input]);
        match self.run.device {
            Device::Cpu { .. } => {
                // The scales of all blocks, decoded.
                let blocks = elements.div_ceil(self.run.block_size.max(1));
                let scales = if quantized { product([blocks, F32]) } else { 0 };
                self.hold(Component::Work, scales);
                self.hold(result, bytes);
                if quantized && forward && self.tokens <= SKINNY_ROWS {
                    self.touch(Component::Work, [if self.tokens > 1 { bytes } else { 0 }]);
                } else {
                    self.touch(Component::Work, [self.packing(width, inner, forward)]);
                }
                self.free(Component::Work, scales);
            }
            Device::Gpu => {
                self.hold(result, bytes);
                if self.run.in_bf16() {
                    // Beside the weight in 16 bits, which Hopper multiplies many rows with, the operand, where it is wide.
                    let narrow = self.narrow() && (forward || !Self::joins(linear));
                    let rounded = if narrow { 0 } else { product([self.tokens, inner, 2]) };
                    self.hold(Component::Work, rounded);
                    self.touch(Component::Decoded, [if quantized { product([elements, 2]) } else { 0 }]);
                    self.free(Component::Work, rounded);
                } else if quantized {
                    // In parts, which for a gradient are summed up.
                    let dense = product([elements, F32]);
                    let more = if dense > SCRATCH && !forward { bytes } else { 0 };
                    self.hold(Component::Work, more);
                    self.touch(Component::Decoded, [dense.min(SCRATCH)]);
                    self.free(Component::Work, more);
                }
            }
        }
    }

    /// A linear layer; its result is held as `result` (`model/linear.rs`, `lora/branch.rs`). With a graph its branch's inner
    /// activations are kept, and under DoRA's scale its result as it was before.
    pub(crate) fn linear(&mut self, linear: usize, graph: bool, result: Component) {
        let LinearShape { name, out, input, .. } = self.linears[linear];
        let given = if Self::joins(linear) { self.wide(out) } else { self.inner(out) };
        if !self.run.adapts(name) {
            return self.frozen(linear, true, (result, given));
        }
        if !self.run.dora {
            return self.adapted(linear, graph, (result, given));
        }
        let (bytes, small) = (self.wide(out), product([self.run.rank, out, F32]));
        // B turned, the weight by the rows of A, the rows of A by each other and by B, what comes of these under the rows' lengths, and what the
        // products pack (`lora/dora.rs`).
        self.touch(Component::Work, [small; 14]);
        let before = if graph { Component::Graph } else { Component::Work };
        // With dropout, the frozen layer's own product of what was dropped, of the input in f32.
        let own = if self.run.dropout { bytes } else { 0 };
        let widened = if self.run.dropout && self.inner(input) != self.wide(input) { self.wide(input) } else { 0 };
        self.hold_all(Component::Work, &[widened, own]);
        self.adapted(linear, graph, (before, bytes));
        // The scaled result is rounded where it does not stay in f32.
        let scaled = if given == bytes { 0 } else { bytes };
        self.hold(Component::Work, scaled);
        self.hold(result, given);
        self.free_all(Component::Work, &[scaled, own, widened]);
        if !graph {
            self.free(before, bytes);
        }
    }

    /// Bytes of what dropout leaves of a branch's input with so many features, in its type; with DoRA in f32.
    fn dropped(&self, input: u64) -> u64 {
        match (self.run.dropout, self.run.dora) {
            (false, _) => 0,
            (true, false) => self.inner(input),
            (true, true) => self.wide(input),
        }
    }

    /// A frozen layer and its branch (`ops/lora.rs`, `ops/cpu/lora.rs`).
    fn adapted(&mut self, linear: usize, graph: bool, result: (Component, u64)) {
        let LinearShape { out, input, .. } = self.linears[linear];
        let kept = if graph { Component::Graph } else { Component::Work };
        let (low, dropped) = (self.inner(self.run.rank), self.dropped(input));
        // DoRA keeps what dropout leaves of the input, and the branch alone drops it once more on the way back.
        let of_dora = if self.run.dora { dropped } else { 0 };
        self.hold(kept, of_dora);
        self.hold(Component::Work, dropped);
        self.hold(kept, low);
        // On a GPU it is gone once the branch has seen it; under DoRA it stands for what the frozen weight alone sees.
        let early = if self.cpu() || self.run.dora { 0 } else { dropped };
        self.free(Component::Work, early);
        self.frozen(linear, true, result);
        if !self.cpu() && !self.run.in_bf16() {
            // The branch's result, which is added to the base's.
            self.touch(Component::Work, [low, self.wide(out)]);
        }
        self.free(Component::Work, dropped - early);
        if !graph {
            self.free_all(kept, &[low, of_dora]);
        }
    }

    /// Bytes of the gradient of a linear layer's result as the layer takes it, of which so many came: under DoRA it is widened to f32.
    pub(crate) fn gradient(&self, linear: usize, came: u64) -> u64 {
        let LinearShape { name, out, .. } = self.linears[linear];
        if self.run.dora && self.run.adapts(name) { self.wide(out) } else { came }
    }

    /// The gradients of the results of layers with one input, of so many bytes each, are made what the layers take before the first of them is
    /// gone through: each becomes known as soon as what used it is passed.
    pub(crate) fn widen(&mut self, gradients: impl IntoIterator<Item = (usize, u64)>) {
        for (linear, came) in gradients {
            let taken = self.gradient(linear, came);
            if taken != came {
                self.hold(Component::Backward, taken);
                self.free(Component::Backward, came);
            }
        }
    }

    /// The backward pass of a linear layer, whose result's gradient the caller holds: the adapter's gradients, and that
    /// of the input where it is asked for (`ops/lora.rs`, `ops/cpu/lora.rs`).
    pub(crate) fn linear_backward(&mut self, linear: usize, for_input: bool) {
        let LinearShape { name, out, input, .. } = self.linears[linear];
        let of_input = (Component::Backward, self.inner(input));
        if !self.run.adapts(name) {
            if for_input {
                self.frozen(linear, false, of_input);
            }
            return;
        }
        let [a, b, lengths] = self.run.adapter(&self.linears[linear]);
        // The gradient under DoRA's scale, and that of the scale.
        let scaled = if self.run.dora { self.wide(out) } else { 0 };
        self.touch(Component::Work, [scaled]);
        self.hold(Component::Gradients, product([lengths, F32]));
        self.hold(Component::Work, scaled);
        self.free(Component::Graph, scaled);
        let (low, dropped) = (self.inner(self.run.rank), self.dropped(input));
        self.hold(Component::Work, low);
        if !self.cpu() {
            self.touch(Component::Work, [low]);
        }
        self.hold(Component::Gradients, product([b, F32]));
        self.hold(Component::Work, dropped);
        self.hold(Component::Gradients, product([a, F32]));
        if for_input && self.cpu() {
            self.frozen(linear, false, of_input);
            self.touch(Component::Work, [dropped]);
        }
        self.free(Component::Work, dropped);
        let of_dora = if self.run.dora { dropped } else { 0 };
        if for_input && !self.cpu() {
            self.adapted_gradient(linear, of_input, of_dora);
        } else {
            self.free(Component::Graph, of_dora);
        }
        self.free_all(Component::Work, &[low, scaled]);
        self.free(Component::Graph, low);
    }

    /// The gradient of an adapted layer's input on a GPU (`ops/lora.rs`, `lora/branch.rs`), and the end of what the graph keeps of the input
    /// for DoRA with dropout, so many bytes.
    fn adapted_gradient(&mut self, linear: usize, result: (Component, u64), of_dora: u64) {
        let wide = self.wide(self.linears[linear].input);
        // What the branch adds, unless a kernel takes it into its sums.
        let added = if self.run.in_bf16() { 0 } else { wide };
        if !self.run.dropout {
            self.frozen(linear, false, result);
            return self.touch(Component::Work, [added]);
        }
        if self.run.dora {
            // Of what was dropped, by the frozen weight alone, and of what was not, from which the first is taken.
            self.frozen(linear, false, (Component::Work, wide));
            self.frozen(linear, false, (Component::Work, wide));
            self.touch(Component::Work, [added]);
            self.free(Component::Graph, of_dora);
            self.touch(Component::Work, [wide]);
        } else {
            // The branch's, what dropout leaves of it, and the frozen weight's, in whose place they are added up.
            self.touch(Component::Work, [wide, wide]);
            self.hold(Component::Work, wide);
            self.frozen(linear, false, (Component::Work, wide));
        }
        self.free(Component::Work, wide);
        self.hold(result.0, result.1);
        self.free(Component::Work, wide);
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
