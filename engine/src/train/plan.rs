//! What a recipe's run is to the memory plan.

use halfbyte_memory::{Device, Method, ModelShape, Optimizer, Run};

use super::backprop::Recompute;
use super::recipe::{EmbeddingDtype, Recipe};
use crate::lora::Targets;
use crate::ops::ComputeDtype;

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
                EmbeddingDtype::F32 => 4,
                _ if quantization.load_in_4bit => 2,
                _ => 4,
            },
            activation_bytes: 4,
            // In f16 gradients go through the products in f32, which may decode a weight whole.
            compute_16bit: quantization.load_in_4bit && quantization.compute_dtype == ComputeDtype::Bf16,
            block_size: quantization.block_size as u64,
            double_quant: quantization.double_quant,
            loss_chunk: training.loss_chunk as u64,
            device,
            ..Run::default()
        }
    }
}
