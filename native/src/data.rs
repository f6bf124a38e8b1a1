//! `halfbyte data check`: what of the data is trained, and what is wrong with it, before a run does it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use halfbyte::data::{Batches, DataConfig, Dataset, Example, Grouping, Splits};
use halfbyte::model::ModelConfig;
use halfbyte::text::{StreamDecoder, Tokenizer};
use halfbyte::train::{Recipe, load_recipe, parse_override, parse_recipe};
use halfbyte_memory::grouped;
use toml::Value;

use crate::console::{note, out};
use crate::source::{self, Source};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show which tokens are trained, and stop at what would train a model wrongly
    Check(Check),
}

#[derive(clap::Args)]
struct Check {
    /// TOML file that describes the run; or give --model and --train
    recipe: Option<PathBuf>,
    /// Folder of the base model, for its tokenizer and chat template
    #[arg(long)]
    model: Option<String>,
    /// Data file or folder to train on
    #[arg(long)]
    train: Option<String>,
    /// Examples to show
    #[arg(long, default_value_t = 2)]
    examples: usize,
    /// Colour trained tokens also where the output is no terminal
    #[arg(long)]
    color: bool,
    /// Any key of the recipe, for example data.train_on=assistant
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let Command::Check(arguments) = arguments.command;
    let flags = [("model", &arguments.model), ("data.train", &arguments.train)];
    let flags = flags.into_iter().filter_map(|(key, v)| Some((key.to_string(), Value::String(v.clone()?))));
    let overrides = arguments.overrides.iter().map(|o| parse_override(o)).chain(flags.map(Ok));
    let overrides = overrides.collect::<halfbyte::Result<Vec<_>>>()?;
    let recipe: Recipe = match &arguments.recipe {
        Some(path) => load_recipe(path, &overrides)?,
        None => parse_recipe(Path::new("the flags"), "", &overrides)?,
    };
    if recipe.model.is_empty() {
        bail!("whose tokenizer? name a recipe, or a model folder by --model");
    }
    let model = Source::open(&recipe.model)?;
    let mut tokenizer = Tokenizer::from_folder(model.folder())?;
    tokenizer.settle_date(recipe.data.date);
    let (data, _) = source::data_files(&recipe.data)?;
    let splits = data.load(&tokenizer, recipe.seed)?;
    let color = arguments.color || std::io::stdout().is_terminal();
    legend(color)?;
    for (i, example) in splits.train.examples.iter().take(arguments.examples).enumerate() {
        let trained = example.trained.iter().filter(|t| **t).count();
        out!("\nexample {}: {} tokens, {trained} trained", i + 1, example.tokens.len())?;
        out!("{}", shown(example, &tokenizer, color)?)?;
    }
    summary(&splits, &recipe, &tokenizer)?;
    let warnings = warnings(&splits, &tokenizer, model.folder())?;
    for warning in &warnings {
        out!("warning: {warning}")?;
    }
    let verdict = if warnings.is_empty() { "nothing is wrong with it" } else { "it can be trained on" };
    out!("checked: {verdict}")
}

/// What a run should not begin with is an error. A folder may hold a tokenizer alone, or a model that is not trained here.
fn warnings(splits: &Splits, tokenizer: &Tokenizer, model: &Path) -> Result<Vec<String>> {
    let mut warnings = splits.check(tokenizer)?;
    if let Ok(model) = ModelConfig::from_folder(model) {
        warnings.extend(splits.check_model(&model, tokenizer)?);
    }
    Ok(warnings)
}

/// The data of a run of the model in the folder `model`, after the checks that stop it.
pub(crate) fn load(config: &DataConfig, tokenizer: &Tokenizer, model: &Path, seed: u64) -> Result<Splits> {
    let splits = config.load(tokenizer, seed)?;
    for warning in warnings(&splits, tokenizer, model)? {
        note!("warning: {warning}");
    }
    match splits.counts().skipped {
        0 => {}
        count => note!("{count} records have no trained token left after cutting to data.max_length"),
    }
    Ok(splits)
}

fn legend(color: bool) -> Result<()> {
    let trained = if color { "\x1b[1;32mtrained tokens\x1b[0m are green" } else { "those in [brackets] are trained" };
    out!("Tokens are separated by |; {trained}.")
}

/// An example token by token, indented; a line ends where the text has a line end.
fn shown(example: &Example, tokenizer: &Tokenizer, color: bool) -> Result<String> {
    let mut decoder = StreamDecoder::with_special(tokenizer);
    let mut text = String::from("  ");
    let mut mark = |piece: &str, trained: bool| {
        let piece = visible(piece);
        text.push_str(&match (trained, color) {
            (false, _) => format!("{piece}|"),
            (true, false) => format!("[{piece}]"),
            (true, true) => format!("\x1b[1;32m{piece}\x1b[0m|"),
        });
        if piece.ends_with("\\n") {
            text.push_str("\n  ");
        }
    };
    for (token, trained) in example.tokens.iter().zip(&example.trained) {
        // A token that is part of a character shows nothing; the one that completes it shows the character.
        mark(&decoder.push(*token)?.unwrap_or_default(), *trained);
    }
    let rest = decoder.finish()?;
    if !rest.is_empty() {
        mark(&rest, false);
    }
    Ok(text.trim_end().to_string())
}

/// Control characters as escapes, so that data cannot write to the terminal.
fn visible(piece: &str) -> String {
    piece.chars().map(|c| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() }).collect()
}

fn summary(splits: &Splits, recipe: &Recipe, tokenizer: &Tokenizer) -> Result<()> {
    let counts = splits.counts();
    let forms: Vec<String> = counts.formats.iter().map(|(form, count)| format!("{} {form}", number(*count))).collect();
    let data = &splits.train;
    let (tokens, trained) = (data.token_count(), data.trained_count());
    let [p50, p90, p99, max] = data.length_percentiles([0.5, 0.9, 0.99, 1.0]);
    let held = splits.test.as_ref().map_or(String::new(), |t| format!(", and {} held out", number(t.examples.len())));
    out!("")?;
    let line = |name: &str, text: String| out!("{name:<12} {text}");
    line("records", format!("{} ({})", number(counts.records()), forms.join(", ")))?;
    line("examples", format!("{} to train on{held}", number(data.examples.len())))?;
    line("skipped", format!("{}, of which nothing that is trained is left", number(counts.skipped)))?;
    line("tokens", format!("{}, {} of them trained ({})", number(tokens), number(trained), percent(trained, tokens)))?;
    line("length", format!("half up to {p50}, 90 % up to {p90}, 99 % up to {p99}, the longest {max}"))?;
    let share = percent(counts.cut, counts.records());
    line("cut", format!("{} ({share}) at max_length {}", number(counts.cut), recipe.data.max_length))?;
    let ended = number(data.ended(tokenizer));
    line("end of turn", format!("trained in {ended} of {} examples", number(data.examples.len())))?;
    line("padding", "none: an end token that is also the pad token is trained all the same".into())?;
    line("batches", batches(data, recipe))
}

fn batches(data: &Dataset, recipe: &Recipe) -> String {
    let training = &recipe.training;
    let batches = Batches::of(data, training.batch_size, training.gradient_accumulation_steps, recipe.seed);
    let steps = number(batches.steps_per_epoch());
    match data.grouping {
        Grouping::Shuffled => format!("shuffled, {steps} steps an epoch"),
        Grouping::ByLength => format!("grouped by length, {steps} steps an epoch"),
        Grouping::Packed { bin } => {
            let full = percent(data.token_count(), batches.bins() * bin);
            format!("packed into {} bins of {bin} tokens ({full} full), {steps} steps an epoch", number(batches.bins()))
        }
    }
}

fn number(count: usize) -> String {
    grouped(count as u64)
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}
