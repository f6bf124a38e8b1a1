//! What another engine needs to make the same run: the adapter before the first step, and the tokens of every step.
//!
//! `cargo run --release -p halfbyte-benches --bin start -- recipes/kinds.toml --steps 200 out/start` writes a PEFT folder and
//! `steps.json`; `benches/peft_loss.py --start out/start` makes the run from them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use halfbyte::backends::Cpu;
use halfbyte::data::{Batches, Dataset, Example};
use halfbyte::files::save_adapter;
use halfbyte::lora::attach;
use halfbyte::model::{BaseWeights, load};
use halfbyte::text::Tokenizer;
use halfbyte::train::{Recipe, load_recipe};
use pollster::block_on;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [recipe, flag, steps, output] = arguments.as_slice() else { bail!("use: start RECIPE --steps N OUTPUT") };
    if flag != "--steps" {
        bail!("use: start RECIPE --steps N OUTPUT");
    }
    let steps: usize = steps.parse().context("--steps")?;
    let recipe: Recipe = load_recipe(Path::new(recipe), &[])?;
    let output = PathBuf::from(output);
    let folder = Path::new(&recipe.model);
    let base = match &recipe.quantization {
        q if q.load_in_4bit => BaseWeights::Nf4 { block_size: q.block_size, double_quant: q.double_quant },
        _ => BaseWeights::Full,
    };
    let mut model = load::<Cpu>(folder, base, &Default::default(), &mut |_| {})?;
    attach(&mut model, &recipe.lora, recipe.seed)?;
    block_on(save_adapter(&mut model, &recipe.lora, &recipe.model, output.join("adapter")))?;

    let tokenizer = Tokenizer::from_folder(folder)?;
    let read = |file: &str| Dataset::load(Path::new(file), &tokenizer, recipe.data.max_length, recipe.data.train_on);
    let (train, test) = (read(&recipe.data.train)?, read(&recipe.data.test)?);
    let (batch, accumulation) = (recipe.training.batch_size, recipe.training.gradient_accumulation_steps);
    let batches = Batches::of(&train, batch, accumulation, recipe.seed);
    let per_epoch = batches.steps_per_epoch();
    let step = |step: usize| -> Value {
        let chosen = batches.step(step / per_epoch, step % per_epoch).concat();
        chosen.into_iter().map(|i| example(&train.examples[i])).collect()
    };
    let all = json!({
        "steps": (0..steps).map(step).collect::<Vec<_>>(),
        "test": test.examples.iter().map(example).collect::<Vec<_>>(),
    });
    std::fs::write(output.join("steps.json"), all.to_string())?;
    Ok(())
}

/// Tokens, and the same as labels: -100 where no loss is taken.
fn example(example: &Example) -> Value {
    let labels = example.tokens.iter().zip(&example.trained);
    let labels: Vec<i64> = labels.map(|(token, trained)| if *trained { i64::from(*token) } else { -100 }).collect();
    json!({"input_ids": example.tokens, "labels": labels})
}
