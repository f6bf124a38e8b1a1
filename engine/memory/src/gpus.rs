//! GPUs as their vendors' datasheets state them, and how long a run takes on one.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::{ComputeDtype, Method, ModelShape, Run};

/// A GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Product name.
    pub name: String,
    /// Memory in GiB.
    pub gib: u64,
    /// Whether Halfbyte computes products in bf16 on it: on NVIDIA's from Ampere on.
    #[serde(default = "yes")]
    pub bf16: bool,
    /// Dense bf16 operations per second of its matrix units, in 10^12, without sparsity.
    #[serde(default)]
    pub tflops: Option<f64>,
    /// f32 operations per second of its cores, in 10^12.
    #[serde(default)]
    pub tflops_f32: Option<f64>,
    /// Bandwidth of its memory in 10^9 bytes per second.
    #[serde(default)]
    pub gigabytes_per_second: Option<f64>,
    /// What an hour of it costs, in whatever currency; there is no default.
    #[serde(default)]
    pub price_per_hour: Option<f64>,
}

fn yes() -> bool {
    true
}

/// Name, memory in GiB as the driver reports it.
type Row = (&'static str, u64);

/// Well-known GPUs by rising memory.
pub const GPUS: [Row; 14] = [
    ("RTX 4060", 8),
    ("RTX 3060", 12),
    ("T4", 16),
    ("RTX 4080", 16),
    ("RTX 3090", 24),
    ("RTX 4090", 24),
    ("L4", 24),
    ("RTX 5090", 32),
    ("A100 40GB", 40),
    ("L40S", 48),
    ("A100 80GB", 80),
    ("H100", 80),
    ("H200", 140),
    ("MI300X", 192),
];

/// Those of [`GPUS`] on which Halfbyte computes no products in bf16: one is older than Ampere, the other is reached through wgpu alone.
const WITHOUT_BF16: [&str; 2] = ["T4", "MI300X"];

/// Whether a GPU of [`GPUS`] computes products in this type.
pub fn computes(name: &str, dtype: ComputeDtype) -> bool {
    dtype == ComputeDtype::F32 || !WITHOUT_BF16.contains(&name)
}

/// The GPUs of [`GPUS`] that compute in this type and whose whole memory holds `peak` bytes.
pub fn fitting(peak: u64, dtype: ComputeDtype) -> impl Iterator<Item = &'static str> {
    GPUS.into_iter().filter(move |(name, gib)| gib << 30 >= peak && computes(name, dtype)).map(|(name, _)| name)
}

/// The GPU of this name, whatever the case and what stands between its words; a name of [`GPUS`] may be followed by its
/// memory, as in `h100-80gb`.
pub fn gpu(name: &str) -> Option<Row> {
    let letters = |name: &str| -> String { name.chars().filter(char::is_ascii_alphanumeric).collect() };
    let asked = letters(name).to_ascii_lowercase();
    GPUS.into_iter().find(|(known, gib)| {
        let known = letters(known).to_ascii_lowercase();
        let rest = asked.strip_prefix(&known).map(|rest| rest.strip_suffix("gb").unwrap_or(rest));
        rest.is_some_and(|rest| rest.is_empty() || rest.parse() == Ok(*gib))
    })
}

impl Gpu {
    /// Whether it computes in this type, and its whole memory holds `bytes`.
    pub fn holds(&self, bytes: u64, dtype: ComputeDtype) -> bool {
        let computes = self.bf16 || dtype == ComputeDtype::F32;
        computes && self.gib.saturating_mul(1 << 30) >= bytes
    }

    /// Seconds for a workload at this share of the GPU's rate; none where the rate is not known or the share is nonsense.
    pub fn seconds(&self, work: &Workload, utilisation: f64) -> Option<f64> {
        let rate = match work.dtype {
            ComputeDtype::Bf16 => self.tflops,
            ComputeDtype::F32 => self.tflops_f32,
        };
        let rate = rate.filter(|rate| *rate > 0.0 && utilisation > 0.0)? * 1e12 * utilisation;
        // Every optimizer micro-batch reads the weights at least once per pass, however few its tokens are.
        let read = self.gigabytes_per_second.filter(|rate| *rate > 0.0).map(|rate| work.bytes / (rate * 1e9));
        Some((work.operations / rate).max(read.unwrap_or(0.0)))
    }

    /// What a workload costs.
    pub fn price(&self, work: &Workload, utilisation: f64) -> Option<f64> {
        Some(self.seconds(work, utilisation)? / 3600.0 * self.price_per_hour?)
    }
}

/// What a run has to compute and to read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Floating-point operations.
    pub operations: f64,
    /// The type that they are done in.
    pub dtype: ComputeDtype,
    /// Bytes of weights that are read.
    pub bytes: f64,
}

impl Workload {
    /// A run over this many tokens.
    ///
    /// Two operations per parameter and token go forward, two give the gradient of the input of each frozen layer, and
    /// two that of each trained weight; with recomputation a second forward pass is made. So 4 per frozen parameter (6
    /// with recomputation), and 6 (8) per trained one (Kaplan et al., arXiv:2001.08361, section 2.1). Attention adds
    /// `2 * layers * length * heads * head_dim` per token and pass, causally; a backward pass counts twice. The
    /// embedding is looked up, not multiplied.
    pub fn of(model: &ModelShape, run: &Run, tokens: f64) -> Self {
        let layers = model.linear_elements() as f64;
        let head = (model.vocab_size * model.hidden_size) as f64;
        let forward = if run.recompute { 2.0 } else { 1.0 };
        let per_layer_parameter = 2.0 * (forward + 1.0);
        let trained = run.trained(model) as f64;
        let (frozen, trained) = match run.method {
            Method::Full => (0.0, layers + head),
            Method::Lora | Method::Qlora => (layers, trained),
        };
        let length = run.longest() as f64;
        let attention = 2.0 * (model.layers * model.heads * model.head()) as f64 * length * (forward + 2.0);
        // The head is gone through once each way.
        let of_head = if run.method == Method::Full { 0.0 } else { 4.0 * head };
        let per_token = per_layer_parameter * frozen + (per_layer_parameter + 2.0) * trained + of_head + attention;
        let passes = tokens / (run.tokens() as f64).max(1.0) * (forward + 1.0);
        let weights = crate::plan(model, run).lines.into_iter();
        let weights = weights.filter(|l| l.phase == crate::Phase::Always && l.component == crate::Component::Base);
        let bytes = passes * weights.map(|l| l.bytes as f64).sum::<f64>();
        Self { operations: per_token * tokens, dtype: run.compute_dtype, bytes }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::preset;

    #[test]
    fn operations_are_those_of_the_rule_of_six() {
        // Full training without recomputation: 6 operations per parameter and token, and attention, which is small here.
        let model = preset("llama-2-7b").unwrap();
        let run = Run { method: Method::Full, recompute: false, length: 512, ..Run::default() };
        let operations = Workload::of(&model, &run, 1e6).operations;
        let rule = 6.0 * (model.parameters() - model.vocab_size * model.hidden_size) as f64 * 1e6;
        assert!((1.0..1.03).contains(&(operations / rule)), "{}", operations / rule);
        // Frozen weights with recomputation: 6 again.
        let frozen = Run { method: Method::Qlora, recompute: true, length: 512, ..Run::default() };
        let ratio = Workload::of(&model, &frozen, 1e6).operations / rule;
        assert!((0.97..1.06).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_gpu_is_found_as_people_write_it() {
        let cases = [
            ("h100-80gb", "H100"),
            ("H100", "H100"),
            ("a100 80GB", "A100 80GB"),
            ("A100-40GB", "A100 40GB"),
            ("rtx4090", "RTX 4090"),
            ("RTX_4090_24GB", "RTX 4090"),
            ("l40s", "L40S"),
            ("l4", "L4"),
        ];
        for (asked, found) in cases {
            assert_eq!(gpu(asked).map(|(name, _)| name), Some(found), "{asked}");
        }
        for unknown in ["h100-40gb", "l400", "", "a100"] {
            assert_eq!(gpu(unknown), None, "{unknown}");
        }
    }

    fn some_gpu() -> Gpu {
        Gpu {
            name: "G".into(),
            gib: 80,
            bf16: true,
            tflops: Some(100.0),
            tflops_f32: Some(10.0),
            gigabytes_per_second: Some(1000.0),
            price_per_hour: Some(3.6),
        }
    }

    #[test]
    fn time_is_the_larger_of_computing_and_reading() {
        let gpu = some_gpu();
        let work = Workload { operations: 4e15, dtype: ComputeDtype::Bf16, bytes: 1e12 };
        assert_eq!(gpu.seconds(&work, 0.4), Some(100.0));
        assert!((gpu.price(&work, 0.4).unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(gpu.seconds(&Workload { bytes: 1e15, ..work }, 0.4), Some(1000.0));
        assert_eq!(gpu.seconds(&Workload { dtype: ComputeDtype::F32, ..work }, 0.4), Some(1000.0));
        assert_eq!(Gpu { tflops: None, ..gpu.clone() }.seconds(&work, 0.4), None);
        assert_eq!(Gpu { price_per_hour: None, ..gpu.clone() }.price(&work, 0.4), None);
    }

    #[test]
    fn a_gpu_holds_what_it_computes() {
        let (f32, bf16) = (ComputeDtype::F32, ComputeDtype::Bf16);
        let gpu = some_gpu();
        assert!(gpu.holds(80 << 30, bf16) && !gpu.holds((80 << 30) + 1, bf16));
        let old = Gpu { bf16: false, ..gpu };
        assert!(old.holds(80 << 30, f32) && !old.holds(1, bf16));
        assert!(fitting(16 << 30, f32).any(|name| name == "T4"));
        assert_eq!(fitting(13 << 30, bf16).next(), Some("RTX 4080"));
    }
}
