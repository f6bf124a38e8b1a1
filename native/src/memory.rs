//! `halfbyte memory`: the plan of a run.

use std::path::Path;

use anyhow::{Context, Result, bail};
use halfbyte_memory::{ComputeDtype, Method, ModelShape, Optimizer, Plan, Run, bytes, grouped, names, plan, preset};
use serde::Serialize;

use crate::console::out;
use crate::plan::{Against, Estimate, Table, parse, print};
use crate::source;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A known model, such as llama-3.1-8b, a folder with config.json, or org/name[@revision] on the Hugging Face hub, of which
    /// nothing but config.json is downloaded
    model: String,
    /// Rank of the adapters
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    rank: u64,
    /// Sequences of a micro-batch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..))]
    length: u64,
    /// Keep every layer's graph rather than compute layers again
    #[arg(long)]
    no_recompute: bool,
    /// AdamW with 8-bit state
    #[arg(long)]
    adamw_8bit: bool,
    /// What is computed in: bf16 as on CUDA from Ampere on, or f32 as through wgpu. Full fine-tuning and LoRA in bf16 are planned for
    /// comparison
    #[arg(long, default_value = "bf16", value_parser = parse::<ComputeDtype>)]
    compute_dtype: ComputeDtype,
    #[command(flatten)]
    against: Against,
}

/// A method's plan, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    method: Method,
    peak: u64,
    persistent: u64,
    #[serde(flatten)]
    plan: Plan,
    fits: Option<bool>,
    gpus: Vec<Estimate>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let model = shape(&arguments.model)?;
    let against = &arguments.against;
    let run = Run {
        rank: arguments.rank,
        batch: arguments.batch,
        length: arguments.length,
        recompute: !arguments.no_recompute,
        optimizer: if arguments.adamw_8bit { Optimizer::AdamW8bit } else { Optimizer::AdamW },
        compute_dtype: arguments.compute_dtype,
        ..Run::default()
    };
    let table = Table::load(against.gpus.as_deref())?;
    let report = |method: Method| {
        let weight_bytes = method.weight_bytes(run.compute_dtype);
        let plan = plan(&model, &Run { method, weight_bytes, ..run.clone() });
        let fits = against.memory.map(|memory| plan.peak() <= memory);
        let gpus = table.estimates(plan.peak(), run.compute_dtype, None);
        Report { method, peak: plan.peak(), persistent: plan.persistent(), plan, fits, gpus }
    };
    let reports = [Method::Full, Method::Lora, Method::Qlora].map(report);
    if against.json {
        let json = serde_json::json!({"model": arguments.model, "parameters": model.parameters(), "plans": reports});
        return out!("{}", serde_json::to_string_pretty(&json)?);
    }
    out!("{}: {} parameters", arguments.model, grouped(model.parameters()))?;
    for (title, report) in ["full fine-tuning", "LoRA", "QLoRA"].into_iter().zip(reports) {
        let (peak, persistent) = (bytes(report.peak), bytes(report.persistent));
        out!("\n{title}: {peak} at the peak, {persistent} of it for the whole run")?;
        print(&report.plan)?;
        if let (Some(memory), Some(fits)) = (against.memory, report.fits) {
            out!("{} {}", if fits { "fits" } else { "does NOT fit" }, bytes(memory))?;
        }
        table.print(&report.gpus)?;
    }
    Ok(())
}

/// A preset, or the shape of a folder's configuration.
pub(crate) fn shape(name: &str) -> Result<ModelShape> {
    if let Some(shape) = preset(name) {
        return Ok(shape);
    }
    let Some(path) = source::configuration(name)?.filter(|path| path.exists()) else {
        bail!(
            "`{name}` is neither a folder with config.json, nor a name of the hub (org/name[@revision]), nor a known model: {}",
            names().collect::<Vec<_>>().join(", ")
        );
    };
    shape_of(&path)
}

/// The shape that a `config.json` describes.
pub(crate) fn shape_of(path: &Path) -> Result<ModelShape> {
    let json = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(halfbyte::train::shape_of(path, &json)?)
}
