//! `halfbyte train RECIPE`: QLoRA fine-tuning, and what it changed.

use std::path::{Path, PathBuf};

use anyhow::Result;
use halfbyte::data::Dataset;
use halfbyte::files::{save_adapter, write_atomic};
use halfbyte::generate::Sampling;
use halfbyte::lora::{attach, trainable_line};
use halfbyte::model::{BaseWeights, Transformer};
use halfbyte::ops::Ops;
use halfbyte::text::{Message, Tokenizer};
use halfbyte::train::{Recipe, Trainer, load_recipe, parse_override};
use pollster::block_on;
use serde_json::json;
use toml::Value;

use clap::ValueEnum;

use crate::chart;
use crate::device::{self, Choice, Job};
use crate::progress::Progress;
use crate::talk::{Talker, load_base};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// TOML file that describes the run
    recipe: PathBuf,
    /// Folder of the base model
    #[arg(long)]
    model: Option<String>,
    /// JSONL file to train on
    #[arg(long)]
    train: Option<String>,
    /// JSONL file held out
    #[arg(long)]
    test: Option<String>,
    /// Folder that the run writes into
    #[arg(long)]
    output: Option<String>,
    /// Rank of the adapters
    #[arg(long)]
    rank: Option<i64>,
    /// Passes over the data
    #[arg(long)]
    epochs: Option<i64>,
    /// Optimizer steps at most
    #[arg(long)]
    max_steps: Option<i64>,
    /// Examples of a micro-batch
    #[arg(long)]
    batch_size: Option<i64>,
    /// Peak learning rate
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Seed of the run
    #[arg(long)]
    seed: Option<i64>,
    /// Device to run on
    #[arg(long, value_enum)]
    device: Option<Choice>,
    /// Any key of the recipe, for example training.warmup_ratio=0.1
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print what the run needs, and what would fit, without loading anything
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    against: crate::plan::Against,
}

impl Arguments {
    /// What the flags put in place of the recipe's keys.
    fn overrides(&self) -> halfbyte::Result<Vec<(String, Value)>> {
        let device = self.device.and_then(|choice| Some(choice.to_possible_value()?.get_name().to_string()));
        let strings = [
            ("model", &self.model),
            ("data.train", &self.train),
            ("data.test", &self.test),
            ("output", &self.output),
            ("device", &device),
        ];
        let integers = [
            ("lora.r", self.rank),
            ("training.epochs", self.epochs),
            ("training.max_steps", self.max_steps),
            ("training.batch_size", self.batch_size),
            ("seed", self.seed),
        ];
        let strings = strings.into_iter().filter_map(|(key, v)| Some((key, Value::String(v.clone()?))));
        let integers = integers.into_iter().filter_map(|(key, v)| Some((key, Value::Integer(v?))));
        let rate = self.learning_rate.map(|rate| ("training.learning_rate", Value::Float(rate)));
        let flags = strings.chain(integers).chain(rate).map(|(key, value)| Ok((key.to_string(), value)));
        self.overrides.iter().map(|o| parse_override(o)).chain(flags).collect()
    }
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let recipe: Recipe = load_recipe(&arguments.recipe, &arguments.overrides()?)?;
    if arguments.plan {
        return crate::plan::show(&recipe, &arguments.against);
    }
    arguments.against.refuse_without_plan()?;
    device::run(Choice::parse(&recipe.device)?, Train(recipe))
}

struct Train(Recipe);

impl Job for Train {
    type Output = ();

    fn run<B: Ops>(self, device: B::Device, name: &str) -> Result<()> {
        let recipe = self.0;
        let output = Path::new(&recipe.output);
        // Everything that can be wrong with the data is found before the model is loaded.
        let tokenizer = Tokenizer::from_folder(Path::new(&recipe.model))?;
        let train = dataset(&recipe.data.train, &recipe, &tokenizer)?;
        let test = match recipe.data.test.as_str() {
            "" => None,
            path => Some(dataset(path, &recipe, &tokenizer)?),
        };
        let base = match &recipe.quantization {
            q if q.load_in_4bit => BaseWeights::Nf4 { block_size: q.block_size, double_quant: q.double_quant },
            _ => BaseWeights::Full,
        };
        let mut model = load_base::<B>(Path::new(&recipe.model), base, &device)?;
        attach(&mut model, &recipe.lora, recipe.seed)?;
        println!("device {name}; model {}; output {}", recipe.model, recipe.output);
        println!("{}", trainable_line(model.parameter_counts()));
        println!(
            "{} examples, {} tokens of which {} are trained",
            train.examples.len(),
            train.token_count(),
            train.trained_count()
        );
        let mut trainer = Trainer::new(model, train, recipe.training.clone(), recipe.seed)?;
        let held_out = |trainer: &Trainer<B>| -> Result<Option<f64>> {
            Ok(test.as_ref().map(|test| block_on(trainer.evaluate(test))).transpose()?.map(|e| e.loss))
        };
        let before = (held_out(&trainer)?, answers(trainer.model(), &tokenizer, &recipe)?);
        let mut progress = Progress::new(trainer.total_steps(), output)?;
        write_atomic(output.join("recipe.toml"), toml::to_string(&recipe)?.as_bytes())?;
        let losses = steps(&mut trainer, &mut progress, &recipe)?;
        let (seconds, rate) = progress.finish();
        let adapter = save(&mut trainer, &recipe)?;
        let after = (held_out(&trainer)?, answers(trainer.model(), &tokenizer, &recipe)?);
        progress.record(&json!({"eval_loss_before": before.0, "eval_loss": after.0, "tokens_per_second": rate}))?;
        let held: Vec<(usize, f64)> =
            [before.0.map(|loss| (0, loss)), after.0.map(|loss| (losses.len(), loss))].into_iter().flatten().collect();
        chart::draw(&output.join("loss.svg"), &losses, &held)?;
        println!("{} steps in {seconds:.1} s, {rate:.0} tokens/s", losses.len());
        if let (Some(before), Some(after)) = (before.0, after.0) {
            println!("held-out loss: {before:.4} before, {after:.4} after");
        }
        for ((question, before), after) in recipe.show.questions.iter().zip(&before.1).zip(&after.1) {
            println!("\n{question}\n  before: {before}\n  after:  {after}");
        }
        println!("\nadapter: {}; loss curve: {}", adapter.display(), output.join("loss.svg").display());
        println!("talk to it: halfbyte generate {} --adapter {}", recipe.model, adapter.display());
        Ok(())
    }
}

fn dataset(path: &str, recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Dataset> {
    let dataset = Dataset::load(Path::new(path), tokenizer, recipe.data.max_length, recipe.data.train_on)?;
    if dataset.skipped > 0 {
        eprintln!("{path}: {} examples have no trained token left after cutting to data.max_length", dataset.skipped);
    }
    Ok(dataset)
}

/// Trains to the end; each step's loss. Whatever ends the run early, the last good adapter is saved.
fn steps<B: Ops>(trainer: &mut Trainer<B>, progress: &mut Progress, recipe: &Recipe) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    let ended = loop {
        match block_on(trainer.step()) {
            Ok(Some(metrics)) => {
                losses.push(metrics.loss);
                if let Err(error) = progress.step(&metrics) {
                    break error;
                }
            }
            Ok(None) => return Ok(losses),
            Err(error) => break error.into(),
        }
    };
    progress.finish();
    Err(match save(trainer, recipe) {
        Ok(saved) => ended.context(format!("stopped; the last good adapter is in {}", saved.display())),
        Err(error) => ended.context(format!("stopped, and the adapter could not be saved: {error:#}")),
    })
}

fn save<B: Ops>(trainer: &mut Trainer<B>, recipe: &Recipe) -> Result<PathBuf> {
    let folder = Path::new(&recipe.output).join("adapter");
    block_on(save_adapter(trainer.model_mut(), &recipe.lora, &recipe.model, &folder))?;
    Ok(folder)
}

/// The recipe's questions, answered greedily, each on one line.
fn answers<B: Ops>(model: &Transformer<B>, tokenizer: &Tokenizer, recipe: &Recipe) -> Result<Vec<String>> {
    let sampling = Sampling { max_new_tokens: recipe.show.max_new_tokens, ..Sampling::default() };
    let talker = Talker { model, tokenizer, sampling };
    let answer = |question: &String| -> Result<String> {
        let text = talker.answer(&[Message::new("user", question)], |_| {})?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    recipe.show.questions.iter().map(answer).collect()
}
