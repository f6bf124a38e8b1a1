//! `halfbyte bench-training`: how fast a model of any size trains on this device, and what memory that takes, with weights that are
//! made up.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use halfbyte::data::{Dataset, Example};
use halfbyte::files::write_atomic;
use halfbyte::lab::ceilings;
use halfbyte::lora::{LoraConfig, Targets, attach};
use halfbyte::model::{ModelConfig, Transformer, synthetic};
use halfbyte::ops::{ComputeDtype, Ops};
use halfbyte::optim::{DeviceBudget, Optim};
use halfbyte::train::{Devices, EmbeddingDtype, Recipe, Recompute, Trainer, TrainerConfig};
use halfbyte_memory::{ModelShape, bytes, grouped, plan};
use pollster::block_on;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;

use crate::console::out;
use crate::device::{self, Choice, Found, Job, Seat};
use crate::limit;
use crate::plan::{fullest, parse, parts_of, run_of};
use crate::progress::spinner;
use crate::source;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A known model, such as llama-3.1-8b, or a folder with config.json: only its shape is used
    #[arg(long, default_value = "llama-3.2-1b")]
    model: String,
    /// Tokens of a sequence; several lengths are measured one after another
    #[arg(long, value_delimiter = ',', default_value = "512,2048")]
    length: Vec<usize>,
    /// Sequences of a micro-batch
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Micro-batches of a step
    #[arg(long, default_value_t = 1)]
    accumulation: usize,
    /// Rank of the adapters on all linear layers
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Steps that are timed, after one that is not
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// What the operands of products are rounded to: f32, bf16 (CUDA) or f16 (other GPUs)
    #[arg(long, default_value = "f32", value_parser = parse::<ComputeDtype>)]
    compute_dtype: ComputeDtype,
    /// What embedding and head are held in: f32, bf16, f16, or as the model's files hold them (auto)
    #[arg(long, default_value = "auto", value_parser = parse::<EmbeddingDtype>)]
    embedding_dtype: EmbeddingDtype,
    /// Optimizer
    #[arg(long, default_value = "adamw", value_parser = parse::<Optim>)]
    optim: Optim,
    /// What the backward pass finds of each layer: its input (layers), its input in host memory (layers-from-host), its graph (none);
    /// several are measured one after another, and should be in the order of the memory that they take
    #[arg(long, value_delimiter = ',', default_value = "layers", value_parser = parse::<Recompute>)]
    recompute: Vec<Recompute>,
    /// Memory that a run may take, such as 48GiB: a paged optimizer keeps as much of its state on the device as that leaves room for
    #[arg(long, value_parser = crate::plan::parse_bytes)]
    memory_limit: Option<u64>,
    /// Device to measure
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// GPUs of that kind to share the model's layers out among: all, or numbers such as 0,1
    #[arg(long, default_value = "first")]
    devices: Devices,
    /// File for all figures
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let Arguments { steps, batch, accumulation, .. } = arguments;
    if [steps, batch, accumulation].contains(&0) || arguments.length.contains(&0) {
        bail!("--steps, --batch, --accumulation and --length are at least 1");
    }
    let shape = crate::memory::shape(&arguments.model)?;
    let config = match halfbyte_memory::preset(&arguments.model) {
        Some(_) => ModelConfig::parse("config.json", &serde_json::to_vec(&as_llama(&shape))?)?,
        None => {
            let path = source::configuration(&arguments.model)?.context("no config.json")?;
            ModelConfig::parse(&path, &std::fs::read(&path).with_context(|| path.display().to_string())?)?
        }
    };
    let seat = Seat { devices: arguments.devices.clone(), ..Seat::default() };
    device::run_at(arguments.device, seat, Bench { arguments, shape, config })
}

/// A known model's shape as the configuration of a Llama: what differs between families costs no time worth speaking of.
fn as_llama(shape: &ModelShape) -> serde_json::Value {
    let dtype = if shape.in_16_bits { "bfloat16" } else { "float32" };
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv(),
        "head_dim": shape.head(), "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 1 << 20, "dtype": dtype, "attention_bias": shape.attention_bias, "mlp_bias": shape.mlp_bias,
    })
}

/// What was measured at one length.
#[derive(Serialize)]
struct Measurement {
    length: usize,
    batch: usize,
    recompute: Recompute,
    /// Of each timed step, in the order in which they were made.
    seconds: Vec<f64>,
    tokens_per_second: f64,
    /// 6 x parameters of the linear layers and the head x tokens: forward, forward again, and the gradients of activations.
    gflops: f64,
    /// Bytes that the process took from a device, of several the most, or that it occupied at most on the CPU.
    peak: Option<u64>,
    /// Bytes by which that, on the CPU what the process occupies, grew from the second timed step to the last.
    grown: Option<u64>,
    /// What the memory plan says.
    planned: u64,
}

struct Bench {
    arguments: Arguments,
    shape: ModelShape,
    config: ModelConfig,
}

impl Job for Bench {
    type Output = ();

    fn run<B: Ops>(self, found: Found<B>) -> Result<()> {
        let Bench { arguments, shape, config } = self;
        let name = found.name.as_str();
        let compute = arguments.compute_dtype;
        let rows = if compute == ComputeDtype::Bf16 { 2048 } else { 512 };
        let ceiling = block_on(ceilings::<B>(&found.device, [4096, 4096], rows, compute))?.dense;
        out!("{name}; {} ({} parameters), made-up weights", arguments.model, grouped(shape.parameters()))?;
        out!("dense product in {compute:?}, {rows} rows, [4096, 4096]: {ceiling:.1} GFLOP/s")?;
        out!("| length | batch | recompute | s a step | tokens/s | GFLOP/s | of dense | peak | planned |")?;
        out!("|---|---|---|---|---|---|---|---|---|")?;
        let mut all = Vec::new();
        // Where the layers lie depends on the first measurement alone: making weights up takes longer than the steps.
        let both =
            arguments.recompute.iter().flat_map(|how| arguments.length.iter().map(move |length| (*length, *how)));
        let mut recipes = both.map(|(length, how)| recipe(&arguments, &shape, length, how));
        let first = recipes.next().context("--length and --recompute name nothing")??;
        let map = found.map(&shape, &run_of(&first, &shape)?);
        let bar = spinner("making weights up");
        let model =
            synthetic::<B>(config, first.quantization.base(), 1, &map, &mut |path| bar.set_message(path.to_string()))?;
        bar.finish_and_clear();
        for recipe in std::iter::once(Ok(first)).chain(recipes) {
            let measured = measure::<B>(&recipe?, &shape, model.clone())?;
            let Measurement { length, batch, recompute, tokens_per_second, gflops, planned, .. } = measured;
            let how = serde_json::to_value(recompute)?;
            out!(
                "| {length} | {batch} | {} | {:.3} | {tokens_per_second:.1} | {gflops:.1} | {:.0} % | {} | {} |",
                how.as_str().unwrap_or_default(),
                median(&measured.seconds),
                100.0 * gflops / ceiling,
                measured.peak.map_or("not known".into(), bytes),
                bytes(planned),
            )?;
            all.push(measured);
        }
        if let Some(path) = &arguments.json {
            let report = json!({
                "device": name, "model": arguments.model, "rank": arguments.rank, "optim": arguments.optim,
                "accumulation": arguments.accumulation, "compute_dtype": arguments.compute_dtype,
                "embedding_dtype": arguments.embedding_dtype, "dense_gflops": ceiling, "measurements": all,
            });
            write_atomic(path, serde_json::to_string_pretty(&report)?.as_bytes())?;
        }
        Ok(())
    }
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// The run that is measured at one length.
fn recipe(arguments: &Arguments, shape: &ModelShape, length: usize, recompute: Recompute) -> Result<Recipe> {
    let Arguments { batch, steps, accumulation, .. } = *arguments;
    let mut recipe = Recipe::default();
    let targets = shape.linears().iter().map(|linear| linear.name.to_string()).collect();
    recipe.lora = LoraConfig { r: arguments.rank, target_modules: Targets::Names(targets), ..LoraConfig::default() };
    recipe.data.max_length = length;
    recipe.training = TrainerConfig {
        batch_size: batch,
        gradient_accumulation_steps: accumulation,
        max_steps: steps + 1,
        optim: arguments.optim,
        recompute,
        ..TrainerConfig::default()
    };
    recipe.device = arguments.device.to_possible_value().map_or("auto".into(), |value| value.get_name().to_string());
    recipe.quantization.compute_dtype = arguments.compute_dtype;
    recipe.quantization.embedding_dtype = arguments.embedding_dtype;
    recipe.devices = arguments.devices.clone();
    recipe.memory_limit = DeviceBudget(arguments.memory_limit);
    limit::fit(&mut recipe, shape)?;
    Ok(recipe)
}

fn measure<B: Ops>(recipe: &Recipe, shape: &ModelShape, mut model: Transformer<B>) -> Result<Measurement> {
    let TrainerConfig { batch_size: batch, gradient_accumulation_steps: accumulation, recompute, .. } = recipe.training;
    let (length, steps) = (recipe.data.max_length, recipe.training.max_steps - 1);
    let bar = spinner("compiling");
    attach(&mut model, &recipe.lora, 1)?;
    let mut random = ChaCha8Rng::seed_from_u64(length as u64);
    let mut example = |_| Example {
        tokens: (0..length).map(|_| random.random_range(0..shape.vocab_size as u32)).collect(),
        trained: vec![true; length],
    };
    let examples = (0..batch * accumulation * (steps + 1)).map(&mut example).collect();
    let data = Dataset { examples, ..Dataset::default() };
    let mut trainer = Trainer::new(model, data, recipe.training.clone(), 1)?;
    for stage in &trainer.model().stages {
        B::release_memory(&stage.device);
        B::forget_most_reserved(&stage.device);
    }
    let (mut seconds, mut early) = (Vec::new(), None);
    for step in 0..=steps {
        bar.set_message(format!("length {length}, step {step} of {steps}"));
        let started = Instant::now();
        // A step ends with the loss on the host: the device has done everything by then.
        block_on(trainer.step())?;
        limit::check(recipe, trainer.model())?;
        if step > 0 {
            seconds.push(started.elapsed().as_secs_f64());
            if step <= 2 {
                early = limit::taken(trainer.model());
            }
        }
    }
    bar.finish_and_clear();
    let planned = fullest(parts_of(recipe, shape)?).map_or(0, |(shape, run)| plan(&shape, &run).peak());
    let products = shape.linears().iter().map(|linear| linear.elements()).sum::<u64>() * shape.layers
        + shape.vocab_size * shape.hidden_size;
    let tokens = (batch * accumulation * length) as f64;
    let once = median(&seconds);
    Ok(Measurement {
        length,
        batch,
        recompute,
        tokens_per_second: tokens / once,
        gflops: 6.0 * products as f64 * tokens / once / 1e9,
        seconds,
        grown: limit::taken(trainer.model()).zip(early).map(|(late, early)| late.saturating_sub(early)),
        peak: limit::reserved(trainer.model()).or_else(limit::most_resident),
        planned,
    })
}
