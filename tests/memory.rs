//! The memory plan against the allocator: what it says of random small models, and what loading, training, evaluating and
//! saving them take at most.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use halfbyte::backends::Cpu;
use halfbyte::data::{Dataset, Example};
use halfbyte::files::save_adapter;
use halfbyte::lora::{LoraConfig, Targets, attach};
use halfbyte::model::{Base, BaseWeights, ModelConfig, load, random, save_dense};
use halfbyte::ops::FloatDType;
use halfbyte::train::{Recipe, Recompute, Trainer, TrainerConfig, parse_recipe, shape_of};
use halfbyte_memory::{Device, Method, ModelShape, Phase, Plan, Run, plan};
use halfbyte_tests::memory::{config, shape as model};
use peak_alloc::PeakAlloc;
use pollster::block_on;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The allocator counts every thread of the process: one measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// How far a peak may be from the plan: closer where it is large, because what the walk leaves out (names, graph nodes) and what
/// the products' packing differs in from processor to processor weighs less there.
fn tolerance(measured: u64) -> f64 {
    if measured < 32 << 20 { 0.05 } else { 0.03 }
}

/// What was measured.
#[derive(Debug, Default)]
struct Measured {
    load: usize,
    held: usize,
    step: usize,
    evaluate: usize,
    save: usize,
}

/// A model and a run of it.
struct Case {
    name: String,
    model: ModelShape,
    run: Run,
}

/// A run on one thread of the CPU in f32, as the engine computes today.
fn run() -> Run {
    let device = Device::Cpu { threads: 1, cache: second_level_cache() };
    Run { weight_bytes: 4, rank: 8, length: 256, loss_chunk: 256, device, ..Run::default() }
}

/// Bytes of a core's second-level cache as `gemm` asks for it.
fn second_level_cache() -> u64 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").unwrap_or_default();
    text.trim().trim_end_matches('K').parse::<u64>().map_or(512 << 10, |kib| kib << 10)
}

/// A random model of this shape as a folder.
fn write(folder: &Path, shape: &ModelShape) {
    let (path, json) = (folder.join("config.json"), config(shape).into_bytes());
    std::fs::write(&path, &json).expect("a folder that can be written");
    let model = random::<Cpu>(ModelConfig::parse(&path, &json).expect("a model"), 1, &Default::default());
    block_on(save_dense(&model.expect("a model"), &folder.join("model.safetensors"))).expect("a saved model");
}

/// Bytes that exist beyond `before`, and a new beginning for the peak.
fn most(before: usize) -> usize {
    let most = ALLOCATOR.peak_usage().saturating_sub(before);
    ALLOCATOR.reset_peak_usage();
    most
}

/// Loads, trains three steps, evaluates and saves.
fn go(folder: &Path, case: &Case) -> Measured {
    let (shape, run) = (&case.model, &case.run);
    let lengths = match run.sequences.is_empty() {
        true => vec![run.length; run.batch as usize],
        false => run.sequences.clone(),
    };
    let example = |(row, length): (usize, &u64)| {
        let tokens = (0..*length as usize).map(|i| ((i * 7 + row * 31) as u64 % shape.vocab_size) as u32).collect();
        Example { tokens, trained: vec![true; *length as usize] }
    };
    let dataset = |times: usize| {
        let examples = (0..times).flat_map(|_| lengths.iter().enumerate().map(example)).collect();
        Dataset { examples, ..Dataset::default() }
    };
    // Every step sees all there is, so that a shuffle changes no length of it.
    let (train, test) = (dataset(run.accumulation as usize), dataset(1));
    let base = match run.method {
        Method::Qlora => BaseWeights::Nf4 { block_size: run.block_size as usize, double_quant: run.double_quant },
        _ => BaseWeights::Full,
    };
    let tables = Some(if run.weight_bytes == 2 { FloatDType::BF16 } else { FloatDType::F32 });
    let base = Base { tables, ..base.into() };
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let mut model = load::<Cpu>(folder, base, &Default::default(), &mut |_| {}).expect("a model");
    let load = most(before);
    let target_modules = match run.targets.is_empty() {
        true => Targets::Pattern("all-linear".into()),
        false => Targets::Names(run.targets.clone()),
    };
    let lora = LoraConfig {
        r: run.rank as usize,
        target_modules,
        lora_dropout: if run.dropout { 0.1 } else { 0.0 },
        use_dora: run.dora,
        modules_to_save: run.modules_to_save.clone(),
        ..LoraConfig::default()
    };
    attach(&mut model, &lora, 1).expect("adapters");
    let config = TrainerConfig {
        epochs: 3,
        batch_size: lengths.len(),
        gradient_accumulation_steps: run.accumulation as usize,
        recompute: if run.recompute { Recompute::Layers } else { Recompute::None },
        loss_chunk: run.loss_chunk as usize,
        ..TrainerConfig::default()
    };
    let mut trainer = Trainer::new(model, train, config, 1).expect("a trainer");
    // The first steps allocate what stays: the moments, the adapter of a step before, the kernels' scratch.
    for _ in 0..2 {
        block_on(trainer.step()).expect("a step");
    }
    let held = ALLOCATOR.current_usage() - before;
    most(before);
    block_on(trainer.step()).expect("a step").expect("there is a third step");
    let step = most(before);
    block_on(trainer.evaluate(&test)).expect("a loss");
    let evaluate = most(before);
    let adapter = folder.join("adapter");
    block_on(save_adapter(trainer.model_mut(), &lora, "base", &adapter)).expect("a saved adapter");
    Measured { load, held, step, evaluate, save: most(before) }
}

/// Measures on a pool of its own, whose threads take their scratch with them when it ends.
fn measure(case: &Case) -> Measured {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), &case.model);
    let Device::Cpu { threads, .. } = case.run.device else { panic!("the CPU is measured") };
    let before = ALLOCATOR.current_usage();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build().expect("a pool");
    let measured = pool.install(|| go(folder.path(), case));
    drop(pool);
    let started = Instant::now();
    while ALLOCATOR.current_usage() > before + (256 << 10) && started.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(2));
    }
    measured
}

/// The largest difference of a case, as a share of what was measured.
fn compare(case: &Case) -> Vec<(&'static str, u64, u64, f64)> {
    let planned: Plan = plan(&case.model, &case.run);
    let measured = measure(case);
    let pairs = [
        ("load", planned.peak_of(Phase::Load), measured.load),
        ("held", planned.persistent(), measured.held),
        ("step", planned.peak(), measured.step),
        ("evaluate", planned.peak_of(Phase::Evaluate), measured.evaluate),
        ("save", planned.peak_of(Phase::Save), measured.save),
    ];
    pairs.map(|(what, plan, found)| (what, plan, found as u64, plan as f64 / found as f64 - 1.0)).to_vec()
}

fn check(cases: &[Case]) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut wrong = Vec::new();
    println!("| run | stage | plan, MiB | measured, MiB | difference |\n|---|---|---|---|---|");
    for case in cases {
        for (what, planned, found, difference) in compare(case) {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let line = format!(
                "| {} | {what} | {:.2} | {:.2} | {:+.1}% |",
                case.name,
                mib(planned),
                mib(found),
                100.0 * difference
            );
            println!("{line}");
            if difference.abs() > tolerance(found) {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "too far from the plan:\n{}", wrong.join("\n"));
}

#[test]
fn shapes_of_all_kinds() {
    let small = || model(2048, 256, 768, 4, [4, 2, 64]);
    let case = |name: &str, model, run| Case { name: name.into(), model, run };
    check(&[
        case("4 layers of 256, 1 x 256", small(), run()),
        case("batch 4", small(), Run { batch: 4, ..run() }),
        case("graphs kept", small(), Run { batch: 4, recompute: false, ..run() }),
        case("12 layers", model(2048, 256, 768, 12, [4, 2, 64]), Run { batch: 2, ..run() }),
        case("12 layers, graphs kept", model(2048, 256, 768, 12, [4, 2, 64]), Run { recompute: false, ..run() }),
        case("512 wide, rank 64", model(1024, 512, 1408, 3, [8, 8, 64]), Run { rank: 64, batch: 2, ..run() }),
        case("scales in f32", model(1024, 512, 1408, 3, [8, 8, 64]), Run { double_quant: false, ..run() }),
        case("blocks of 128", model(1024, 512, 1408, 3, [8, 8, 64]), Run { block_size: 128, ..run() }),
        case("f32 base", model(1024, 512, 1408, 3, [8, 8, 64]), Run { method: Method::Lora, ..run() }),
        case("2 x 1024 tokens", small(), Run { batch: 2, length: 1024, ..run() }),
        case("chunk of 64", model(16_384, 256, 768, 2, [4, 2, 64]), Run { batch: 2, loss_chunk: 64, ..run() }),
        case("chunk of 512", model(16_384, 256, 768, 2, [4, 2, 64]), Run { batch: 2, loss_chunk: 512, ..run() }),
        case("differing lengths", small(), Run { sequences: vec![700, 30, 256, 5], ..run() }),
        case("accumulation", small(), Run { accumulation: 3, rank: 64, ..run() }),
        case("dropout", small(), Run { dropout: true, batch: 2, ..run() }),
        case("two targets", small(), Run { targets: vec!["q_proj".into(), "v_proj".into()], batch: 2, ..run() }),
        case(
            "two targets, graphs kept",
            small(),
            Run { targets: vec!["q_proj".into(), "v_proj".into()], batch: 2, recompute: false, ..run() },
        ),
        case("mlp alone", small(), Run { targets: vec!["down_proj".into()], batch: 2, ..run() }),
    ]);
}

#[test]
fn dora_and_modules_to_save() {
    let small = || model(2048, 256, 768, 4, [4, 2, 64]);
    let untied = || ModelShape { tied: false, ..small() };
    let large = || ModelShape { vocab_size: 8192, ..untied() };
    let case = |name: &str, model, run| Case { name: name.into(), model, run };
    let saved = |names: &[&str], run| Run { modules_to_save: names.iter().map(|n| n.to_string()).collect(), ..run };
    check(&[
        case("DoRA", small(), Run { dora: true, batch: 2, ..run() }),
        case("DoRA, graphs kept", small(), Run { dora: true, batch: 2, recompute: false, ..run() }),
        case("DoRA, dropout", small(), Run { dora: true, dropout: true, batch: 2, ..run() }),
        case("DoRA, rank 64", small(), Run { dora: true, rank: 64, ..run() }),
        case("head", untied(), saved(&["lm_head"], Run { batch: 2, ..run() })),
        case("head, several chunks", untied(), saved(&["lm_head"], Run { batch: 2, loss_chunk: 64, ..run() })),
        case("large head", large(), saved(&["lm_head"], run())),
        case("large head, several chunks", large(), saved(&["lm_head"], Run { loss_chunk: 64, ..run() })),
        case("head that was tied", small(), saved(&["lm_head"], Run { batch: 2, ..run() })),
        case("embedding", untied(), saved(&["embed_tokens"], Run { batch: 2, ..run() })),
        case("both, tied", small(), saved(&["embed_tokens", "lm_head"], Run { batch: 2, ..run() })),
        case("both, accumulation", untied(), saved(&["embed_tokens", "lm_head"], Run { accumulation: 2, ..run() })),
    ]);
}

#[test]
fn tables_in_16_bits() {
    let (small, wordy) = (model(2048, 256, 768, 4, [4, 2, 64]), model(16_384, 256, 768, 2, [4, 2, 64]));
    let untied = ModelShape { tied: false, ..wordy.clone() };
    let run = || Run { weight_bytes: 2, batch: 2, ..run() };
    let head = || vec!["lm_head".to_string()];
    let case = |name: &str, model: &ModelShape, run| Case { name: name.into(), model: model.clone(), run };
    check(&[
        case("bf16", &small, run()),
        case("bf16, chunk of 512", &wordy, Run { loss_chunk: 512, ..run() }),
        case("bf16, chunk of 32", &wordy, Run { loss_chunk: 32, ..run() }),
        case("bf16, untied, chunk of 64", &untied, Run { loss_chunk: 64, ..run() }),
        case("bf16, head that is trained", &untied, Run { modules_to_save: head(), ..run() }),
    ]);
}

/// By whichever key a configuration says what its files hold floats in, the engine holds embedding and head so, and the plan counts them so.
#[test]
fn tables_are_planned_as_they_are_held() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), &model(256, 64, 64, 1, [1, 1, 64]));
    let path = folder.path().join("config.json");
    let plain: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("a configuration");
    for (said, bytes) in [
        (json!({}), 4),
        (json!({"dtype": "bfloat16"}), 2),
        (json!({"torch_dtype": "float16"}), 2),
        (json!({"torch_dtype": "float32"}), 4),
        (json!({"dtype": null, "torch_dtype": "bfloat16"}), 2),
        (json!({"dtype": "float32", "torch_dtype": "bfloat16"}), 4),
    ] {
        let mut config = plain.clone();
        for (key, value) in said.as_object().expect("keys") {
            config[key] = value.clone();
        }
        std::fs::write(&path, config.to_string()).expect("a folder that can be written");
        let shape = shape_of(&path, config.to_string().as_bytes()).expect("a shape");
        for (recipe, bytes) in [("", bytes), ("[quantization]\nload_in_4bit = false", 4)] {
            let recipe: Recipe = parse_recipe(&path, recipe, &[]).expect("a recipe");
            let model = load::<Cpu>(folder.path(), recipe.quantization.base(), &Default::default(), &mut |_| {});
            let held = model.expect("a model").head.weight.dtype().size() as u64;
            let planned = recipe.memory(&shape, Device::Gpu).weight_bytes;
            assert_eq!((held, planned), (bytes, bytes), "{said} {:?}", recipe.quantization);
        }
    }
}

#[test]
fn two_threads() {
    let device = Device::Cpu { threads: 2, cache: second_level_cache() };
    let shape = || model(2048, 512, 1408, 4, [8, 4, 64]);
    let case = |name: &str, run| Case { name: name.into(), model: shape(), run };
    check(&[
        case("two threads", Run { device, batch: 4, ..run() }),
        case("two threads, 1024 tokens", Run { device, length: 1024, ..run() }),
    ]);
}

#[test]
fn random_shapes() {
    let mut random = ChaCha8Rng::seed_from_u64(12);
    let mut pick = |from: &[u64]| from[random.random_range(0..from.len())];
    let cases: Vec<Case> = (0..12)
        .map(|_| {
            let (kv, head) = (pick(&[1, 2, 4]), pick(&[32, 64]));
            let hidden = 64 * pick(&[2, 3, 4, 6, 8]);
            let mut shape = model(
                256 * pick(&[2, 5, 8, 32]),
                hidden,
                64 * pick(&[5, 9, 16, 24]),
                pick(&[1, 2, 5, 9]),
                [kv * pick(&[1, 2, 3]), kv, head],
            );
            shape.tied = pick(&[0, 1]) == 1;
            let run = Run {
                rank: pick(&[2, 8, 33]),
                batch: pick(&[1, 2, 3, 5]),
                length: pick(&[64, 200, 333, 512]),
                recompute: pick(&[0, 1]) == 1,
                loss_chunk: pick(&[32, 128, 512]),
                double_quant: pick(&[0, 1]) == 1,
                ..run()
            };
            let Run { batch, length, rank, loss_chunk, .. } = run;
            let ModelShape { layers, hidden_size, intermediate_size, vocab_size, heads, .. } = shape;
            let name = format!(
                "{layers} x [{hidden_size}, {intermediate_size}], {heads}/{kv} heads of {head}, {vocab_size} tokens{}; \
                 {batch} x {length}, r {rank}, chunk {loss_chunk}{}{}",
                if shape.tied { ", tied" } else { "" },
                if run.recompute { "" } else { ", graphs kept" },
                if run.double_quant { "" } else { ", scales in f32" },
            );
            Case { name, model: shape, run }
        })
        .collect();
    check(&cases);
}
