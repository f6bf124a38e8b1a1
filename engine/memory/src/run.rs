//! What a run is, as far as its memory goes.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::weights::F32;
use crate::{LinearShape, ModelShape};

/// How the model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Every parameter, in mixed precision: beside the 16-bit weights there are 16-bit gradients, an f32 copy of the
    /// weights and two f32 moments, 16 bytes per parameter (ZeRO, arXiv:1910.02054, section 3.1).
    Full,
    /// Adapters on a dense base.
    Lora,
    /// Adapters on a base in NF4.
    Qlora,
}

impl Method {
    /// Bytes of a base weight that is not in 4 bits, unless a run says otherwise: beside weights in 4 bits those of files in 16 bits, else
    /// those of what is computed in.
    pub fn weight_bytes(self, compute: ComputeDtype) -> u64 {
        match self {
            Self::Qlora => 2,
            Self::Full | Self::Lora => compute.bytes(),
        }
    }
}

/// What a run on a GPU computes in (`quantization.compute_dtype` of a recipe). A CPU computes in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// f32 throughout. Also f16 through wgpu, whose gradients go through products in f32.
    F32,
    /// bf16, on CUDA: products take their operands so, activations between them are held so, and hidden states stay in f32. So is QLoRA
    /// trained; other methods, which Halfbyte trains in f32, are planned alike for comparison.
    Bf16,
}

impl ComputeDtype {
    /// Bytes of a number in it.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => F32,
            Self::Bf16 => 2,
        }
    }
}

/// The optimizer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Optimizer {
    /// Two f32 per trained parameter.
    AdamW,
    /// Two bytes per trained parameter and one f32 per 256 of each (arXiv:2110.02861).
    AdamW8bit,
}

/// Where the run's tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A GPU: a weight may be decoded whole for a product; kernels compute attention without its scores in memory, unless those are few.
    Gpu,
    /// The CPU: attention goes block by block, weights are decoded into a scratch that is kept.
    Cpu {
        /// Threads, each with a scratch of its own.
        threads: u64,
        /// Bytes of a core's second-level cache: the size of the buffer that the `gemm` crate keeps per thread.
        cache: u64,
    },
}

/// What of a model is on a device beside its layers, where several devices share the layers out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Part {
    /// The embedding.
    pub embedding: bool,
    /// The norm behind the layers, the head and the loss.
    pub head: bool,
    /// Micro-batches that have gone up through the device's layers before the first comes down again.
    pub in_flight: u64,
}

impl Default for Part {
    /// All of a model.
    fn default() -> Self {
        Self { embedding: true, head: true, in_flight: 1 }
    }
}

/// A run. What is not said is as in QLoRA of rank 16 on CUDA in bf16, embedding and head held in it, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// How the model is trained.
    pub method: Method,
    /// Rank of the adapters.
    pub rank: u64,
    /// Names of the adapted linear layers; empty for all seven.
    pub targets: Vec<String>,
    /// Elements of the adapters' inputs are dropped.
    pub dropout: bool,
    /// The adapters train the lengths of the weights' rows on their own (DoRA, arXiv:2402.09353).
    pub dora: bool,
    /// Tables that are trained in full beside the adapters, by the end of their paths: `embed_tokens`, `lm_head`.
    pub modules_to_save: Vec<String>,
    /// Sequences of a micro-batch.
    pub batch: u64,
    /// Tokens of a sequence.
    pub length: u64,
    /// Lengths of a micro-batch's sequences where they differ, as in packed rows; empty for `batch` times `length`.
    pub sequences: Vec<u64>,
    /// Micro-batches of an optimizer step.
    pub accumulation: u64,
    /// Layers are computed again in the backward pass.
    pub recompute: bool,
    /// Layers that are computed again have their inputs in host memory until then. On the CPU it is the same memory.
    pub inputs_on_host: bool,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Bytes of the optimizer's state that may stay on the device, the rest being paged out to host memory; none where it is
    /// not paged.
    pub optimizer_budget: Option<u64>,
    /// Bytes of a dense base weight: 2 for bf16 and f16, 4 for f32.
    pub weight_bytes: u64,
    /// Bytes of a weight in the model's files.
    pub file_bytes: u64,
    /// What a GPU computes in.
    pub compute_dtype: ComputeDtype,
    /// Elements that share an NF4 scale.
    pub block_size: u64,
    /// Scales are quantized again.
    pub double_quant: bool,
    /// Tokens whose logits exist at a time.
    pub loss_chunk: u64,
    /// Where it runs.
    pub device: Device,
    /// What of the model is there.
    pub part: Part,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            method: Method::Qlora,
            rank: 16,
            targets: vec![],
            dropout: false,
            dora: false,
            modules_to_save: vec![],
            batch: 1,
            length: 2048,
            sequences: vec![],
            accumulation: 1,
            recompute: true,
            inputs_on_host: false,
            optimizer: Optimizer::AdamW,
            optimizer_budget: None,
            weight_bytes: 2,
            file_bytes: 2,
            compute_dtype: ComputeDtype::Bf16,
            block_size: 64,
            double_quant: true,
            loss_chunk: 512,
            device: Device::Gpu,
            part: Part::default(),
        }
    }
}

/// A product that ends at the largest number rather than beyond it: no machine has what either asks for.
pub(crate) fn product<const N: usize>(factors: [u64; N]) -> u64 {
    if factors.contains(&0) {
        return 0;
    }
    factors.into_iter().fold(1, u64::saturating_mul)
}

impl Run {
    /// Tokens of a micro-batch.
    pub fn tokens(&self) -> u64 {
        match self.sequences.as_slice() {
            [] => product([self.batch, self.length]),
            lengths => lengths.iter().fold(0, |sum, length| sum.saturating_add(*length)),
        }
    }

    /// Sequences of a micro-batch.
    pub(crate) fn rows(&self) -> u64 {
        if self.sequences.is_empty() { self.batch } else { self.sequences.len() as u64 }
    }

    /// Tokens of the longest sequence.
    pub(crate) fn longest(&self) -> u64 {
        self.sequences.iter().copied().max().unwrap_or(self.length)
    }

    /// Whether products take their operands in bf16 and take in what a branch adds, and what lies between them is held so.
    pub(crate) fn in_bf16(&self) -> bool {
        self.compute_dtype == ComputeDtype::Bf16 && self.device == Device::Gpu
    }

    /// Rows whose logits exist at a time: every token but the first of each sequence may be predicted.
    pub(crate) fn chunk(&self) -> u64 {
        self.loss_chunk.min(self.tokens().saturating_sub(self.rows()))
    }

    /// Whether a linear layer has an adapter.
    pub(crate) fn adapts(&self, name: &str) -> bool {
        let stored_as = |target: &String| {
            target == name
                || matches!(
                    (target.as_str(), name),
                    ("qkv_proj", "q_proj" | "k_proj" | "v_proj") | ("gate_up_proj", "gate_proj" | "up_proj")
                )
        };
        self.method != Method::Full && (self.targets.is_empty() || self.targets.iter().any(stored_as))
    }

    /// Whether a table, by its path without `.weight`, is trained in full beside the adapters.
    fn saves(&self, path: &str) -> bool {
        let named = |name: &String| !name.is_empty() && path.ends_with(name.as_str());
        self.method != Method::Full && self.modules_to_save.iter().any(named)
    }

    /// Whether the embedding is trained beside the adapters.
    pub(crate) fn saves_embedding(&self) -> bool {
        self.part.embedding && self.saves("model.embed_tokens")
    }

    /// Whether the head is.
    pub(crate) fn saves_head(&self) -> bool {
        self.part.head && self.saves("lm_head")
    }

    /// Elements of each table that is trained beside the adapters.
    pub(crate) fn saved(&self, model: &ModelShape) -> impl Iterator<Item = u64> {
        let table = product([model.vocab_size, model.hidden_size]);
        [self.saves_embedding(), self.saves_head()].into_iter().filter(|saved| *saved).map(move |_| table)
    }

    /// Parameters that the run trains.
    pub fn trained(&self, model: &ModelShape) -> u64 {
        if self.method == Method::Full {
            return model.parameters();
        }
        let layer = self.adapted(model).flatten().fold(0, u64::saturating_add);
        self.saved(model).fold(product([model.layers, layer]), u64::saturating_add)
    }

    /// Elements of what every adapted linear layer of a decoder layer trains: [`adapter`](Self::adapter).
    pub(crate) fn adapted(&self, model: &ModelShape) -> impl Iterator<Item = [u64; 3]> {
        model.linears().into_iter().filter(|linear| self.adapts(linear.name)).map(|linear| self.adapter(&linear))
    }

    /// Elements of A, of B, and of DoRA's lengths. Linear layers that are stored as one have one A, which is the first's.
    pub(crate) fn adapter(&self, linear: &LinearShape) -> [u64; 3] {
        let a = if linear.fused { 0 } else { product([self.rank, linear.input]) };
        [a, product([self.rank, linear.out]), if self.dora { linear.out } else { 0 }]
    }
}
