//! One decoder layer, forward and backward (`model/layer.rs`, `model/attention.rs`, `model/mlp.rs`, `ops/autodiff.rs`).

use crate::ledger::Component;
use crate::walk::{DOWN, GATE, K, O, Q, UP, V, Walk};

/// How a layer is gone through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    /// Without a graph, its input being used by nobody else.
    Alone,
    /// Without a graph, its input being kept for later.
    InputKept,
    /// With a graph; whether the input asks for a gradient.
    Graph(bool),
}

/// Which results of a layer have a gradient: those with an adapter at or before them, and all where the input has one.
struct Tracked {
    input: bool,
    heads: [bool; 3],
    attention: bool,
    middle: bool,
    gate: bool,
    up: bool,
    down: bool,
}

impl Walk<'_> {
    fn tracked(&self, input: bool) -> Tracked {
        let heads = [Q, K, V].map(|linear| input || self.trains(linear));
        let attention = heads.contains(&true);
        let middle = attention || self.trains(O);
        let (gate, up) = (middle || self.trains(GATE), middle || self.trains(UP));
        Tracked { input, heads, attention, middle, gate, up, down: gate || up || self.trains(DOWN) }
    }

    /// Whether a graph keeps the result of attention for the gradients of attention itself.
    fn keeps_attended(&self, tracked: &Tracked) -> bool {
        self.fused() && tracked.attention
    }

    /// What a graph keeps of a result is part of the graph, anything else is work.
    fn place(kept: bool) -> Component {
        if kept { Component::Graph } else { Component::Work }
    }

    /// Goes through a layer, whose input the caller holds. The result is held as `result`; unless the input is kept or there
    /// is a graph, it has taken the input's place and nothing more is held.
    pub(crate) fn forward(&mut self, way: Forward, result: Component) {
        let (hidden, normed) = (self.wide(self.model.hidden_size), self.inner(self.model.hidden_size));
        let inner = self.inner(self.model.intermediate_size);
        let (q, k) = self.heads();
        let (q, k) = (self.inner(q), self.inner(k));
        let graph = matches!(way, Forward::Graph(_));
        let tracked = self.tracked(way == Forward::Graph(true));
        let keeps = |yes: bool| graph && yes;
        let trains = |linear| self.keeps_input(linear);
        let normal_kept = keeps(trains(Q) || trains(K) || trains(V));
        let heads_kept = keeps(tracked.attention);
        let attention_kept = keeps(trains(O) || self.keeps_attended(&tracked));
        let second_kept = keeps(trains(GATE) || trains(UP));
        let (gate_kept, product_kept) = (keeps(tracked.gate || tracked.up), keeps(trains(DOWN)));
        let middle_kept = keeps(tracked.middle);

        let normal = Self::place(normal_kept);
        self.hold(normal, normed);
        let heads = Self::place(heads_kept);
        for (linear, bytes) in [(Q, q), (K, k)] {
            self.linear(linear, graph, Component::Work);
            self.hold(heads, bytes);
            self.free(Component::Work, bytes);
        }
        self.linear(V, graph, heads);
        if !normal_kept {
            self.free(normal, normed);
        }
        let attention = Self::place(attention_kept);
        self.attention(heads_kept, attention);
        if !heads_kept {
            self.free_all(heads, &[q, k, k]);
        }
        self.linear(O, graph, Component::Work);
        if !attention_kept {
            self.free(attention, q);
        }
        // The residual sum takes the place of its first operand where nobody else has it.
        if way != Forward::Alone {
            self.hold(if middle_kept { Component::Graph } else { result }, hidden);
        }
        self.free(Component::Work, hidden);
        let second = Self::place(second_kept);
        self.hold(second, normed);
        let gate = Self::place(gate_kept);
        self.linear(GATE, graph, gate);
        self.linear(UP, graph, gate);
        if !second_kept {
            self.free(second, normed);
        }
        let product = Self::place(product_kept);
        self.hold(product, inner);
        if !gate_kept {
            self.free_all(gate, &[inner, inner]);
        }
        self.linear(DOWN, graph, Component::Work);
        if !product_kept {
            self.free(product, inner);
        }
        if middle_kept {
            self.hold(result, hidden);
        }
        self.free(Component::Work, hidden);
    }

    /// Goes back through a layer's graph. The caller holds its output, and the gradient of it as [`Component::Backward`];
    /// afterwards the gradient of the input is held instead, where there is one, and the graph is gone but for input and
    /// output.
    pub(crate) fn backward(&mut self, below: bool) {
        let (hidden, normed) = (self.wide(self.model.hidden_size), self.inner(self.model.hidden_size));
        let inner = self.inner(self.model.intermediate_size);
        let (q, k) = self.heads();
        let (q, k) = (self.inner(q), self.inner(k));
        let tracked = self.tracked(below);
        let flow = Component::Backward;
        if tracked.down {
            let for_product = tracked.gate || tracked.up;
            self.linear_backward(DOWN, for_product);
            if self.keeps_input(DOWN) {
                self.free(Component::Graph, inner);
            }
            if !tracked.middle {
                self.free(flow, hidden);
            }
            if for_product {
                self.gate_backward(inner);
                let pair = [(UP, inner, tracked.up), (GATE, inner, tracked.gate)];
                self.side_by_side(&pair, tracked.middle);
            }
        }
        if !tracked.middle {
            return;
        }
        // The gradient of the second norm's input; that of the first's comes last.
        self.hold(flow, hidden);
        self.free(Component::Graph, hidden);
        self.free_all(flow, &[normed, hidden]);

        self.linear_backward(O, tracked.attention);
        if self.keeps_input(O) && !self.keeps_attended(&tracked) {
            self.free(Component::Graph, q);
        }
        if !tracked.input {
            self.free(flow, hidden);
        }
        if !tracked.attention {
            return;
        }
        self.attention_backward();
        if self.keeps_attended(&tracked) {
            let logarithms = self.logarithms();
            self.free_all(Component::Graph, &[q, logarithms]);
        }
        self.free_all(Component::Graph, &[q, k, k]);
        self.free(flow, q);
        for (head, bytes) in [(K, k), (Q, q)] {
            if tracked.heads[head] {
                self.touch(flow, [bytes]);
            }
        }
        let [of_q, of_k, of_v] = tracked.heads;
        self.side_by_side(&[(V, k, of_v), (K, k, of_k), (Q, q, of_q)], tracked.input);
        if tracked.input {
            self.hold(flow, hidden);
            self.free_all(flow, &[normed, hidden]);
        }
    }

    /// Goes back through linear layers that share a normed input, each with the bytes of its result's gradient, which the caller holds, and
    /// whether it has one. The gradient of the input is held instead, where it is asked for, and the graph no longer keeps that.
    fn side_by_side(&mut self, linears: &[(usize, u64, bool)], for_input: bool) {
        let (flow, normed) = (Component::Backward, self.inner(self.model.hidden_size));
        // All that is widened is before the first layer is gone through.
        for &(linear, bytes, tracked) in linears {
            if tracked {
                self.widen(linear, bytes);
            } else {
                self.free(flow, bytes);
            }
        }
        let (mut of_input, mut kept) = (0, 0);
        for &(linear, bytes, tracked) in linears {
            if tracked {
                self.linear_backward(linear, for_input);
                self.free_all(flow, &[self.gradient(linear, bytes), of_input]);
                of_input = if for_input { normed } else { 0 };
            }
            if self.keeps_input(linear) {
                kept = normed;
            }
        }
        self.free(Component::Graph, kept);
    }

    /// The gradients of gate and up; what the graph kept of both is gone afterwards.
    fn gate_backward(&mut self, inner: u64) {
        let both = [inner, inner];
        self.hold_all(Component::Backward, &both);
        self.free_all(Component::Graph, &both);
        self.free(Component::Backward, inner);
    }
}
