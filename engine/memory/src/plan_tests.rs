use super::*;
use crate::{ComputeDtype, Device, bits_per_weight, preset};

fn peak(name: &str, run: &Run) -> u64 {
    plan(&preset(name).unwrap(), run).peak()
}

fn part(plan: &Plan, phase: Phase, component: Component) -> u64 {
    plan.lines.iter().filter(|l| l.phase == phase && l.component == component).map(|l| l.bytes).sum()
}

#[test]
fn each_method_needs_less_than_the_one_before() {
    let of = |method| peak("llama-3.1-8b", &Run { method, ..Run::default() });
    assert!(of(Method::Qlora) < of(Method::Lora) && of(Method::Lora) < of(Method::Full));
}

#[test]
fn nf4_takes_4127_thousandths_of_a_bit_and_4500_without_double_quantization() {
    // 4 + 8/64 + 32/(64 * 256), and 4 + 32/64 (QLoRA, arXiv:2305.14314, section 3).
    let bits = |double_quant| bits_per_weight(1 << 30, &Run { double_quant, ..Run::default() });
    assert!((bits(true) - (4.0 + 8.0 / 64.0 + 32.0 / (64.0 * 256.0))).abs() < 1e-4, "{}", bits(true));
    assert!((bits(false) - 4.5).abs() < 1e-4, "{}", bits(false));
    let run = Run::default();
    for name in ["llama-7b", "llama-13b", "codellama-34b", "llama-65b", "llama-2-70b"] {
        let model = preset(name).unwrap();
        let bytes = part(&plan(&model, &run), Phase::Always, Component::Base);
        let bits = 8.0 * bytes as f64 / model.linear_elements() as f64;
        assert!((bits - 4.127).abs() < 1.5e-3, "{name}: {bits}");
    }
}

#[test]
fn full_fine_tuning_takes_16_bytes_per_parameter() {
    // 2 weight, 2 gradient, 4 copy, 8 moments: 108, 208, 540, 1045 and 1104 GB before any activation.
    let run = Run { method: Method::Full, ..Run::default() };
    for (name, gigabytes) in
        [("llama-7b", 108), ("llama-13b", 208), ("codellama-34b", 540), ("llama-65b", 1045), ("llama-2-70b", 1104)]
    {
        let plan = plan(&preset(name).unwrap(), &run);
        let states = plan.persistent() + part(&plan, Phase::Layers, Component::Gradients);
        assert_eq!((states as f64 / 1e9).round(), f64::from(gigabytes), "{name}");
    }
}

#[test]
fn qlora_fits_where_its_paper_says() {
    // QLoRA, arXiv:2305.14314, abstract and section 2: 65B in 48 GB rather than more than 780, and 33B in 24 GB with the
    // optimizer paged. Adapters here are f32 and held twice, so rank 64 takes what the paper's 16-bit adapters do not.
    let run = Run { rank: 16, length: 512, optimizer_budget: Some(0), ..Run::default() };
    for (name, gigabytes) in [("llama-33b", 24), ("llama-65b", 48)] {
        let needed = peak(name, &run);
        assert!(needed < gigabytes * 1_000_000_000, "{name}: {needed}");
    }
    assert!(peak("llama-65b", &Run { method: Method::Full, optimizer_budget: None, ..run.clone() }) > 780_000_000_000);
    // In 16 bits the frozen weights alone do not fit.
    assert!(peak("llama-33b", &Run { method: Method::Lora, ..run.clone() }) > 65_000_000_000);
    assert!(peak("llama-65b", &Run { method: Method::Lora, ..run }) > 130_000_000_000);
}

#[test]
fn more_tokens_and_kept_graphs_take_more() {
    let run = Run::default();
    let base = peak("llama-3.1-8b", &run);
    assert!(base < peak("llama-3.1-8b", &Run { length: 4096, ..run.clone() }));
    assert!(base < peak("llama-3.1-8b", &Run { recompute: false, ..run.clone() }));
    assert!(peak("llama-3.1-8b", &Run { optimizer: Optimizer::AdamW8bit, ..run.clone() }) < base);
    // Of dropout no graph keeps anything; what was dropped of an input leaves its memory behind.
    let dropped = peak("llama-3.1-8b", &Run { dropout: true, ..run.clone() });
    assert!(dropped >= base && dropped - base < base / 25, "{dropped} and {base}");
    assert!(base < peak("llama-3.1-8b", &Run { accumulation: 2, ..run }));
}

#[test]
fn a_paged_optimizer_keeps_its_budget_on_the_device() {
    let model = preset("llama-3.1-8b").unwrap();
    let of = |optimizer_budget| plan(&model, &Run { optimizer_budget, ..Run::default() });
    let all = 41_943_040 * 8;
    let (whole, some, none) = (of(None), of(Some(100 << 20)), of(Some(0)));
    let state = |plan: &Plan| part(plan, Phase::Always, Component::Optimizer);
    assert_eq!((state(&whole), whole.paged_out), (all, 0));
    assert_eq!((state(&some), some.paged_out), (100 << 20, all - (100 << 20)));
    // What a step writes is there while it is written: the largest matrix is [14336, 16].
    assert_eq!((state(&none), none.paged_out), (14_336 * 16 * 8, all - 14_336 * 16 * 8));
}

#[test]
fn eight_bit_state_is_a_byte_and_a_scale_per_256() {
    let run = Run { optimizer: Optimizer::AdamW8bit, ..Run::default() };
    let plan = plan(&preset("llama-3.1-8b").unwrap(), &run);
    assert_eq!(part(&plan, Phase::Always, Component::Optimizer), 2 * (41_943_040 + 41_943_040 / 256 * 4));
}

#[test]
fn attention_of_few_scores_holds_three_tensors_of_them() {
    // ops/attention/composed.rs: weights, their gradient, and the product of both, each [rows, heads, longest, longest].
    // Of narrow heads, so that scores are the most.
    let llama = preset("llama-3.1-8b").unwrap();
    let model = ModelShape { hidden_size: 64, intermediate_size: 64, head_dim: Some(2), ..llama.clone() };
    let of = |sequences: &[u64]| {
        let run = Run { sequences: sequences.to_vec(), compute_dtype: ComputeDtype::F32, ..Run::default() };
        part(&plan(&model, &run), Phase::Layers, Component::Scores)
    };
    assert_eq!(of(&[256]), 3 * 32 * 256 * 256 * 4);
    // Padding to the longest.
    assert_eq!(of(&[128, 10]), 2 * 3 * 32 * 128 * 128 * 4);
    // What is more than 8 MiB kernels never hold.
    assert_eq!(of(&[257]), 0);
    let device = Device::Cpu { threads: 4, cache: 1 << 20 };
    let on_cpu = plan(&llama, &Run { length: 4096, device, ..Run::default() });
    assert_eq!(part(&on_cpu, Phase::Layers, Component::Scores), 0);
    let fused = plan(&llama, &Run { length: 4096, ..Run::default() });
    assert_eq!(part(&fused, Phase::Layers, Component::Scores), 0);
    assert_eq!(part(&on_cpu, Phase::Layers, Component::Kept), 0);
}

#[test]
fn products_in_bf16_decode_into_it() {
    let in_bf16 = Run::default();
    let run = Run { compute_dtype: ComputeDtype::F32, ..in_bf16.clone() };
    let model = preset("llama-3.1-8b").unwrap();
    let decoded = |run: &Run| part(&plan(&model, run), Phase::Layers, Component::Decoded);
    let largest = 4096 * 14336;
    assert_eq!((decoded(&run), decoded(&in_bf16)), (4 * largest, 2 * largest));
    // Half of it, the branch's part of the result, and half of what lies between products; what the products make for themselves is kept.
    let between = 2048 * 2 * kept_features(&model, &run)[1];
    let saved = plan(&model, &run).peak() - plan(&model, &in_bf16).peak();
    assert!(saved > 2 * largest + between && saved < 8 * largest + between, "{saved}, {between}");
}

#[test]
fn inputs_on_the_host_cost_the_device_one_of_them() {
    let model = preset("llama-3.1-8b").unwrap();
    let inputs = |inputs_on_host| {
        part(&plan(&model, &Run { inputs_on_host, ..Run::default() }), Phase::Layers, Component::Inputs)
    };
    let one = 2048 * 4096 * 4;
    assert_eq!((inputs(false), inputs(true)), (32 * one, one));
}

#[test]
fn logits_are_gone_before_a_graph_is_kept() {
    let model = preset("llama-3.1-8b").unwrap();
    let kept = |loss_chunk| {
        let run = Run { length: 4096, loss_chunk, ..Run::default() };
        part(&plan(&model, &run), Phase::Layers, Component::Kept)
    };
    assert!(kept(64) > 0);
    assert_eq!(kept(64), kept(512));
}

#[test]
fn the_parts_of_the_peak_are_the_peak() {
    let runs = [
        Run::default(),
        Run { method: Method::Full, length: 16, ..Run::default() },
        Run { accumulation: 2, recompute: false, ..Run::default() },
        Run { length: 1, rank: 1024, optimizer: Optimizer::AdamW8bit, ..Run::default() },
    ];
    for run in runs {
        let plan = plan(&preset("llama-3.2-1b").unwrap(), &run);
        let parts = plan.at_peak();
        assert_eq!(parts.iter().map(|part| part.bytes).sum::<u64>(), plan.peak(), "{run:?}");
        let mut components: Vec<_> = parts.iter().map(|part| part.component).collect();
        components.sort();
        components.dedup();
        assert_eq!(components.len(), parts.len(), "a component stands once");
    }
}

#[test]
fn nonsense_needs_more_than_any_machine_has() {
    let run = Run { batch: u64::MAX, length: u64::MAX, rank: u64::MAX, ..Run::default() };
    assert_eq!(peak("llama-3.1-8b", &run), u64::MAX);
    let device = Device::Cpu { threads: u64::MAX, cache: u64::MAX };
    assert_eq!(peak("llama-3.1-8b", &Run { device, ..run }), u64::MAX);
}

#[test]
fn the_adapter_is_counted_as_peft_counts_it() {
    // r = 16 on all seven projections of Llama 3.1 8B: 41,943,040 trainable parameters.
    assert_eq!(Run::default().trained(&preset("llama-3.1-8b").unwrap()), 41_943_040);
}

#[test]
fn json_has_the_keys_that_it_always_had() {
    let plan = plan(&preset("llama-3.1-8b").unwrap(), &Run::default());
    let json = serde_json::to_value(&plan).unwrap();
    for key in ["name", "bytes", "phase", "formula"] {
        assert!(json["lines"][0].get(key).is_some(), "{key}");
    }
    assert_eq!(serde_json::from_value::<Plan>(json).unwrap(), plan);
    // A run of an earlier version lacks the new keys.
    let run: Run = serde_json::from_str(r#"{"method": "lora", "rank": 8}"#).unwrap();
    assert_eq!(run, Run { method: Method::Lora, rank: 8, ..Run::default() });
}

#[test]
fn a_graph_keeps_what_its_formula_says() {
    let model = preset("llama-3.1-8b").unwrap();
    let all = [vec![], vec!["q_proj".to_string(), "v_proj".into()], vec!["down_proj".into(), "o_proj".into()]];
    for (targets, compute_dtype) in all
        .into_iter()
        .flat_map(|targets| [ComputeDtype::F32, ComputeDtype::Bf16].map(|dtype| (targets.clone(), dtype)))
    {
        // At its peak in the forward pass every layer but the lowest keeps all of it.
        let run = Run { targets, recompute: false, compute_dtype, length: 64, ..Run::default() };
        let graph = part(&plan(&model, &run), Phase::Loss, Component::Graph);
        let [wide, inner] = kept_features(&model, &run);
        let layer = 64 * (4 * wide + if compute_dtype == ComputeDtype::Bf16 { 2 } else { 4 } * inner);
        let rest = graph - (model.layers - 1) * layer;
        assert!(rest <= layer && rest > layer / 4, "{:?}, {compute_dtype:?}: {graph} of {layer}", run.targets);
    }
}
