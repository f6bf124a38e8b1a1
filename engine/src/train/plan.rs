//! What a model and a recipe's run are to the memory plan.

use std::path::Path;

use burn::tensor::FloatDType;
use halfbyte_memory::{Device, Method, ModelShape, Optimizer, Run};

use serde::Deserialize;
use serde_json::Value;

use super::backprop::Recompute;
use super::recipe::{EmbeddingDtype, Recipe};
use crate::lora::Targets;
use crate::model::dtype;
use crate::ops::ComputeDtype;
use crate::{Error, Result};

/// The shape of a model as the memory plan takes it, from its `config.json`; `path` is for messages.
///
/// # Errors
/// When it is not that of a decoder, or has sizes that no model has.
pub fn shape_of(path: impl AsRef<Path>, json: &[u8]) -> Result<ModelShape> {
    let refused = |reason: String| Error::file(path.as_ref(), reason);
    let not_understood = |e| refused(format!("not a configuration of a decoder: {e}"));
    let json: Value = serde_json::from_slice(json).map_err(not_understood)?;
    let in_16_bits = dtype(&json) != FloatDType::F32;
    let shape = ModelShape { in_16_bits, ..ModelShape::deserialize(json).map_err(not_understood)? };
    shape.check().map_err(refused)?;
    Ok(shape)
}

impl Recipe {
    /// The run that [`halfbyte_memory::plan`] takes. Lengths are the most that the recipe allows.
    pub fn memory(&self, model: &ModelShape, device: Device) -> Run {
        let targets = match &self.lora.target_modules {
            Targets::Names(names) => {
                let end = |name: &String| name.rsplit('.').next().unwrap_or_default().to_string();
                names.iter().map(end).collect()
            }
            // A pattern can single out layers; counted as all of them, which is the most it can be.
            Targets::Pattern(_) => model.linears().iter().map(|linear| linear.name.to_string()).collect(),
        };
        let (quantization, training) = (&self.quantization, &self.training);
        Run {
            method: if quantization.load_in_4bit { Method::Qlora } else { Method::Lora },
            rank: self.lora.rank_pattern.values().copied().fold(self.lora.r, usize::max) as u64,
            targets,
            dropout: self.lora.lora_dropout > 0.0,
            dora: self.lora.use_dora,
            modules_to_save: self.lora.modules_to_save.clone(),
            batch: training.batch_size as u64,
            length: self.data.max_length as u64,
            accumulation: training.gradient_accumulation_steps as u64,
            recompute: training.recompute != Recompute::None,
            inputs_on_host: training.recompute == Recompute::LayersFromHost,
            optimizer: if training.optim.is_8bit() { Optimizer::AdamW8bit } else { Optimizer::AdamW },
            optimizer_budget: training.optim_device_budget.0.filter(|_| training.optim.is_paged()),
            // What is not in 4 bits: embedding and head, or in f32 all that there is.
            weight_bytes: match quantization.embedding_dtype {
                _ if !quantization.load_in_4bit => 4,
                EmbeddingDtype::Auto => model.file_bytes(),
                EmbeddingDtype::F32 => 4,
                EmbeddingDtype::Bf16 | EmbeddingDtype::F16 => 2,
            },
            file_bytes: model.file_bytes(),
            compute_dtype: match quantization.compute_dtype {
                // What is not in 4 bits is trained in f32; in f16 gradients go through the products in f32, which may decode a weight whole.
                ComputeDtype::Bf16 if quantization.load_in_4bit => halfbyte_memory::ComputeDtype::Bf16,
                _ => halfbyte_memory::ComputeDtype::F32,
            },
            block_size: quantization.block_size as u64,
            double_quant: quantization.double_quant,
            loss_chunk: training.loss_chunk as u64,
            device,
            ..Run::default()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::train::parse_recipe;

    #[test]
    fn a_recipe_in_bf16_is_the_run_that_a_plan_takes_for_granted() {
        let model = halfbyte_memory::preset("llama-3.1-8b").unwrap();
        let text = "model = 'm'
            data.max_length = 2048
            training = { batch_size = 1, gradient_accumulation_steps = 1 }
            quantization = { compute_dtype = 'bf16' }
            lora = { r = 16, target_modules = 'all-linear' }";
        let recipe: Recipe = parse_recipe(Path::new("r.toml"), text, &[]).unwrap();
        let default = Run::default();
        let run = recipe.memory(&model, default.device);
        let names: Vec<String> = model.linears().iter().map(|linear| linear.name.to_string()).collect();
        assert_eq!(run, Run { targets: names, ..default });
    }
}
