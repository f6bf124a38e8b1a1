//! A question as a page asks it, and its answer as JSON.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use halfbyte_memory::{GPUS, Line, ModelShape, Run, gpu, names, plan, preset};
use serde::{Deserialize, Serialize};

use crate::lines::Lines;

/// A GPU beside what is needed.
#[derive(Serialize)]
struct Card {
    name: &'static str,
    gib: u64,
    fits: bool,
}

/// What a page is told.
#[derive(Serialize)]
struct Answer {
    parameters: u64,
    trained: u64,
    needed: u64,
    persistent: u64,
    parts: Vec<Line>,
    gpu: Option<Card>,
    gpus: Vec<Card>,
    models: Vec<&'static str>,
}

/// Why there is no answer.
#[derive(Serialize)]
struct Refusal {
    error: String,
}

/// Answers lines with these keys: `model`, a known one; or `config.` and a key of a `config.json`, which comes before it; `run.`
/// and a field of [`Run`]; `gpu`, a known one.
fn ask(question: &str) -> Result<Answer, String> {
    let lines = Lines::new(question);
    let config = lines.inside("config.");
    let model = if config.is_empty() {
        let name = lines.get("model").unwrap_or_default();
        preset(name).ok_or_else(|| format!("no model is known as `{name}`"))?
    } else {
        ModelShape::deserialize(config).map_err(|error| format!("config.json: {error}"))?
    };
    let run = Run::deserialize(lines.inside("run.")).map_err(|error| error.to_string())?;
    model.check()?;
    let plan = plan(&model, &run);
    let needed = plan.needed();
    let card = |(name, gib): (&'static str, u64)| Card { name, gib, fits: gib << 30 >= needed };
    let asked = match lines.get("gpu") {
        Some(name) => Some(gpu(name).ok_or_else(|| format!("no GPU is known as `{name}`"))?),
        None => None,
    };
    Ok(Answer {
        parameters: model.parameters(),
        trained: run.trained(&model),
        needed,
        persistent: plan.persistent(),
        parts: plan.at_peak(),
        gpu: asked.map(card),
        gpus: GPUS.into_iter().map(card).collect(),
        models: names().collect(),
    })
}

/// The answer to a question, or `{"error": "..."}`.
pub(crate) fn answer(question: &[u8]) -> Vec<u8> {
    let question = core::str::from_utf8(question).map_err(|error| error.to_string());
    let written = match question.and_then(ask) {
        Ok(answer) => serde_json::to_vec(&answer),
        Err(error) => serde_json::to_vec(&Refusal { error }),
    };
    written.unwrap_or_default()
}
