//! `halfbyte merge`: an adapter worked into its base, and how far the result is from what was trained.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use halfbyte::files::{
    MergeBase, MergeDtype, MergeOptions, WeightDrift, load_adapter, merge_folder, must_be_new, write_atomic,
};
use halfbyte::lab::{relative_error, trace};
use halfbyte::model::{BaseWeights, DeviceMap};
use halfbyte::ops::Ops;
use halfbyte::text::Tokenizer;
use pollster::block_on;
use serde_json::json;

use crate::console::out;
use crate::device::{self, Choice, Found, Job};
use crate::held::HeldArguments;
use crate::progress::spinner;
use crate::source::Source;
use crate::talk::load_base;

/// What the activations are compared on where `--prompt` says nothing.
const PROMPT: &str = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Base {
    /// The weights that the adapter was trained on, decoded where they were in 4 bits
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
    /// Folder of the base model, or org/name[@revision] on the Hugging Face hub
    model: String,
    /// Folder of the adapter, or its name on the hub
    adapter: String,
    /// Folder to write
    output: PathBuf,
    /// Weights that the adapter is added to
    #[arg(long, value_enum, default_value = "dequantized")]
    base: Base,
    /// Element type of the merged model
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    #[command(flatten)]
    held: HeldArguments,
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
    let output = &arguments.output;
    // Before anything is downloaded for it.
    must_be_new(output)?;
    let (base, adapter) = (Source::open(&arguments.model)?, Source::open(&arguments.adapter)?);
    // What the comparison needs is looked at before an hour of merging, not after.
    let ids = match arguments.no_logits {
        true => vec![],
        false => Tokenizer::from_folder(base.folder())?.encode(&arguments.prompt, true)?,
    };
    if ids.is_empty() && !arguments.no_logits {
        bail!("--prompt: holds no token");
    }
    let (model, adapter) = (base.weights()?, adapter.weights()?);
    let trained_on = arguments.held.resolve(Some(adapter))?;
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
        trained_on,
        shard: (arguments.shard_size as usize) << 20,
    };
    let bar = spinner("merging");
    let merged = merge_folder(model, adapter, output, &options, &mut |name| bar.set_message(name.to_string()));
    bar.finish_and_clear();
    let weights = merged?;
    let compared = match arguments.no_logits {
        true => None,
        false => Some(device::run(arguments.device, Compare { model, adapter, trained_on, merged: output, ids })?),
    };
    report(output, &options, &weights, compared.as_ref())
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

struct Compare<'a> {
    model: &'a Path,
    adapter: &'a Path,
    trained_on: BaseWeights,
    merged: &'a Path,
    /// At least one.
    ids: Vec<u32>,
}

impl Job for Compare<'_> {
    type Output = Compared;

    fn run<B: Ops>(self, found: Found<B>) -> Result<Compared> {
        let ids = self.ids;
        let map = DeviceMap::Whole(found.device);
        let mut model = load_base::<B>(self.model, self.trained_on, &map)?;
        load_adapter(&mut model, self.adapter, false)?;
        let trained = block_on(trace(&model, &ids))?;
        drop(model);
        let merged = load_base::<B>(self.merged, BaseWeights::Full, &map)?;
        let merged = block_on(trace(&merged, &ids))?;
        let pairs = || merged.iter().zip(&trained);
        let errors: Vec<f64> = pairs().map(|(found, expected)| relative_error(found, expected)).collect();
        let (Some((logits, layers)), Some((found, expected))) = (errors.split_last(), pairs().next_back()) else {
            bail!("the model has no layer to compare");
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
fn report(output: &Path, options: &MergeOptions, weights: &[WeightDrift], compared: Option<&Compared>) -> Result<()> {
    out!("{}: {} weights against those that were trained", output.display(), options.dtype.name())?;
    out!("| decoder layer | weights, largest relative error | of | activations, relative error |")?;
    out!("|---|---|---|---|")?;
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
        out!("| {number} | {:.2e} | {name} | {activations} |", worst.error)?;
    }
    if let Some(Compared { tokens, logits, largest, agreement, .. }) = compared {
        out!(
            "logits on {tokens} tokens: relative error {logits:.2e}, largest difference {largest:.3}, \
             the same token is likeliest at {:.0} % of positions",
            100.0 * agreement
        )?;
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
    out!("all figures: {}", path.display())
}
