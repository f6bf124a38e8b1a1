//! The memory plan against what a GPU's allocator takes.

use halfbyte::data::{Dataset, Example};
use halfbyte::lora::{LoraConfig, attach};
use halfbyte::model::{Base, BaseWeights, DeviceMap, ModelConfig, Transformer, synthetic};
use halfbyte::ops::{ComputeDtype, FloatDType, Ops};
use halfbyte::train::{Recompute, Trainer, TrainerConfig};
use halfbyte_memory::{Device, ModelShape, Run, plan};
use pollster::block_on;
use serde_json::json;

/// Bytes of a head that are widened at a time.
const SCRATCH: u64 = 256 << 20;

/// A tied Llama's shape; `heads` are those of queries, of keys, and the width of one.
pub fn shape(vocab_size: u64, hidden_size: u64, intermediate_size: u64, layers: u64, heads: [u64; 3]) -> ModelShape {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size,
        "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": heads[2],
        "tie_word_embeddings": true,
    });
    serde_json::from_value(config).expect("a configuration")
}

/// The `config.json` of a Llama of a shape.
pub fn config(shape: &ModelShape) -> String {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv(),
        "head_dim": shape.head(), "rms_norm_eps": 1e-5, "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 4096, "attention_bias": shape.attention_bias,
    });
    config.to_string()
}

/// A model of made-up weights, with adapters.
fn model<B: Ops>(shape: &ModelShape, run: &Run, compute: ComputeDtype, device: &B::Device) -> Transformer<B> {
    let config = ModelConfig::parse("config.json", config(shape).as_bytes()).expect("a configuration");
    let tables = Some(if run.weight_bytes == 2 { FloatDType::BF16 } else { FloatDType::F32 });
    let base = Base { tables, compute, ..BaseWeights::Nf4 { block_size: 64, double_quant: true }.into() };
    let map = DeviceMap::Whole(device.clone());
    let mut model = synthetic::<B>(config, base, 1, &map, &mut |_| {}).expect("a model");
    let lora_dropout = if run.dropout { 0.1 } else { 0.0 };
    let lora = LoraConfig { r: run.rank as usize, use_dora: run.dora, lora_dropout, ..LoraConfig::default() };
    attach(&mut model, &lora, 1).expect("adapters");
    model
}

/// An example of so many tokens.
fn example(length: usize, vocab_size: u64) -> Example {
    let tokens = (0..length).map(|i| (i as u64 * 7 % vocab_size) as u32).collect();
    Example { tokens, trained: vec![true; length] }
}

/// Trains on rows of these lengths, each a micro-batch, all of them in a step. Gives what the allocator had at most, and what of it was free
/// before the step, in a page that something small lies in: the plan leaves it out.
fn taken<B: Ops>(
    shape: &ModelShape,
    run: &Run,
    lengths: &[usize],
    compute: ComputeDtype,
    device: &B::Device,
) -> [u64; 2] {
    let model = model::<B>(shape, run, compute, device);
    let examples = lengths.iter().map(|length| example(*length, shape.vocab_size)).collect();
    let config = TrainerConfig {
        epochs: 2,
        batch_size: 1,
        gradient_accumulation_steps: run.accumulation as usize,
        recompute: if run.recompute { Recompute::Layers } else { Recompute::None },
        loss_chunk: run.loss_chunk as usize,
        ..TrainerConfig::default()
    };
    let mut trainer = Trainer::new(model, Dataset { examples, ..Dataset::default() }, config, 1).expect("a trainer");
    // The first step makes what stays, the moments and the adapters of a step before, and finds out which kernels are fastest.
    block_on(trainer.step()).expect("a step");
    B::release_memory(device);
    B::forget_most_reserved(device);
    let reserved = || B::most_reserved(device).expect("the allocator counts");
    let spare = reserved() - B::bytes_in_use(device).expect("the allocator counts");
    block_on(trainer.step()).expect("a step").expect("there is a second");
    [reserved(), spare]
}

fn run(length: u64, compute: ComputeDtype) -> Run {
    Run {
        length,
        weight_bytes: 4,
        compute_dtype: match compute {
            ComputeDtype::Bf16 => halfbyte_memory::ComputeDtype::Bf16,
            _ => halfbyte_memory::ComputeDtype::F32,
        },
        device: Device::Gpu,
        ..Run::default()
    }
}

/// Of a shape that has several times as many activations as weights, so that it is they that count. Its widths are multiples of 128, as
/// published models' are: of others Burn's rows lie further apart on CUDA, which the plan leaves out.
fn mostly_activations(vocab_size: u64) -> ModelShape {
    ModelShape { tied: false, ..shape(vocab_size, 128, 384, 2, [4, 2, 32]) }
}

/// Training peaks at what the plan says, within 5%: with layers computed again and with graphs that are kept, where the logits are the
/// most and where they are not.
pub fn steps_take_what_the_plan_says<B: Ops>(device: &B::Device, compute: ComputeDtype) {
    let run = |length| run(length, compute);
    let (shape, wordy) = (mostly_activations(512), mostly_activations(16384));
    // Of more bytes than WebGPU binds at once by default, in bf16.
    let large = ModelShape { hidden_size: 256, ..mostly_activations(300_000) };
    // Long enough for kernels to compute attention: what softmax holds when it is composed depends on which of several kernels
    // Burn's fusion has just found the fastest.
    let cases = [
        ("layers again", &shape, run(900)),
        ("logits", &wordy, Run { loss_chunk: 256, ..run(768) }),
        ("head in bf16", &wordy, Run { weight_bytes: 2, loss_chunk: 256, ..run(768) }),
        ("head in parts", &large, Run { weight_bytes: 2, loss_chunk: 64, ..run(128) }),
        ("graphs kept", &shape, Run { recompute: false, ..run(768) }),
        ("accumulation", &shape, Run { accumulation: 2, rank: 64, ..run(768) }),
        ("dropout", &shape, Run { dropout: true, ..run(900) }),
        ("dropout, graphs kept", &shape, Run { dropout: true, recompute: false, ..run(768) }),
        ("DoRA", &shape, Run { dora: true, ..run(900) }),
        ("DoRA and dropout", &shape, Run { dora: true, dropout: true, ..run(900) }),
    ];
    let mut wrong = Vec::new();
    for (name, shape, run) in cases {
        let lengths = vec![run.length as usize; run.accumulation as usize];
        // The plan is for a GPU that binds a whole scratch.
        let widened = if run.weight_bytes == 2 { SCRATCH.min(4 * shape.vocab_size * shape.hidden_size) } else { 0 };
        let spared = widened.saturating_sub(B::largest_tensor(device));
        let [found, spare] = taken::<B>(shape, &run, &lengths, compute, device);
        let planned = plan(shape, &run).peak() + spare - spared;
        let difference = planned as f64 / found as f64 - 1.0;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let line = format!(
            "{name}: planned {:.2} MiB, taken {:.2} MiB ({:+.1}%)",
            mib(planned),
            mib(found),
            100.0 * difference
        );
        println!("{line}");
        if difference.abs() > 0.05 {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rows of many lengths take what the longest of them takes.
pub fn sizes_that_never_come_back_do_not_pile_up<B: Ops>(device: &B::Device) {
    let (shape, compute) = (mostly_activations(512), ComputeDtype::F32);
    let lengths: Vec<usize> = (0..5).map(|i| 256 - 17 * i).collect();
    let run = Run { accumulation: lengths.len() as u64, ..run(256, compute) };
    let [many, _] = taken::<B>(&shape, &run, &lengths, compute, device);
    let [one, _] = taken::<B>(&shape, &run, &[256; 5], compute, device);
    assert!(many < one + one / 50, "{many} bytes for many lengths, {one} for the longest alone");
}
