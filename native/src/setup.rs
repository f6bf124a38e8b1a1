//! What a fine-tuning run begins with: its recipe, with flags in place of its keys, its data and its model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use halfbyte::Error;
use halfbyte::data::{Dataset, Splits};
use halfbyte::lora::attach;
use halfbyte::nf4::check_block_size;
use halfbyte::ops::Ops;
use halfbyte::parallel::Group;
use halfbyte::text::Tokenizer;
use halfbyte::train::{Devices, Recipe, Run, SavedCheckpoint, Trainer, load_recipe, parse_override};
use toml::Value;

use crate::device::{Choice, Found};
use crate::plan::run_of;
use crate::source::{self, Source};
use crate::talk::load_base;

/// A recipe and the flags that win over it.
#[derive(clap::Args)]
pub(crate) struct RecipeArguments {
    /// TOML file that describes the run
    recipe: PathBuf,
    /// Folder of the base model, or org/name[@revision] on the Hugging Face hub
    #[arg(long)]
    model: Option<String>,
    /// Data file or folder to train on, or a data set of the hub
    #[arg(long)]
    train: Option<String>,
    /// Data file or folder held out
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
    /// GPUs of that kind to share the model's layers out among: all, or numbers such as 0,1
    #[arg(long)]
    devices: Option<Devices>,
    /// Memory that the run may take of each device, such as 48GiB
    #[arg(long)]
    memory_limit: Option<String>,
    /// Any key of the recipe, for example training.warmup_ratio=0.1
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

impl RecipeArguments {
    /// The recipe with the flags in it.
    pub(crate) fn recipe(&self) -> halfbyte::Result<Recipe> {
        let recipe: Recipe = load_recipe(&self.recipe, &self.overrides()?)?;
        let wrong = |key: &str, reason: String| Err(Error::key(&self.recipe, key, reason));
        if recipe.model.is_empty() {
            return wrong("model", "names no model; set it there or by --model".into());
        }
        let quantization = &recipe.quantization;
        match check_block_size(quantization.block_size) {
            Err(error) if quantization.load_in_4bit => wrong("quantization.block_size", error.to_string()),
            _ => Ok(recipe),
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.recipe
    }

    /// What the flags put in place of the recipe's keys.
    fn overrides(&self) -> halfbyte::Result<Vec<(String, Value)>> {
        let device = self.device.and_then(|choice| Some(choice.to_possible_value()?.get_name().to_string()));
        let strings = [
            ("model", &self.model),
            ("data.train", &self.train),
            ("data.test", &self.test),
            ("output", &self.output),
            ("device", &device),
            ("memory_limit", &self.memory_limit),
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
        let devices = self.devices.as_ref().map(Value::try_from).transpose();
        let devices = devices.map_err(|e| Error::Invalid(format!("--devices: {e}")))?;
        let devices = devices.map(|devices| ("devices", devices));
        let flags = strings.chain(integers).chain(rate).chain(devices).map(|(key, value)| Ok((key.to_string(), value)));
        self.overrides.iter().map(|o| parse_override(o)).chain(flags).collect()
    }
}

/// The data of a run, read and tokenized.
pub(crate) struct Setup {
    pub(crate) base: Source,
    pub(crate) tokenizer: Tokenizer,
    /// Data files: the recipe's name and the file.
    pub(crate) files: Vec<(String, PathBuf)>,
    pub(crate) train: Dataset,
    pub(crate) test: Option<Dataset>,
    /// What the run is, for its checkpoints.
    pub(crate) run: Run,
}

impl Setup {
    /// Reads everything but the weights, so that whatever is wrong with it is found before they are loaded. `from` is what the run goes
    /// on from.
    pub(crate) fn read(mut recipe: Recipe, from: Option<&SavedCheckpoint>) -> Result<Self> {
        recipe.checkpoints.check()?;
        recipe.training.check()?;
        recipe.lora.check()?;
        let base = Source::open(&recipe.model)?;
        let mut tokenizer = Tokenizer::from_folder(base.folder())?;
        let began = from.and_then(|from| from.run.recipe.data.date);
        recipe.data.date = tokenizer.settle_date(recipe.data.date.or(began));
        let (config, files) = source::data_files(&recipe.data)?;
        let Splits { train, test } = crate::data::load(&config, &tokenizer, base.folder(), recipe.seed)?;
        recipe.evaluation.check(test.is_some())?;
        let run = Run::new(&recipe, base.weights()?, &train, test.as_ref())?;
        Ok(Self { base, tokenizer, files, train, test, run })
    }

    /// The model with a new adapter, at step 0, to be trained on `data`; one of the ranks of `group`, where there is one.
    pub(crate) fn trainer<B: Ops>(
        &self,
        data: Dataset,
        found: &Found<B>,
        group: Option<Arc<Group>>,
    ) -> Result<Trainer<B>> {
        let recipe = &self.run.recipe;
        // The weights were fetched when the setup was read.
        let map = found.map_for(self.base.folder(), |shape| run_of(recipe, shape))?;
        let mut model = load_base::<B>(self.base.folder(), recipe.quantization.base(), &map)?;
        attach(&mut model, &recipe.lora, recipe.seed)?;
        let training = recipe.training.clone();
        Ok(match group {
            Some(group) => Trainer::parallel(model, data, training, recipe.seed, group)?,
            None => Trainer::new(model, data, training, recipe.seed)?,
        })
    }
}
