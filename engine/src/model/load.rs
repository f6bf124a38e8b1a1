//! Building a model on a device: from a folder, one tensor at a time, or from random weights.

use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::LinearConfig;
use super::{
    Attention, DecoderLayer, DeviceMap, EMBEDDING, Head, Kind, Linear, Mlp, ModelConfig, Parameter, Projections,
    RmsNorm, Rope, Stage, Table, Transformer, Weight, join, layer_path,
};
use crate::files::{Checkpoint, is_quantized, nf4_weight, quantized};
use crate::nf4::{Absmax, Nf4Data};
use crate::ops::{ComputeDtype, Nf4Weight, Ops};
use crate::{Error, Result};

/// How the linear layers of the decoder are held on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseWeights {
    /// NF4 with this block size, its scales quantized again or not.
    Nf4 {
        /// Elements that share a scale.
        block_size: usize,
        /// Whether the scales are themselves quantized to 8 bits.
        double_quant: bool,
    },
    /// f32, as they are.
    Full,
}

/// How a frozen model is held on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Base {
    /// The linear layers of the decoder.
    pub linears: BaseWeights,
    /// Embedding and head; where absent, what the model's files hold floats in ([`ModelConfig::dtype`]).
    pub tables: Option<FloatDType>,
    /// What the operands of products are rounded to.
    pub compute: ComputeDtype,
}

impl From<BaseWeights> for Base {
    fn from(linears: BaseWeights) -> Self {
        Self { linears, tables: Some(FloatDType::F32), compute: ComputeDtype::F32 }
    }
}

impl BaseWeights {
    /// As this weight is held.
    fn of(data: &Nf4Data) -> Self {
        Self::Nf4 { block_size: data.block_size, double_quant: matches!(data.absmax, Absmax::Double { .. }) }
    }

    /// Linear layers held so, and embedding and head as the model's files hold them; in f32 where all is.
    pub fn as_stored(self) -> Base {
        Base { tables: if self == Self::Full { Some(FloatDType::F32) } else { None }, ..self.into() }
    }
}

impl Base {
    /// # Errors
    /// When a device computes no products in the type that is asked for.
    pub(super) fn check<B: Ops>(&self, stages: &[Stage<B>]) -> Result<()> {
        if self.compute != ComputeDtype::F32 && self.linears == BaseWeights::Full {
            let reason = "quantization.compute_dtype is of products with 4-bit weights: leave it at f32 with load_in_4bit = false";
            return Err(Error::Invalid(reason.into()));
        }
        stages.iter().try_for_each(|stage| self.compute.check::<B>(&stage.device))
    }
}

/// Where the values of a model come from.
pub(super) trait Values<B: Backend> {
    /// What comes next goes to this device.
    fn enter(&mut self, device: &B::Device);

    /// A parameter of this shape; `dims` is the shape in the file.
    fn parameter(&mut self, path: &str, shape: [usize; 2], dims: &[usize]) -> Result<Parameter<B>>;

    /// The weight of a linear layer.
    fn weight(&mut self, path: &str, shape: [usize; 2]) -> Result<Weight<B>>;

    /// Embedding or head.
    fn table(&mut self, path: &str, shape: [usize; 2]) -> Result<Table<B>>;
}

/// How far loading has come, before the tensor at `path`.
#[derive(Clone, Copy, Debug)]
pub struct Loading<'a> {
    /// Of the tensor that comes next.
    pub path: &'a str,
    /// Bytes of tensors that were read so far.
    pub read: u64,
    /// Bytes of all tensors of the files.
    pub all: u64,
}

/// Loads the model of a Hugging Face folder. A weight that is quantized goes to the device in the type that it has in the file; each
/// tensor is done before the next is touched, so that no more than one is held as it was; the system reads ahead meanwhile. `progress` is told of each tensor.
///
/// # Errors
/// When a file is missing or broken, or a tensor does not have the shape that the configuration asks for.
pub fn load<B: Ops>(
    folder: &Path,
    base: impl Into<Base>,
    device: &B::Device,
    progress: &mut dyn FnMut(Loading),
) -> Result<Transformer<B>> {
    load_mapped(folder, base, &DeviceMap::Whole(device.clone()), progress)
}

/// [`load`] over several devices.
///
/// # Errors
/// As [`load`], and when the map is not one of as many layers as the model has.
pub fn load_mapped<B: Ops>(
    folder: &Path,
    base: impl Into<Base>,
    map: &DeviceMap<B>,
    progress: &mut dyn FnMut(Loading),
) -> Result<Transformer<B>> {
    load_from(ModelConfig::from_folder(folder)?, &Checkpoint::open(folder)?, base, map, progress)
}

/// [`load_mapped`] of a model whose files are open.
///
/// # Errors
/// When a tensor is missing or does not have the shape that the configuration asks for, or as [`load_mapped`].
pub fn load_from<B: Ops>(
    config: ModelConfig,
    file: &Checkpoint,
    base: impl Into<Base>,
    map: &DeviceMap<B>,
    progress: &mut dyn FnMut(Loading),
) -> Result<Transformer<B>> {
    let base = base.into();
    let stages = map.stages(config.layer_kinds.len())?;
    base.check(&stages)?;
    let (names, quantized, device) = (config.clone(), is_quantized(file), B::Device::default());
    let mut values = FromFile { file, names, quantized, base, stored: None, device, progress };
    let model = build(config, base, stages, &mut values)?;
    let base_weights = values.stored.unwrap_or(model.base_weights);
    Ok(Transformer { base_weights, ..model })
}

/// A model of `config` with random weights, every parameter trainable: normal with deviation 0.02, biases zero, norms as
/// they change nothing (transformers, `LlamaPreTrainedModel._init_weights`).
///
/// # Errors
/// None that a valid configuration causes.
pub fn random<B: Ops>(config: ModelConfig, seed: u64, device: &B::Device) -> Result<Transformer<B>> {
    let norm = 1.0 - config.family.norm_offset as f32;
    let stages = DeviceMap::Whole(device.clone()).stages(config.layer_kinds.len())?;
    let (random, device) = (ChaCha8Rng::seed_from_u64(seed), device.clone());
    build(config, BaseWeights::Full.into(), stages, &mut Random::<B> { random, norm, device })
}

struct FromFile<'a, B: Backend> {
    file: &'a Checkpoint,
    /// Tells what tensors are called in the file.
    names: ModelConfig,
    /// The file holds 4-bit weights: those that are not in 4 bits stay as they are, as `llm_int8_skip_modules` asked.
    quantized: bool,
    base: Base,
    /// How the file holds them, whatever was asked for.
    stored: Option<BaseWeights>,
    device: B::Device,
    progress: &'a mut dyn FnMut(Loading),
}

impl<B: Backend> FromFile<'_, B> {
    fn tell(&mut self, path: &str) {
        let [read, all] = self.file.progress();
        (self.progress)(Loading { path, read, all });
    }

    /// The name of the parameter at `path` in the file.
    fn name(&self, path: &str) -> String {
        let [older, newer] = self.names.names_in_files(path);
        if self.file.contains(&newer) { newer } else { older }
    }
}

impl<B: Ops> Values<B> for FromFile<'_, B> {
    fn enter(&mut self, device: &B::Device) {
        self.device = device.clone();
    }

    fn parameter(&mut self, path: &str, shape: [usize; 2], dims: &[usize]) -> Result<Parameter<B>> {
        self.tell(path);
        let name = self.name(path);
        Ok(Parameter::frozen(self.file.floats(&name, dims)?, shape, &self.device))
    }

    fn weight(&mut self, path: &str, shape: [usize; 2]) -> Result<Weight<B>> {
        let name = self.name(path);
        let stored = nf4_weight(self.file, &name, shape)?;
        self.stored = self.stored.or(stored.as_ref().map(BaseWeights::of));
        let data = match (stored, self.base.linears) {
            (None, BaseWeights::Nf4 { .. }) if self.quantized => {
                return Ok(Weight::Dense(self.parameter(path, shape, &shape)?));
            }
            (None, BaseWeights::Full) => return Ok(Weight::Dense(self.parameter(path, shape, &shape)?)),
            (Some(data), BaseWeights::Full) => {
                self.tell(path);
                return Ok(Weight::Dense(Parameter::frozen(data.dequantize(), shape, &self.device)));
            }
            (Some(data), BaseWeights::Nf4 { .. }) => data,
            (None, BaseWeights::Nf4 { block_size, double_quant }) => {
                self.tell(path);
                let values = self.file.data(&name, &shape)?;
                let weight = quantize(values, shape, (block_size, double_quant), &self.device);
                return weight.map(|weight| Weight::Nf4(weight.computing(self.base.compute))).map_err(
                    |error| match error {
                        Error::Invalid(reason) => Error::file(&self.file.path, format!("tensor `{name}`: {reason}")),
                        other => other,
                    },
                );
            }
        };
        self.tell(path);
        Ok(Weight::Nf4(Nf4Weight::upload(&data, &self.device)?.computing(self.base.compute)))
    }

    /// In its own type before it comes to the device: f32 beside it would take a page that is never given back.
    fn table(&mut self, path: &str, shape: [usize; 2]) -> Result<Table<B>> {
        self.tell(path);
        let dtype = self.base.tables.unwrap_or(self.names.dtype);
        let data = self.file.floats_as(&self.name(path), &shape, dtype)?;
        Ok(Table::upload(data, &self.device))
    }
}

/// Quantizes on the device, where it can hold the weight as it comes; to the same bits on the host, where it cannot.
fn quantize<B: Ops>(
    values: TensorData,
    shape: [usize; 2],
    (block_size, double_quant): (usize, bool),
    device: &B::Device,
) -> Result<Nf4Weight<B>> {
    // A browser's thread cannot wait for its device.
    #[cfg(not(target_arch = "wasm32"))]
    if values.bytes.len() as u64 <= B::largest_tensor(device) {
        return pollster::block_on(Nf4Weight::quantize(values, shape, block_size, double_quant, device));
    }
    Nf4Weight::upload(&quantized(&values, shape, block_size, double_quant)?, device)
}

struct Random<B: Backend> {
    random: ChaCha8Rng,
    /// The norms' weights.
    norm: f32,
    device: B::Device,
}

impl<B: Ops> Values<B> for Random<B> {
    fn enter(&mut self, device: &B::Device) {
        self.device = device.clone();
    }

    fn parameter(&mut self, path: &str, shape: [usize; 2], _dims: &[usize]) -> Result<Parameter<B>> {
        let count = shape[0] * shape[1];
        let values = if path.contains("norm") {
            vec![self.norm; count]
        } else if path.ends_with("bias") {
            vec![0.0; count]
        } else {
            (0..count).map(|_| 0.02 * self.normal()).collect()
        };
        Ok(Parameter { trainable: true, ..Parameter::frozen(values, shape, &self.device) })
    }

    fn weight(&mut self, path: &str, shape: [usize; 2]) -> Result<Weight<B>> {
        Ok(Weight::Dense(self.parameter(path, shape, &shape)?))
    }

    fn table(&mut self, path: &str, shape: [usize; 2]) -> Result<Table<B>> {
        Ok(self.parameter(path, shape, &shape)?.into())
    }
}

impl<B: Backend> Random<B> {
    /// A standard normal value, by the Box-Muller transform.
    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.random.random::<f64>()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.random.random::<f64>()).cos()) as f32
    }
}

/// Puts a model together, bottom to top.
pub(super) fn build<B: Ops>(
    config: ModelConfig,
    base: Base,
    stages: Vec<Stage<B>>,
    values: &mut impl Values<B>,
) -> Result<Transformer<B>> {
    let hidden = config.hidden_size;
    let ends = [stages.first(), stages.last()].map(|stage| stage.map(|stage| stage.device.clone()).unwrap_or_default());
    let [bottom, top] = &ends;
    values.enter(bottom);
    let embedding = values.table(EMBEDDING, [config.vocab_size, hidden])?;
    let mut layers = Vec::with_capacity(config.layer_kinds.len());
    for stage in &stages {
        values.enter(&stage.device);
        for i in stage.layers.clone() {
            layers.push(layer(&config, &layer_path(i), config.layer_kinds[i], values)?);
        }
    }
    let norm = norm(&config, "model.norm", hidden, values)?;
    let weight = match config.tied {
        true => embedding.on(top),
        false => values.table("lm_head.weight", [config.vocab_size, hidden])?,
    };
    let Base { linears: base_weights, compute, .. } = base;
    let head = Head { norm, weight, tied: config.tied, compute, softcap: config.final_logit_softcapping };
    let kinds = config.kinds.iter().map(|kind| Kind { window: kind.window, rope: Rope::new(&kind.rope) }).collect();
    let activations = compute.activations();
    Ok(Transformer { config, embedding, layers, stages, head, kinds, base_weights, compute, activations })
}

fn layer<B: Ops>(
    config: &ModelConfig,
    path: &str,
    kind: usize,
    values: &mut impl Values<B>,
) -> Result<DecoderLayer<B>> {
    let family = config.family;
    let hidden = config.hidden_size;
    let qk_norm = match family.qk_norm {
        true => Some(two(config, path, ["self_attn.q_norm", "self_attn.k_norm"], config.attention.head_dim, values)?),
        false => None,
    };
    let around_mlp = match family.norms_around_mlp {
        true => Some(two(config, path, ["pre_feedforward_layernorm", "post_feedforward_layernorm"], hidden, values)?),
        false => None,
    };
    let self_attn = Attention {
        qkv: Projections { linears: linears(path, config.qkv(), values)?, widths: config.qkv_widths() },
        o_proj: linear(path, config.output(), values)?,
        qk_norm,
        config: config.attention,
        kind,
    };
    let mlp = Mlp {
        gate_up: Projections {
            linears: linears(path, config.gate_up(), values)?,
            widths: [config.intermediate_size; 2],
        },
        down_proj: linear(path, config.down(), values)?,
        activation: config.activation,
    };
    Ok(DecoderLayer {
        input_layernorm: norm(config, &join(path, "input_layernorm"), hidden, values)?,
        self_attn,
        post_attention_layernorm: norm(config, &join(path, "post_attention_layernorm"), hidden, values)?,
        mlp,
        around_mlp,
    })
}

fn linear<B: Ops>(layer: &str, (name, shape, bias): LinearConfig, values: &mut impl Values<B>) -> Result<Linear<B>> {
    let path = join(layer, name);
    let weight = values.weight(&join(&path, "weight"), shape)?;
    let bias = bias.then(|| values.parameter(&join(&path, "bias"), [1, shape[0]], &[shape[0]])).transpose()?;
    Ok(Linear { weight, bias, lora: None })
}

/// Linear layers with their names inside the block.
fn linears<B: Ops>(
    layer: &str,
    configs: Vec<LinearConfig>,
    values: &mut impl Values<B>,
) -> Result<Vec<(&'static str, Linear<B>)>> {
    let mut named = |config: LinearConfig| -> Result<_> {
        let name = config.0.rsplit_once('.').map_or(config.0, |(_, name)| name);
        Ok((name, linear(layer, config, values)?))
    };
    configs.into_iter().map(&mut named).collect()
}

fn norm<B: Ops>(config: &ModelConfig, path: &str, width: usize, values: &mut impl Values<B>) -> Result<RmsNorm<B>> {
    let weight = values.parameter(&join(path, "weight"), [1, width], &[width])?;
    Ok(RmsNorm { weight, offset: config.family.norm_offset, eps: config.rms_norm_eps })
}

fn two<B: Ops>(
    config: &ModelConfig,
    layer: &str,
    [first, second]: [&str; 2],
    width: usize,
    values: &mut impl Values<B>,
) -> Result<[RmsNorm<B>; 2]> {
    let first = norm(config, &join(layer, first), width, values)?;
    Ok([first, norm(config, &join(layer, second), width, values)?])
}
