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
    let needed = plan.peak();
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

/// The answer to a question, or `{"error": "..."}`: lines of a key, a tab and a value, whose keys are `model`, `gpu`,
/// `config.` with a key of a `config.json`, and `run.` with a field of [`Run`].
pub fn answer(question: &[u8]) -> Vec<u8> {
    let question = core::str::from_utf8(question).map_err(|error| error.to_string());
    let written = match question.and_then(ask) {
        Ok(answer) => serde_json::to_vec(&answer),
        Err(error) => serde_json::to_vec(&Refusal { error }),
    };
    written.unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn of(lines: &[&str]) -> Value {
        serde_json::from_slice(&answer(lines.join("\n").as_bytes())).unwrap()
    }

    #[test]
    fn the_answer_is_the_librarys() {
        let run =
            Run { rank: 8, targets: ["q_proj".into(), "v_proj".into()].into(), recompute: false, ..Run::default() };
        let plan = plan(&preset("qwen3-8b").unwrap(), &run);
        let lines = ["run.rank\t8", "run.targets\tq_proj,v_proj", "run.recompute\tfalse", "gpu\th100-80gb"];
        let known = of(&[&["model\tqwen3-8b"], &lines[..]].concat());
        assert_eq!(known["needed"], plan.peak());
        assert_eq!(known["parts"].as_array().unwrap().len(), plan.at_peak().len());
        assert_eq!(known["gpu"]["name"], "H100");
        let shape = serde_json::to_value(preset("qwen3-8b").unwrap()).unwrap();
        let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToString::to_string);
        for path in ["config.", "config.text_config."] {
            let keys = shape.as_object().unwrap().iter();
            let config: Vec<String> = keys.map(|(key, value)| format!("{path}{key}\t{}", words(value))).collect();
            let config: Vec<&str> = config.iter().map(String::as_str).chain(lines).collect();
            assert_eq!(of(&config), known, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_planned_says_why() {
        let cases: [(&[&str], &str); 8] = [
            (&[""], "no model is known as ``"),
            (&["model\tgpt"], "`gpt`"),
            (&["model\tllama-7b", "gpu\tabacus"], "`abacus`"),
            (&["model\tllama-7b", "run.rank\t-1"], "`rank` is -1"),
            (&["model\tllama-7b", "run.method\tmagic"], "`method` is magic"),
            (&["config.hidden_size\t1"], "`vocab_size`"),
            (&["config.vocab_size\t1.5"], "`vocab_size` is 1.5"),
            (&["model\tllama-7b", "run.rank.deep\t1"], "must be"),
        ];
        for (lines, word) in cases {
            let error = of(lines)["error"].as_str().map(str::to_owned);
            assert!(error.as_ref().is_some_and(|error| error.contains(word)), "{lines:?}: {error:?}");
        }
        assert!(of(&["model\tllama-7b", "a line without a value", "run.unknown\tx"]).get("error").is_none());
        assert!(serde_json::from_slice::<Value>(&answer(&[0xff])).unwrap()["error"].is_string());
    }
}
