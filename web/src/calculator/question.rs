//! What is asked, as the address keeps it, and the plan that answers it.

use halfbyte_memory::{ComputeDtype, Method, ModelShape, Optimizer, Plan, Run, plan, preset};
use leptos::prelude::*;

use crate::ui::query_state;

/// The model that is shown first.
const FIRST: &str = "llama-3.1-8b";

/// The linear layers of a decoder layer.
pub(crate) const LINEARS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// A question, each part of it a signal.
#[derive(Clone, Copy)]
pub(crate) struct Question {
    /// A known model's name; a configuration comes before it.
    pub(crate) model: RwSignal<String>,
    /// The keys of a `config.json` that matter, or nothing.
    pub(crate) config: RwSignal<String>,
    /// Where the configuration is from.
    pub(crate) origin: RwSignal<String>,
    /// Why what was pasted last is no configuration.
    pub(crate) refused: RwSignal<Option<String>>,
    /// A GPU's name, or nothing.
    pub(crate) gpu: RwSignal<String>,
    pub(crate) method: RwSignal<String>,
    pub(crate) rank: RwSignal<f64>,
    /// The layers that have adapters, with commas between; nothing for all.
    pub(crate) targets: RwSignal<String>,
    pub(crate) length: RwSignal<f64>,
    pub(crate) batch: RwSignal<f64>,
    pub(crate) accumulation: RwSignal<f64>,
    /// Tokens of the examples that are packed into a row; 0 for one example to a row.
    pub(crate) packed: RwSignal<f64>,
    pub(crate) recompute: RwSignal<bool>,
    pub(crate) optimizer: RwSignal<String>,
    pub(crate) paged: RwSignal<bool>,
    pub(crate) double_quant: RwSignal<bool>,
    pub(crate) dropout: RwSignal<bool>,
    /// What is computed in.
    pub(crate) dtype: RwSignal<String>,
    /// The model's shape, or why there is none.
    pub(crate) shape: Memo<Result<ModelShape, String>>,
    /// What the parts add up to.
    pub(crate) run: Memo<Run>,
    /// The answer.
    pub(crate) plan: Memo<Option<Plan>>,
}

/// Reads a configuration.
///
/// # Errors
/// What serde or the library says is wrong with it.
pub(crate) fn read(config: &str) -> Result<ModelShape, String> {
    let shape: ModelShape = serde_json::from_str(config).map_err(|error| error.to_string())?;
    shape.check()?;
    Ok(shape)
}

impl Question {
    /// Asks about a configuration that comes from somewhere.
    ///
    /// # Errors
    /// What is wrong with it; then it stays as it was asked before.
    pub(crate) fn configure(self, config: &str, origin: &str) -> Result<(), String> {
        let shape = read(config)?;
        // What matters of it is short enough for an address.
        self.config.set(serde_json::to_string(&shape).map_err(|error| error.to_string())?);
        self.origin.set(origin.to_owned());
        self.refused.set(None);
        Ok(())
    }

    /// Asks about the model that is known by its name.
    pub(crate) fn use_known(self) {
        self.config.set(String::new());
        self.origin.set(String::new());
        self.refused.set(None);
    }

    /// The question of the address.
    pub(crate) fn of_address() -> Self {
        let model = query_state("model", FIRST.to_owned());
        let config = query_state("config", String::new());
        let method = query_state("method", "qlora".to_owned());
        let rank = query_state("rank", 16.0);
        let targets = query_state("targets", String::new());
        let length = query_state("length", 2048.0);
        let batch = query_state("batch", 1.0);
        let accumulation = query_state("accumulation", 1.0);
        let packed = query_state("packed", 0.0);
        let recompute = query_state("recompute", true);
        let optimizer = query_state("optimizer", "adamw".to_owned());
        let paged = query_state("paged", false);
        let double_quant = query_state("double_quant", true);
        let dropout = query_state("dropout", false);
        let dtype = query_state("dtype", "bf16".to_owned());
        let refused = RwSignal::new(None);
        let shape = Memo::new(move |_| {
            if let Some(error) = refused.get() {
                return Err(error);
            }
            let config = config.get();
            if config.is_empty() {
                let name = model.get();
                return preset(&name).ok_or_else(|| format!("no model is known as `{name}`"));
            }
            read(&config)
        });
        let run = Memo::new(move |_| {
            let (length, batch) = (whole(length.get()), whole(batch.get()));
            let compute_dtype = if dtype.get() == "f32" { ComputeDtype::F32 } else { ComputeDtype::Bf16 };
            let method = match method.get().as_str() {
                "full" => Method::Full,
                "lora" => Method::Lora,
                _ => Method::Qlora,
            };
            Run {
                method,
                rank: whole(rank.get()),
                targets: targets.get().split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
                dropout: dropout.get(),
                batch,
                length,
                sequences: sequences(length, batch, packed.get() as u64),
                accumulation: whole(accumulation.get()),
                recompute: recompute.get(),
                optimizer: if optimizer.get() == "adamw8bit" { Optimizer::AdamW8bit } else { Optimizer::AdamW },
                optimizer_budget: paged.get().then_some(0),
                double_quant: double_quant.get(),
                weight_bytes: method.weight_bytes(compute_dtype),
                compute_dtype,
                ..Run::default()
            }
        });
        let plan =
            Memo::new(move |_| shape.with(|shape| shape.as_ref().ok().map(|shape| run.with(|run| plan(shape, run)))));
        let (origin, gpu) = (query_state("origin", String::new()), query_state("gpu", String::new()));
        Self {
            model,
            config,
            origin,
            refused,
            gpu,
            method,
            rank,
            targets,
            length,
            batch,
            accumulation,
            packed,
            recompute,
            optimizer,
            paged,
            double_quant,
            dropout,
            dtype,
            shape,
            run,
            plan,
        }
    }
}

/// A count of something that a run has at least one of, whatever an address says.
fn whole(count: f64) -> u64 {
    (count as u64).clamp(1, 1 << 24)
}

/// The sequences of `batch` rows of `length` tokens, each row packed with examples of `packed` tokens and what is left.
/// There are none to name where rows are not packed; nor more than a page can list.
fn sequences(length: u64, batch: u64, packed: u64) -> Vec<u64> {
    const MOST: u64 = 1 << 16;
    if packed == 0 || packed >= length || batch.saturating_mul(length / packed) > MOST {
        return vec![];
    }
    let row =
        std::iter::repeat_n(packed, (length / packed) as usize).chain(Some(length % packed).filter(|rest| *rest > 0));
    std::iter::repeat_n(row, batch as usize).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::{read, sequences};

    #[test]
    fn rows_are_filled_with_examples() {
        assert_eq!(sequences(10, 2, 4), [4, 4, 2, 4, 4, 2]);
        assert_eq!(sequences(8, 1, 4), [4, 4]);
        for none in [sequences(8, 1, 0), sequences(8, 1, 8), sequences(1 << 20, 64, 1)] {
            assert!(none.is_empty());
        }
    }

    #[test]
    fn a_broken_configuration_is_refused_with_its_key() {
        let cases = [
            ("{", "EOF"),
            ("{}", "`vocab_size`"),
            (r#"{"vocab_size": "x"}"#, "string \"x\""),
            (
                r#"{"vocab_size": 9, "hidden_size": 9, "intermediate_size": 9, "num_hidden_layers": 0, "num_attention_heads": 3}"#,
                "`num_hidden_layers` is 0",
            ),
        ];
        for (config, word) in cases {
            assert!(read(config).is_err_and(|error| error.contains(word)), "{config}: {:?}", read(config));
        }
    }
}
