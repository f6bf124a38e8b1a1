//! Linear layers with their branches, forward and backward (`model/linear.rs`, `lora`, `ops/lora.rs`, `ops/weight.rs`).

use crate::ledger::Component;
use crate::run::product;
use crate::shape::LinearShape;
use crate::walk::{DOWN, O, SCRATCH, SKINNY_ROWS, Walk};
use crate::weights::F32;
use crate::{Device, Method};

impl Walk<'_> {
    /// Whether a linear layer's result is added to the hidden states, which are wide.
    fn joins(linear: usize) -> bool {
        matches!(linear, O | DOWN)
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
        let widened = if self.run.dropout && self.narrow() { self.wide(input) } else { 0 };
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

    /// The gradient of a linear layer's result, of which so many bytes came, is made what the layer takes.
    pub(crate) fn widen(&mut self, linear: usize, came: u64) {
        let taken = self.gradient(linear, came);
        if taken != came {
            self.hold(Component::Backward, taken);
            self.free(Component::Backward, came);
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
        if for_input && !self.cpu() {
            self.adapted_gradient(linear, of_input);
        } else if self.run.dora {
            self.free(Component::Graph, dropped);
        }
        self.free_all(Component::Work, &[low, scaled]);
        self.free(Component::Graph, low);
    }

    /// The gradient of an adapted layer's input on a GPU (`ops/lora.rs`, `lora/branch.rs`), and the end of what the graph keeps of the input
    /// for DoRA with dropout.
    fn adapted_gradient(&mut self, linear: usize, result: (Component, u64)) {
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
            self.free(Component::Graph, wide);
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
}
