//! `halfbyte train RECIPE`: QLoRA fine-tuning, and what it changed.

use std::path::{Path, PathBuf};

use anyhow::Result;
use halfbyte::data::Dataset;
use halfbyte::files::save_adapter;
use halfbyte::generate::Sampling;
use halfbyte::lora::{attach, trainable_line};
use halfbyte::model::{BaseWeights, Transformer};
use halfbyte::ops::Ops;
use halfbyte::text::{Message, Tokenizer};
use halfbyte::train::{Recipe, Trainer, load_recipe, parse_override};
use pollster::block_on;
use toml::Value;

use clap::ValueEnum;

use crate::device::{self, Choice, Job};
use crate::source::{self, Source};
use crate::talk::{Talker, load_base};
use crate::watch::{Sample, Start, Watch};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// TOML file that describes the run
    recipe: PathBuf,
    /// Folder of the base model, or org/name[@revision] on the Hugging Face hub
    #[arg(long)]
    model: Option<String>,
    /// JSONL file to train on, or a data set of the hub
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
    device::run(Choice::parse(&recipe.device)?, Train(recipe))
}

struct Train(Recipe);

impl Job for Train {
    type Output = ();

    fn run<B: Ops>(self, device: B::Device, name: &str) -> Result<()> {
        let recipe = self.0;
        let output = Path::new(&recipe.output);
        // Everything that can be wrong with the data is found before the model is loaded.
        let source = Source::open(&recipe.model)?;
        let tokenizer = Tokenizer::from_folder(source.folder())?;
        let mut data = vec![(recipe.data.train.clone(), source::data(&recipe.data.train, &["train"])?)];
        if !recipe.data.test.is_empty() {
            data.push((recipe.data.test.clone(), source::data(&recipe.data.test, &["test", "validation"])?));
        }
        let train = dataset(&data[0].1, &recipe, &tokenizer)?;
        let test = data.get(1).map(|(_, path)| dataset(path, &recipe, &tokenizer)).transpose()?;
        let base = match &recipe.quantization {
            q if q.load_in_4bit => BaseWeights::Nf4 { block_size: q.block_size, double_quant: q.double_quant },
            _ => BaseWeights::Full,
        };
        let mut model = load_base::<B>(source.weights()?, base, &device)?;
        attach(&mut model, &recipe.lora, recipe.seed)?;
        println!("device {name}; model {}; output {}", recipe.model, recipe.output);
        let trainable = trainable_line(model.parameter_counts());
        println!("{trainable}");
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
        let (steps, done) = (trainer.total_steps(), 0);
        let mut watch =
            Watch::start(Start { recipe: &recipe, base: &source, data, device: name, trainable, steps, done })?;
        before.0.map(|loss| watch.evaluation(0, loss)).transpose()?;
        train_to_the_end(&mut trainer, &mut watch, &recipe)?;
        let (seconds, rate) = watch.stop_clock();
        let adapter = save(&mut trainer, &recipe)?;
        let after = (held_out(&trainer)?, answers(trainer.model(), &tokenizer, &recipe)?);
        after.0.map(|loss| watch.evaluation(steps, loss)).transpose()?;
        let answers = recipe.show.questions.iter().zip(before.1.iter().zip(after.1));
        let samples: Vec<Sample> = answers
            .map(|(question, (before, after))| Sample { question: question.clone(), before: before.clone(), after })
            .collect();
        watch.finish(&samples)?;
        println!("{steps} steps in {seconds:.1} s, {rate:.0} tokens/s");
        if let (Some(before), Some(after)) = (before.0, after.0) {
            println!("held-out loss: {before:.4} before, {after:.4} after");
        }
        for Sample { question, before, after } in &samples {
            println!("\n{question}\n  before: {before}\n  after:  {after}");
        }
        println!("\nadapter: {}; report: {}", adapter.display(), output.join("report.html").display());
        println!("talk to it: halfbyte generate {} --adapter {}", recipe.model, adapter.display());
        Ok(())
    }
}

fn dataset(path: &Path, recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Dataset> {
    let dataset = Dataset::load(path, tokenizer, recipe.data.max_length, recipe.data.train_on)?;
    if dataset.skipped > 0 {
        let (path, skipped) = (path.display(), dataset.skipped);
        eprintln!("{path}: {skipped} examples have no trained token left after cutting to data.max_length");
    }
    Ok(dataset)
}

/// Trains to the end. Whatever ends the run early, the last good adapter is saved.
fn train_to_the_end<B: Ops>(trainer: &mut Trainer<B>, watch: &mut Watch, recipe: &Recipe) -> Result<()> {
    let ended = loop {
        match block_on(trainer.step()) {
            Ok(Some(metrics)) => {
                if let Err(error) = watch.step(&metrics) {
                    break error;
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => break error.into(),
        }
    };
    watch.fail(&format!("{ended:#}"));
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
