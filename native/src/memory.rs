//! `halfbyte memory`: the plan of a run.

use anyhow::{Context, Result, anyhow, bail};
use halfbyte_memory::{Method, ModelShape, Optimizer, Phase, Run, bytes, fitting, grouped, names, plan, preset};

use crate::source;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A known model, such as llama-3.1-8b, a folder with config.json, or org/name[@revision] on the Hugging Face hub, of which
    /// nothing but config.json is downloaded
    model: String,
    /// Rank of the adapters
    #[arg(long, default_value_t = 16)]
    rank: u64,
    /// Sequences of a micro-batch
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 2048)]
    length: u64,
    /// Keep every layer's graph rather than compute layers again
    #[arg(long)]
    no_recompute: bool,
    /// AdamW with 8-bit state
    #[arg(long)]
    adamw_8bit: bool,
    /// Bytes of dense weights and activations: 4 for f32, which this version computes in, 2 for bf16
    #[arg(long, default_value_t = 4)]
    dtype_bytes: u64,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let model = shape(&arguments.model)?;
    println!("{}: {} parameters", arguments.model, grouped(model.parameters()));
    let run = Run {
        rank: arguments.rank,
        batch: arguments.batch,
        length: arguments.length,
        recompute: !arguments.no_recompute,
        optimizer: if arguments.adamw_8bit { Optimizer::AdamW8bit } else { Optimizer::AdamW },
        weight_bytes: arguments.dtype_bytes,
        activation_bytes: arguments.dtype_bytes,
        ..Run::default()
    };
    for (title, method) in [("full fine-tuning", Method::Full), ("LoRA", Method::Lora), ("QLoRA", Method::Qlora)] {
        let plan = plan(&model, &Run { method, ..run.clone() });
        println!("\n{title}: {} at the peak, {} of it for the whole run", bytes(plan.peak()), bytes(plan.persistent()));
        for line in &plan.lines {
            let when = match line.phase {
                Phase::Always => "",
                Phase::Layers => " (in the layers)",
                Phase::Loss => " (at the loss)",
            };
            println!("  {:>9}  {}{when}: {}", bytes(line.bytes), line.name, line.formula);
        }
        let gpus: Vec<&str> = fitting(plan.peak()).map(|gpu| gpu.name).collect();
        println!("  fits: {}", if gpus.is_empty() { "no single GPU of the list".into() } else { gpus.join(", ") });
    }
    Ok(())
}

/// A preset, or the shape of a folder's configuration.
fn shape(name: &str) -> Result<ModelShape> {
    if let Some(shape) = preset(name) {
        return Ok(shape);
    }
    let Some(path) = source::configuration(name)?.filter(|path| path.exists()) else {
        bail!(
            "`{name}` is neither a folder with config.json, nor a name of the hub (org/name[@revision]), nor a known model: {}",
            names().collect::<Vec<_>>().join(", ")
        );
    };
    let json = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let shape: ModelShape = serde_json::from_slice(&json)
        .with_context(|| format!("{}: not a configuration of a decoder", path.display()))?;
    shape.check().map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
    Ok(shape)
}
