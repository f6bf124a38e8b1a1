//! `halfbyte pretrain RECIPE`: a small model from scratch.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use halfbyte::data::{Dataset, Record, pack_stream, read_records};
use halfbyte::model::{ModelConfig, random, save_dense};
use halfbyte::ops::Ops;
use halfbyte::text::Tokenizer;
use halfbyte::train::{PretrainRecipe, Trainer, load_recipe, parse_override};
use pollster::block_on;
use serde_json::json;

use crate::claim::Claim;
use crate::console::tell;
use crate::device::{self, Choice, Found, Job};
use crate::progress::Progress;

/// Steps after which the model is saved and evaluated.
const SAVE_STEPS: usize = 500;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// TOML file that describes the run
    recipe: PathBuf,
    /// Put VALUE in place of what the recipe says, for example training.learning_rate=1e-3
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Device in place of the recipe's
    #[arg(long)]
    device: Option<Choice>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let overrides = arguments.overrides.iter().map(|o| parse_override(o)).collect::<halfbyte::Result<Vec<_>>>()?;
    let recipe: PretrainRecipe = load_recipe(&arguments.recipe, &overrides)?;
    check(&arguments.recipe, &recipe)?;
    let _claim = Claim::of(&recipe.output)?;
    let choice = arguments.device.map_or_else(|| Choice::parse(&recipe.device), Ok)?;
    device::run(choice, Pretrain(recipe))
}

/// Whatever can be seen to be wrong before anything is read.
fn check(path: &Path, recipe: &PretrainRecipe) -> Result<()> {
    let wrong = |key: &str, reason: String| Err(halfbyte::Error::key(path, key, reason).into());
    for (key, name, what) in [
        ("model", &recipe.model, "a folder with config.json and tokenizer.json"),
        ("train", &recipe.train, "a data file of documents to train on"),
        ("test", &recipe.test, "a data file of documents held out"),
    ] {
        if name.is_empty() {
            return wrong(key, format!("is not set; name {what}"));
        }
        if !Path::new(name).exists() {
            return wrong(key, format!("`{name}` is not there; name {what}"));
        }
    }
    if recipe.length < 2 {
        return wrong("length", "must be at least 2: one token predicts nothing".into());
    }
    recipe.training.check()?;
    let weights = weights(recipe);
    if weights.exists() {
        let there = weights.display();
        return wrong(
            "model",
            format!("{there} is there already, and this run would replace it; remove it, or name another folder"),
        );
    }
    Ok(())
}

/// What the run writes.
fn weights(recipe: &PretrainRecipe) -> PathBuf {
    Path::new(&recipe.model).join("model.safetensors")
}

struct Pretrain(PretrainRecipe);

impl Job for Pretrain {
    type Output = ();

    fn run<B: Ops>(self, found: Found<B>) -> Result<()> {
        let Found { device, name, .. } = found;
        let recipe = self.0;
        let folder = Path::new(&recipe.model);
        let config = ModelConfig::from_folder(folder)?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        let train = windows(Path::new(&recipe.train), &tokenizer, recipe.length)?;
        let test = windows(Path::new(&recipe.test), &tokenizer, recipe.length)?;
        let (tokens, held_out) = (train.token_count(), test.token_count());
        tell!("{name}: {} parameters, {tokens} tokens, {held_out} held out", config.parameters());
        let model = random::<B>(config, recipe.seed, &device)?;
        let mut trainer = Trainer::new(model, train, recipe.training.clone(), recipe.seed)?;
        let output = Path::new(&recipe.output);
        let mut progress = Progress::new(trainer.total_steps(), output)?;
        let weights = weights(&recipe);
        while let Some(metrics) = block_on(trainer.step())? {
            progress.step(&metrics)?;
            let last = metrics.step == trainer.total_steps();
            if last || metrics.step % SAVE_STEPS == 0 {
                // A model that is found to be none must not take the place of one that was.
                let evaluation = block_on(trainer.evaluate(&test))?;
                block_on(save_dense(trainer.model(), &weights))?;
                progress.record(&json!({"step": metrics.step, "eval_loss": evaluation.loss}))?;
                progress.say(&format!("step {}: held-out loss {:.4}", metrics.step, evaluation.loss));
            }
        }
        let (seconds, rate) = progress.finish();
        tell!("{} in {seconds:.0} s, {rate:.0} tokens/s", weights.display());
        Ok(())
    }
}

/// Documents as one stream of tokens, each between its begin and end tokens, cut into windows.
fn windows(path: &Path, tokenizer: &Tokenizer, length: usize) -> Result<Dataset> {
    let Some(eos) = tokenizer.eos_id() else { bail!("the tokenizer has no eos_token; documents need one to end") };
    let mut stream = Vec::new();
    read_records(path, &mut |place, _, record| {
        let Record::Text(text) = record else {
            return Err(halfbyte::Error::line(path, place, "pretraining takes records with `text`"));
        };
        stream.extend(tokenizer.encode(&text, true)?);
        stream.push(eos);
        Ok(())
    })?;
    Ok(Dataset::new(pack_stream(&stream, length)))
}
