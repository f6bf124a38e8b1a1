//! `halfbyte merge`: an adapter worked into its base, and how far the result is from what was trained.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use halfbyte::files::{MergeBase, MergeDtype, MergeOptions, WeightDrift, load_adapter, merge_folder, write_atomic};
use halfbyte::lab::{relative_error, trace};
use halfbyte::model::BaseWeights;
use halfbyte::nf4::BLOCK_SIZE;
use halfbyte::ops::Ops;
use halfbyte::text::Tokenizer;
use pollster::block_on;
use serde_json::json;

use crate::device::{self, Choice, Job};
use crate::progress::spinner;
use crate::talk::load_base;

/// What the activations are compared on where `--prompt` says nothing.
const PROMPT: &str = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Base {
    /// The 4-bit weights that the adapter was trained on, decoded
    Dequantized,
    /// The weights before quantization
    Original,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    Bf16,
    F16,
    F32,
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the base model
    model: PathBuf,
    /// Folder of the adapter
    adapter: PathBuf,
    /// Folder to write
    output: PathBuf,
    /// Weights that the adapter is added to
    #[arg(long, value_enum, default_value = "dequantized")]
    base: Base,
    /// Element type of the merged model
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    /// Elements that shared a scale in training, where MODEL is not in 4 bits
    #[arg(long, default_value_t = BLOCK_SIZE)]
    block_size: usize,
    /// The scales were f32 in training
    #[arg(long)]
    no_double_quant: bool,
    /// Size of a shard in megabytes
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    shard_size: u64,
    /// Text that activations and logits are compared on
    #[arg(long, default_value = PROMPT)]
    prompt: String,
    /// Compare weights only, without loading both models
    #[arg(long)]
    no_logits: bool,
    /// Device that the models are compared on
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let options = MergeOptions {
        base: match arguments.base {
            Base::Dequantized => MergeBase::Dequantized,
            Base::Original => MergeBase::Original,
        },
        dtype: match arguments.dtype {
            Dtype::Bf16 => MergeDtype::Bf16,
            Dtype::F16 => MergeDtype::F16,
            Dtype::F32 => MergeDtype::F32,
        },
        nf4: (arguments.block_size, !arguments.no_double_quant),
        shard: (arguments.shard_size as usize) << 20,
    };
    let bar = spinner("merging");
    let Arguments { model, adapter, output, .. } = &arguments;
    let merged = merge_folder(model, adapter, output, &options, &mut |name| bar.set_message(name.to_string()));
    bar.finish_and_clear();
    let weights = merged?;
    let compared = match arguments.no_logits {
        true => None,
        false => Some(device::run(arguments.device, Compare(&arguments))?),
    };
    report(&arguments, &options, &weights, compared.as_ref())
}

/// How far the merged model is from the trained one on a text.
struct Compared {
    tokens: usize,
    /// Relative error of the residual stream after each decoder layer.
    layers: Vec<f64>,
    logits: f64,
    /// Largest difference of a logit.
    largest: f64,
    /// Share of positions at which both like the same token best.
    agreement: f64,
}

struct Compare<'a>(&'a Arguments);

impl Job for Compare<'_> {
    type Output = Compared;

    fn run<B: Ops>(self, device: B::Device, _name: &str) -> Result<Compared> {
        let arguments = self.0;
        let ids = Tokenizer::from_folder(&arguments.model)?.encode(&arguments.prompt, true)?;
        let nf4 = BaseWeights::Nf4 { block_size: arguments.block_size, double_quant: !arguments.no_double_quant };
        let mut model = load_base::<B>(&arguments.model, nf4, &device)?;
        load_adapter(&mut model, &arguments.adapter, false)?;
        let trained = block_on(trace(&model, &ids))?;
        drop(model);
        let merged = load_base::<B>(&arguments.output, BaseWeights::Full, &device)?;
        let merged = block_on(trace(&merged, &ids))?;
        let pairs = || merged.iter().zip(&trained);
        let errors: Vec<f64> = pairs().map(|(found, expected)| relative_error(found, expected)).collect();
        let (Some((logits, layers)), Some((found, expected))) = (errors.split_last(), pairs().next_back()) else {
            anyhow::bail!("--prompt: holds no token");
        };
        let largest = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        let rows = found.len() / ids.len();
        let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
        let same = found.chunks(rows).zip(expected.chunks(rows)).filter(|(a, b)| best(a) == best(b)).count();
        let agreement = same as f64 / ids.len() as f64;
        Ok(Compared { tokens: ids.len(), layers: layers.to_vec(), logits: *logits, largest, agreement })
    }
}

/// Prints the table, and writes all figures to `drift.json` in the merged folder.
fn report(
    arguments: &Arguments,
    options: &MergeOptions,
    weights: &[WeightDrift],
    compared: Option<&Compared>,
) -> Result<()> {
    let output: &Path = &arguments.output;
    println!("{}: {} weights against the 4-bit weights with their adapter", output.display(), options.dtype.name());
    println!("| decoder layer | weights, largest relative error | of | activations, relative error |");
    println!("|---|---|---|---|");
    let mut layers: Vec<(usize, Vec<&WeightDrift>)> = Vec::new();
    for drift in weights {
        let Some(number) = drift.layer.split('.').find_map(|part| part.parse().ok()) else { continue };
        match layers.iter_mut().find(|(known, _)| *known == number) {
            Some((_, drifts)) => drifts.push(drift),
            None => layers.push((number, vec![drift])),
        }
    }
    layers.sort_by_key(|(number, _)| *number);
    for (number, drifts) in &layers {
        let Some(worst) = drifts.iter().max_by(|a, b| a.error.total_cmp(&b.error)) else { continue };
        let name = worst.layer.rsplit('.').next().unwrap_or_default();
        let activations = compared.and_then(|c| c.layers.get(*number)).map_or("-".into(), |e| format!("{e:.2e}"));
        println!("| {number} | {:.2e} | {name} | {activations} |", worst.error);
    }
    if let Some(Compared { tokens, logits, largest, agreement, .. }) = compared {
        println!(
            "logits on {tokens} tokens: relative error {logits:.2e}, largest difference {largest:.3}, \
             the same token is likeliest at {:.0} % of positions",
            100.0 * agreement
        );
    }
    let compared = compared.map(|c| {
        json!({
            "tokens": c.tokens,
            "activations": c.layers,
            "logits": c.logits,
            "largest_logit_difference": c.largest,
            "same_likeliest_token": c.agreement,
        })
    });
    let base = match options.base {
        MergeBase::Dequantized => "dequantized",
        MergeBase::Original => "original",
    };
    let all = json!({"base": base, "dtype": options.dtype.name(), "weights": weights, "compared": compared});
    let path = output.join("drift.json");
    write_atomic(&path, serde_json::to_string_pretty(&all)?.as_bytes())?;
    println!("all figures: {}", path.display());
    Ok(())
}
