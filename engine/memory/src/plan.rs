//! What a run allocates, line by line.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ledger::{COMPONENTS, Component, Parts, Phase};
use crate::run::product;
use crate::weights::{F32, optimizer_places};
use crate::{Method, ModelShape, Optimizer, Run, stages};

/// One component of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// How much.
    pub bytes: u64,
    /// When.
    pub phase: Phase,
    /// How it is computed, in words and symbols.
    pub formula: String,
    /// The same as a key.
    pub component: Component,
}

/// A run's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Its components: what stays, and for each phase what exists at its peak.
    pub lines: Vec<Line>,
    /// The optimizer's state that is paged out to host memory.
    pub paged_out: u64,
}

impl Plan {
    fn sum(&self, phase: Phase) -> u64 {
        self.lines.iter().filter(|line| line.phase == phase).fold(0, |sum, line| sum.saturating_add(line.bytes))
    }

    /// What stays for the whole run.
    pub fn persistent(&self) -> u64 {
        self.sum(Phase::Always)
    }

    /// The most that exists at once while training.
    pub fn peak(&self) -> u64 {
        [Phase::Layers, Phase::Loss, Phase::Update].map(|phase| self.peak_of(phase)).into_iter().fold(0, u64::max)
    }

    /// The most that exists at once in a phase.
    pub fn peak_of(&self, phase: Phase) -> u64 {
        match phase {
            Phase::Always => self.persistent(),
            Phase::Load | Phase::Merge => self.sum(phase),
            _ => self.persistent().saturating_add(self.sum(phase)),
        }
    }

    /// What exists when most exists while training, a line for each component: what stays, and what the phase of the peak adds
    /// to it. The lines sum to [`Plan::peak`].
    pub fn at_peak(&self) -> Vec<Line> {
        let training = [Phase::Layers, Phase::Loss, Phase::Update];
        let highest = training.into_iter().max_by_key(|phase| self.peak_of(*phase)).unwrap_or(Phase::Layers);
        let mut lines: Vec<Line> = Vec::new();
        for line in self.lines.iter().filter(|line| line.phase == Phase::Always || line.phase == highest) {
            match lines.iter_mut().find(|known| known.component == line.component) {
                Some(known) => {
                    known.bytes = known.bytes.saturating_add(line.bytes);
                    known.formula = format!("{}; {}", known.formula, line.formula);
                }
                None => lines.push(line.clone()),
            }
        }
        lines
    }
}

/// The memory of a run.
pub fn plan(model: &ModelShape, run: &Run) -> Plan {
    let persistent = stages::persistent(model, run);
    let mut lines = Vec::new();
    let mut add = |phase, parts: &Parts| {
        let lines_of = COMPONENTS.iter().filter(|c| parts[**c as usize] > 0).map(|component| Line {
            name: name(*component, run).into(),
            bytes: parts[*component as usize],
            phase,
            formula: formula(*component, phase, model, run),
            component: *component,
        });
        lines.extend(lines_of);
    };
    add(Phase::Always, &persistent);
    for (phase, parts) in stages::phases(model, run, &persistent) {
        add(phase, &parts);
    }
    Plan { lines, paged_out: optimizer_places(model, run).1 }
}

fn name(component: Component, run: &Run) -> &'static str {
    match component {
        Component::Base if run.method == Method::Qlora => "base weights, NF4",
        Component::Base => "base weights",
        Component::Other => "embedding, head, norms",
        Component::Adapters if run.method == Method::Full => "f32 copy of the weights",
        Component::Adapters => "adapters",
        Component::Optimizer => "optimizer",
        Component::Scratch => "scratch of the kernels",
        Component::Gradients => "gradients",
        Component::Inputs => "layer inputs",
        Component::Graph if run.recompute => "one layer's graph",
        Component::Graph => "all layers' graphs",
        Component::Backward => "gradients of activations",
        Component::Work => "inside operations",
        Component::Scores => "attention weights",
        Component::Logits => "logits and their gradient",
        Component::Decoded => "decoded weight",
        Component::Batch => "tokens and positions",
        Component::File => "to and from files",
        Component::Kept => "kept by the allocator",
    }
}

fn formula(component: Component, phase: Phase, model: &ModelShape, run: &Run) -> String {
    let tokens = run.tokens();
    let trained = run.trained(model);
    match component {
        Component::Base if run.method == Method::Qlora => {
            let scale = if run.double_quant { "1" } else { "4" };
            let nested =
                if run.double_quant { format!(" + 4/{} B nested", 256 * run.block_size) } else { String::new() };
            let block = run.block_size;
            format!("{} weights x (1/2 B code + {scale}/{block} B scale{nested}), and headers", model.linear_elements())
        }
        Component::Base => format!("{} weights x {} B", model.linear_elements(), run.weight_bytes),
        Component::Other => {
            format!("{} weights x {} B", crate::weights::frozen_elements(model, run), run.weight_bytes)
        }
        Component::Adapters if run.method == Method::Full => format!("{trained} x 4 B"),
        Component::Adapters if phase == Phase::Merge => format!("{trained} x 4 B"),
        Component::Adapters => {
            let lengths = if run.dora { " and out, the lengths of DoRA" } else { "" };
            let tables = match run.saved(model).count() {
                0 => String::new(),
                count => format!(", {count} x {} of tables", product([model.vocab_size, model.hidden_size])),
            };
            let r = run.rank;
            format!("{trained} = r ({r}) x (in + out){lengths}{tables}, x 4 B, now and as they were a step before")
        }
        Component::Optimizer => {
            let each = match run.optimizer {
                Optimizer::AdamW => "4 B",
                Optimizer::AdamW8bit => "(1 + 4/256) B",
            };
            let budget = run.optimizer_budget.map_or(String::new(), |_| ", the rest in host memory".into());
            format!("{trained} trained x 2 moments x {each}{budget}")
        }
        Component::Scratch => {
            "per thread: a decoded tile, attention weights of 128 queries, the product's buffer".into()
        }
        Component::Gradients if run.method == Method::Full => format!("{trained} trained x 2 B"),
        Component::Gradients if phase == Phase::Always => {
            format!("{trained} trained x 4 B, the last step's, with which it can be undone")
        }
        Component::Gradients => match run.accumulation {
            0 | 1 => format!("{trained} trained x 4 B, as far as the backward pass has come"),
            _ => format!("{trained} trained x 4 B, the sums, and a layer's"),
        },
        Component::Inputs => format!("{tokens} tokens x {} x {F32} B, per layer", model.hidden_size),
        Component::Graph => {
            let layers = if run.recompute { "a layer" } else { "each layer" };
            let [wide, inner] = kept_features(model, run);
            let features = match run.in_bf16() {
                true => format!("({wide} features x {F32} B + {inner} x 2 B)"),
                false => format!("{} features x {F32} B", wide.saturating_add(inner)),
            };
            format!("{tokens} tokens x {features} that {layers} keeps")
        }
        Component::Backward => format!("{tokens} tokens x {F32} B x the widths in between"),
        Component::Work => "results that are gone when their operation ends".into(),
        Component::Scores => {
            let (rows, longest) = (run.rows(), run.longest());
            format!("3 x [{rows}, {} heads, {longest}, {longest}] x {F32} B", model.heads)
        }
        Component::Logits => format!("{} tokens x {} vocabulary x 4 B, each", run.chunk(), model.vocab_size),
        Component::Decoded => {
            let largest = model.linears().iter().map(crate::LinearShape::elements).max().unwrap_or(0);
            match phase {
                Phase::Merge => format!("largest weight: {largest} x (4 + 4 + 2) B, or the embedding x 2 B"),
                _ => format!("largest weight: {largest} x {} B", if run.in_bf16() { 2 } else { 4 }),
            }
        }
        Component::Batch => format!("{tokens} tokens x 2 x {} x 4 B, and indices", model.head()),
        Component::File => match phase {
            Phase::Save => format!("{trained} x 4 B, encoded, and again as the file"),
            Phase::Merge => "output on its way into a shard, at most 4 GiB".into(),
            _ => format!("a tensor as f32 and as {} B, or while it is quantized", run.file_bytes),
        },
        Component::Kept => "memory of tensors that are gone, for further ones of their sizes".into(),
    }
}

/// Features per token that a layer's graph keeps beside its input, where the input asks for a gradient. In f32 the sums in the middle and at
/// the end, and results as they were before DoRA scaled them; as activations between products rotated queries and keys, values, gate and up,
/// and the input and inner activations of every adapted layer, an input that several share once.
fn kept_features(model: &ModelShape, run: &Run) -> [u64; 2] {
    let trains = |name: &&str| run.method == Method::Full || run.adapts(name);
    let (hidden, inner) = (model.hidden_size, model.intermediate_size);
    let (q, k) = (model.heads * model.head(), model.kv() * model.head());
    let inputs: [(&[&str], u64); 4] = [
        (&["q_proj", "k_proj", "v_proj"], hidden),
        (&["o_proj"], q),
        (&["gate_proj", "up_proj"], hidden),
        (&["down_proj"], inner),
    ];
    let inputs = inputs.into_iter().filter(|(names, _)| names.iter().any(trains)).map(|(_, width)| width);
    let adapted = || model.linears().into_iter().filter(|linear| run.adapts(linear.name));
    let unscaled = adapted().filter(|_| run.dora).map(|linear| linear.out);
    let wide = unscaled.fold(2 * hidden, u64::saturating_add);
    [wide, inputs.chain(adapted().map(|_| run.rank)).fold(q + 2 * k + 2 * inner, u64::saturating_add)]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "plan_tests.rs"]
mod tests;
