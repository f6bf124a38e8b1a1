//! A model of any shape whose weights are made up, for tests and measurements without a download.

use std::collections::HashMap;

use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, FloatDType, Tensor, TensorData};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use super::load::{Values, build};
use super::{Base, BaseWeights, DeviceMap, ModelConfig, Parameter, Table, Transformer, Weight};
use crate::Result;
use crate::nf4::{self, Absmax, NESTED_BLOCK_SIZE, Nf4Data};
use crate::ops::{Nf4Weight, Ops};

/// Standard deviation of the weights (transformers, `initializer_range`).
const DEVIATION: f64 = 0.02;
/// The scale under which codes that are all as frequent have that deviation: it over the root mean square of the 16 levels.
const ABSMAX: f32 = 0.0387;
/// Random values of a table, which come again and again.
const REPEATED: usize = 1 << 20;
/// How far scales are from it at most.
const SPREAD: f32 = 0.004;

/// A model of `config` whose weights are random and frozen, made on its devices: a linear layer in 4 bits is random codes under
/// scales that are nearly alike, so that nothing is quantized and the host never holds a weight in f32. NF4's levels are chosen so
/// that normal weights give every code as often (arXiv:2305.14314, section 3). Weights of one shape are the same in all layers: 70B are
/// made in less than a minute. The same seed gives the same model on one backend.
///
/// # Errors
/// When the block size is none, the map is of another number of layers, or a device fails.
pub fn synthetic<B: Ops>(
    config: ModelConfig,
    base: impl Into<Base>,
    seed: u64,
    map: &DeviceMap<B>,
    progress: &mut dyn FnMut(&str),
) -> Result<Transformer<B>> {
    let base = base.into();
    let stages = map.stages(config.layer_kinds.len())?;
    base.check(&stages)?;
    if let BaseWeights::Nf4 { block_size, .. } = base.linears {
        nf4::check_block_size(block_size)?;
    }
    stages.iter().for_each(|stage| B::seed(&stage.device, seed));
    let norm = 1.0 - config.family.norm_offset;
    let random = SmallRng::seed_from_u64(seed);
    let device = B::Device::default();
    let tables = base.tables.unwrap_or(config.dtype);
    build(
        config,
        base,
        stages,
        &mut Synthetic::<B> { base, tables, random, made: HashMap::new(), norm, device, progress },
    )
}

/// A weight of random codes under scales that are nearly alike: quantizing random weights would take longer, and give no other.
///
/// # Errors
/// When the shape has more elements than a weight can have.
pub(crate) fn random_nf4(
    shape: [usize; 2],
    block_size: usize,
    double_quant: bool,
    random: &mut impl Rng,
) -> Result<Nf4Data> {
    let count = nf4::checked_count(shape)?;
    let blocks = count.div_ceil(block_size);
    let mut bytes = |length: usize| {
        let mut bytes = vec![0u8; length];
        random.fill_bytes(&mut bytes);
        bytes
    };
    let packed = bytes(count.div_ceil(2)).into();
    let absmax = match double_quant {
        true => Absmax::Double {
            codes: bytes(blocks),
            nested: vec![SPREAD; blocks.div_ceil(NESTED_BLOCK_SIZE)],
            offset: ABSMAX,
        },
        false => Absmax::Plain(vec![ABSMAX; blocks]),
    };
    Ok(Nf4Data { shape, block_size, packed, absmax })
}

struct Synthetic<'a, B: Backend> {
    base: Base,
    tables: FloatDType,
    random: SmallRng,
    /// The weights of each shape: those of all layers are alike.
    made: HashMap<[usize; 2], Nf4Data>,
    /// The norms' weights.
    norm: f64,
    device: B::Device,
    progress: &'a mut dyn FnMut(&str),
}

impl<B: Ops> Values<B> for Synthetic<'_, B> {
    fn enter(&mut self, device: &B::Device) {
        self.device = device.clone();
    }

    fn parameter(&mut self, path: &str, shape: [usize; 2], _dims: &[usize]) -> Result<Parameter<B>> {
        (self.progress)(path);
        let value = match path {
            path if path.contains("norm") => Tensor::full(shape, self.norm, &self.device),
            path if path.ends_with("bias") => Tensor::zeros(shape, &self.device),
            _ => Tensor::random(shape, Distribution::Normal(0.0, DEVIATION), &self.device),
        };
        Ok(Parameter { value, trainable: false })
    }

    fn weight(&mut self, path: &str, shape: [usize; 2]) -> Result<Weight<B>> {
        let BaseWeights::Nf4 { block_size, double_quant } = self.base.linears else {
            return Ok(Weight::Dense(self.parameter(path, shape, &shape)?));
        };
        (self.progress)(path);
        if !self.made.contains_key(&shape) {
            self.made.insert(shape, random_nf4(shape, block_size, double_quant, &mut self.random)?);
        }
        Ok(Weight::Nf4(Nf4Weight::upload(&self.made[&shape], &self.device)?.computing(self.base.compute)))
    }

    /// Evenly distributed, on the host: see the table of a file.
    fn table(&mut self, path: &str, shape: [usize; 2]) -> Result<Table<B>> {
        (self.progress)(path);
        let bound = (DEVIATION * 3f64.sqrt()) as f32;
        let count = shape[0] * shape[1];
        let some: Vec<f32> = (0..count.min(REPEATED)).map(|_| self.random.random_range(-bound..bound)).collect();
        let values = some.iter().copied().cycle().take(count).collect();
        let data = TensorData::new::<f32, _>(values, shape).convert_dtype(self.tables.into());
        Ok(Table::upload(data, &self.device))
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use crate::backends::Cpu;
    use crate::model::{BaseWeights, DeviceMap, ModelConfig, Weight, synthetic};

    #[test]
    fn weights_have_the_deviation_of_new_ones() {
        let json =
            br#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 128,
            "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "rms_norm_eps": 1e-5}"#;
        for double_quant in [false, true] {
            let config = ModelConfig::parse("config.json", json).expect("a model");
            let base = BaseWeights::Nf4 { block_size: 64, double_quant };
            let place = DeviceMap::Whole(Default::default());
            let make = || synthetic::<Cpu>(config.clone(), base, 3, &place, &mut |_| {}).expect("a model");
            let values = || {
                let model = make();
                let Weight::Nf4(weight) = &model.layers[0].mlp.down_proj.weight else { panic!("a weight in 4 bits") };
                weight.dequantize().into_data().to_vec::<f32>().expect("f32")
            };
            let weights = values();
            let deviation = (weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32).sqrt();
            assert!((deviation - 0.02).abs() < 1e-3, "{deviation}");
            assert_eq!(weights, values());
            assert!(
                make().logits(&[1, 2, 3], &[3]).into_data().to_vec::<f32>().expect("f32").iter().all(|x| x.is_finite())
            );
        }
    }
}
