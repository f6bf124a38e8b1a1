//! Peak memory of a training step over the number of layers, as the allocator counts it.
//!
//! `cargo run --release -p halfbyte-benches --bin depth` prints a table: what the model, its adapters and the optimizer
//! hold between steps, and what a step needs on top of that with each layer computed again in the backward pass, and with
//! every layer's graph kept. The last column of the first kind splits off what any engine has to keep per layer: the
//! layer's input and the gradients of its adapters.

use std::path::Path;

use anyhow::Result;
use halfbyte::backends::Cpu;
use halfbyte::data::{Dataset, Example};
use halfbyte::lora::{LoraConfig, attach};
use halfbyte::model::{BaseWeights, ModelConfig, load, random, save_dense};
use halfbyte::train::{Recompute, Trainer, TrainerConfig};
use peak_alloc::PeakAlloc;
use pollster::block_on;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const HIDDEN: usize = 512;
const TOKENS: usize = 256;
const ROWS: usize = 4;
const RANK: usize = 8;

fn main() -> Result<()> {
    println!("hidden {HIDDEN}, {ROWS} x {TOKENS} tokens, rank {RANK}; MiB");
    println!(
        "| layers | held between steps | step, layers computed again | of which per-layer input and gradients | step, graphs kept |"
    );
    println!("|---|---|---|---|---|");
    for layers in [2, 4, 8, 16, 32] {
        let folder = tempfile::tempdir()?;
        write_model(folder.path(), layers)?;
        let (held, again, gradients) = measure(folder.path(), Recompute::Layers)?;
        let (_, kept, _) = measure(folder.path(), Recompute::None)?;
        let per_layer = mib(layers * ROWS * TOKENS * HIDDEN * 4 + gradients);
        println!("| {layers} | {held:.1} | {again:.1} | {per_layer:.1} | {kept:.1} |");
    }
    Ok(())
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A random Llama of this depth as a model folder.
fn write_model(folder: &Path, layers: usize) -> Result<()> {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2048, "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN, "num_hidden_layers": layers, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "max_position_embeddings": 2048,
    });
    let (path, json) = (folder.join("config.json"), serde_json::to_vec(&config)?);
    std::fs::write(&path, &json)?;
    let model = random::<Cpu>(ModelConfig::parse(&path, &json)?, 1, &Default::default())?;
    block_on(save_dense(&model, &folder.join("model.safetensors")))?;
    Ok(())
}

/// MiB held before a step and at most during it beyond that, and the bytes of the adapters' gradients.
fn measure(folder: &Path, recompute: Recompute) -> Result<(f64, f64, usize)> {
    let nf4 = BaseWeights::Nf4 { block_size: 64, double_quant: true };
    let mut model = load::<Cpu>(folder, nf4, &Default::default(), &mut |_| {})?;
    attach(&mut model, &LoraConfig { r: RANK, ..Default::default() }, 1)?;
    let gradients = 4 * model.parameter_counts().0;
    let tokens = |row: usize| (0..TOKENS).map(|i| (i * 7 + row * 31) as u32 % 2048).collect();
    let examples = (0..ROWS * 3).map(|row| Example { tokens: tokens(row), trained: vec![true; TOKENS] }).collect();
    let config = TrainerConfig { batch_size: ROWS, recompute, loss_chunk: 256, ..Default::default() };
    let mut trainer = Trainer::new(model, Dataset { examples, ..Dataset::default() }, config, 1)?;
    // The first steps allocate what stays: the optimizer's moments and the scratch of the kernels.
    block_on(trainer.step())?;
    block_on(trainer.step())?;
    let held = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    block_on(trainer.step())?;
    Ok((mib(held), mib(ALLOCATOR.peak_usage() - held), gradients))
}
