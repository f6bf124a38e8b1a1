//! What a run allocates, line by line.

use serde::{Deserialize, Serialize};

use crate::ModelShape;

/// Bytes of an f32.
const F32: u64 = 4;

/// How the model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Every parameter.
    Full,
    /// Adapters on a dense base.
    Lora,
    /// Adapters on a base in NF4.
    Qlora,
}

/// The optimizer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Optimizer {
    /// Two f32 per trained parameter.
    AdamW,
    /// Two bytes per trained parameter and one f32 per 256 of each (arXiv:2110.02861).
    AdamW8bit,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// How the model is trained.
    pub method: Method,
    /// Rank of the adapters.
    pub rank: u64,
    /// Names of the adapted linear layers; empty for all seven.
    pub targets: Vec<String>,
    /// Sequences of a micro-batch.
    pub batch: u64,
    /// Tokens of a sequence.
    pub length: u64,
    /// Layers are computed again in the backward pass.
    pub recompute: bool,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Bytes of a dense base weight: 2 for bf16, 4 for f32.
    pub weight_bytes: u64,
    /// Bytes of an activation.
    pub activation_bytes: u64,
    /// Elements that share an NF4 scale.
    pub block_size: u64,
    /// Scales are quantized again.
    pub double_quant: bool,
    /// Tokens whose logits exist at a time.
    pub loss_chunk: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            method: Method::Qlora,
            rank: 16,
            targets: vec![],
            batch: 1,
            length: 2048,
            recompute: true,
            optimizer: Optimizer::AdamW,
            weight_bytes: 2,
            activation_bytes: 2,
            block_size: 64,
            double_quant: true,
            loss_chunk: 512,
        }
    }
}

/// When a line's bytes exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// From loading to the end.
    Always,
    /// While a step goes through the layers and back.
    Layers,
    /// While the loss is taken; the layers' inputs exist too, but no layer's graph does.
    Loss,
}

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
}

/// A run's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Its components.
    pub lines: Vec<Line>,
}

impl Plan {
    fn sum(&self, phase: Phase) -> u64 {
        self.lines.iter().filter(|line| line.phase == phase).fold(0, |sum, line| sum.saturating_add(line.bytes))
    }

    /// What stays for the whole run.
    pub fn persistent(&self) -> u64 {
        self.sum(Phase::Always)
    }

    /// The most that exists at once.
    pub fn peak(&self) -> u64 {
        self.persistent().saturating_add(self.sum(Phase::Layers).max(self.sum(Phase::Loss)))
    }
}

/// NF4 bytes of one weight: two codes per byte; an f32 per block, or a byte per block, an f32 per 256 blocks and the
/// offset (QLoRA, arXiv:2305.14314, section 3).
pub(crate) fn nf4_bytes(elements: u64, run: &Run) -> u64 {
    let blocks = elements.div_ceil(run.block_size.max(1));
    let scales = if run.double_quant { blocks + F32 * blocks.div_ceil(256) + F32 } else { F32 * blocks };
    elements.div_ceil(2) + scales
}

/// A product that ends at the largest number rather than beyond it: no machine has what either asks for.
fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

/// Parameters that the run trains.
fn trained(model: &ModelShape, run: &Run) -> u64 {
    if run.method == Method::Full {
        return model.parameters();
    }
    let adapted = |name: &str| run.targets.is_empty() || run.targets.iter().any(|t| t == name);
    let linears = model.linears();
    let sides = linears.iter().filter(|l| adapted(l.name)).map(|l| l.out + l.input).sum();
    product([model.layers, run.rank, sides])
}

/// The activations that one layer's graph keeps for its backward pass, per token: the inputs of its norms (2), the
/// normalised inputs (2), q, k and v before and after rotation, the attention's output, gate, up and their product. The
/// attention's weights are computed again, a block at a time.
fn graph_per_token(model: &ModelShape) -> u64 {
    let (q, kv) = (model.heads * model.head(), model.kv() * model.head());
    4 * model.hidden_size + 3 * q + 3 * kv + 3 * model.intermediate_size
}

/// The memory of a run.
pub fn plan(model: &ModelShape, run: &Run) -> Plan {
    let mut lines = Vec::new();
    let mut line = |name: &str, phase, bytes, formula: String| {
        if bytes > 0 {
            lines.push(Line { name: name.into(), bytes, phase, formula });
        }
    };
    let (linear, other) = (model.linear_elements(), model.other_elements());
    let dense = run.weight_bytes;
    if run.method == Method::Qlora {
        let layer: u64 = model.linears().iter().map(|l| nf4_bytes(l.elements(), run)).sum();
        let scales = if run.double_quant { "1/64 B scale + 4/16384 B nested" } else { "4/64 B scale" };
        let formula = format!("{linear} weights x (1/2 B code + {scales})");
        line("base weights, NF4", Phase::Always, model.layers * layer, formula);
    } else {
        line("base weights", Phase::Always, product([linear, dense]), format!("{linear} weights x {dense} B"));
    }
    line("embedding, head, norms", Phase::Always, product([other, dense]), format!("{other} weights x {dense} B"));
    let count = trained(model, run);
    if run.method != Method::Full {
        let formula =
            format!("{count} = r ({}) x (in + out), x 4 B, as they are and as they were a step before", run.rank);
        line("adapters", Phase::Always, product([2, count, F32]), formula);
    }
    line("gradients", Phase::Always, product([count, F32]), format!("{count} trained x 4 B"));
    match run.optimizer {
        Optimizer::AdamW => {
            line("optimizer", Phase::Always, product([2, count, F32]), format!("{count} trained x 2 moments x 4 B"));
        }
        Optimizer::AdamW8bit => {
            let bytes = product([2, count.saturating_add(product([F32, count.div_ceil(256)]))]);
            line("optimizer", Phase::Always, bytes, format!("{count} trained x 2 moments x (1 + 4/256) B"));
        }
    }
    let (tokens, bytes) = (run.batch.saturating_mul(run.length), run.activation_bytes);
    let graph = product([tokens, graph_per_token(model), bytes]);
    let inputs = product([model.layers, tokens, model.hidden_size, bytes]);
    let formula = format!("{} layers x {tokens} tokens x {} x {bytes} B", model.layers, model.hidden_size);
    if run.recompute {
        line("layer inputs", Phase::Layers, inputs, formula.clone());
        line("layer inputs", Phase::Loss, inputs, formula);
        let formula =
            format!("{tokens} tokens x {} x {bytes} B, and as much again for gradients", graph_per_token(model));
        line("one layer's graph", Phase::Layers, product([2, graph]), formula);
    } else {
        let formula = format!("{} layers x {tokens} tokens x {} x {bytes} B", model.layers, graph_per_token(model));
        line("all layers' graphs", Phase::Layers, product([model.layers, graph]), formula.clone());
        line("one layer's gradients", Phase::Layers, graph, formula.clone());
        line("all layers' graphs", Phase::Loss, product([model.layers, graph]), formula);
    }
    if run.method == Method::Qlora {
        let largest = model.linears().iter().map(|l| l.elements()).max().unwrap_or(0);
        line("decode scratch", Phase::Layers, largest * F32, format!("largest weight: {largest} x 4 B"));
    }
    let chunk = run.loss_chunk.min(tokens);
    let formula = format!("{chunk} tokens x {} vocabulary x 2 x 4 B", model.vocab_size);
    line("logits and their gradient", Phase::Loss, product([2, chunk, model.vocab_size, F32]), formula);
    Plan { lines }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::preset;

    fn peak(name: &str, run: &Run) -> u64 {
        plan(&preset(name).unwrap(), run).peak()
    }

    #[test]
    fn each_method_needs_less_than_the_one_before() {
        let of = |method| peak("llama-3.1-8b", &Run { method, ..Run::default() });
        assert!(of(Method::Qlora) < of(Method::Lora) && of(Method::Lora) < of(Method::Full));
    }

    #[test]
    fn seventy_billion_parameters_take_what_nf4_says() {
        let lines = plan(&preset("llama-3.1-70b").unwrap(), &Run::default()).lines;
        let weights = lines.iter().find(|line| line.name == "base weights, NF4").unwrap();
        let bits = 8.0 * weights.bytes as f64 / preset("llama-3.1-70b").unwrap().linear_elements() as f64;
        assert!((bits - 4.127).abs() < 1e-3, "{bits}");
    }

    #[test]
    fn double_quantization_saves_0373_bits() {
        let size = |double_quant| nf4_bytes(1 << 30, &Run { double_quant, ..Run::default() });
        assert!((8.0 * (size(false) - size(true)) as f64 / (1u64 << 30) as f64 - 0.373).abs() < 1e-3);
    }

    #[test]
    fn more_tokens_and_kept_graphs_take_more() {
        let run = Run::default();
        assert!(peak("llama-3.1-8b", &run) < peak("llama-3.1-8b", &Run { length: 4096, ..run.clone() }));
        assert!(peak("llama-3.1-8b", &run) < peak("llama-3.1-8b", &Run { recompute: false, ..run.clone() }));
        assert!(
            peak("llama-3.1-8b", &Run { optimizer: Optimizer::AdamW8bit, ..run.clone() }) < peak("llama-3.1-8b", &run)
        );
    }

    #[test]
    fn nonsense_needs_more_than_any_machine_has() {
        let run = Run { batch: u64::MAX, length: u64::MAX, rank: u64::MAX, ..Run::default() };
        assert_eq!(peak("llama-3.1-8b", &run), u64::MAX);
    }

    #[test]
    fn the_adapter_is_counted_as_peft_counts_it() {
        // r = 16 on all seven projections of Llama 3.1 8B: 41,943,040 trainable parameters.
        assert_eq!(trained(&preset("llama-3.1-8b").unwrap(), &Run::default()), 41_943_040);
    }
}
