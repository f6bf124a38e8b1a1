//! A decoder-only transformer over frozen weights, dense or in 4 bits. A model family is data: a row of [`FAMILIES`] and what
//! [`ModelConfig`] says.

mod attention;
mod config;
mod family;
mod layer;
mod linear;
mod load;
mod mlp;
mod names;
mod norm;
mod parameter;
mod parse;
mod pass;
mod projections;
mod rope;
mod save;
mod stage;
mod synthetic;
mod table;

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, IndexingUpdateOp, Int, Tensor, TensorData};

pub use attention::{Attention, LayerCache};
pub use config::{AttentionConfig, LayerKind, LinearConfig, ModelConfig};
pub use family::{Biases, FAMILIES, Family, Windows};
pub use layer::DecoderLayer;
pub(crate) use linear::in_type;
pub use linear::{Linear, Weight};
pub use load::{Base, BaseWeights, Loading, load, load_from, load_mapped, random};
pub use mlp::Mlp;
pub(crate) use names::{module_path, prefix_of, text_path};
pub use norm::RmsNorm;
pub(crate) use parameter::join;
pub use parameter::{Parameter, Shares};
pub(crate) use parse::dtype;
pub use pass::{Kind, Pass, View};
pub use projections::Projections;
pub use rope::{Llama3Scaling, LongRope, Rope, RopeConfig, Scaling, Yarn};
pub use save::save_dense;
pub(crate) use save::stored_shape;
pub(crate) use stage::{Away, moved};
pub use stage::{DeviceMap, Stage};
pub(crate) use synthetic::random_nf4;
pub use synthetic::synthetic;
pub use table::Table;

use crate::Result;
use crate::files::check_device;
use crate::lora::SQUARES;
use crate::ops::{ComputeDtype, Ops, Sequences};

/// Up to so many tokens activations are f32: products of so few rows need not round them, and there is little to hold.
pub const FEW_TOKENS: usize = 16;

/// The path of the embedding, and of the tied head.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// The whole model.
#[derive(Clone, Debug)]
pub struct Transformer<B: Backend> {
    /// Shape and constants.
    pub config: ModelConfig,
    /// `[vocab, hidden]`.
    pub embedding: Table<B>,
    /// The decoder layers, bottom first.
    pub layers: Vec<DecoderLayer<B>>,
    /// Which device holds which of them, bottom first.
    pub stages: Vec<Stage<B>>,
    /// The final norm and the output head.
    pub head: Head<B>,
    /// How each kind of layer sees sequences.
    pub kinds: Vec<Kind>,
    /// How the linear layers were asked to be held.
    pub base_weights: BaseWeights,
    /// What the operands of products are rounded to.
    pub compute: ComputeDtype,
    /// The type in which activations of more than [`FEW_TOKENS`] are held between the products of a layer.
    pub activations: FloatDType,
}

/// What turns the top layer's output into logits.
#[derive(Clone, Debug)]
pub struct Head<B: Backend> {
    /// Norm before the head.
    pub norm: RmsNorm<B>,
    /// `[vocab, hidden]`; the embedding itself where the model ties them.
    pub weight: Table<B>,
    /// The weight is the embedding.
    pub tied: bool,
    /// What the operands of the product with a weight in 16 bits are rounded to.
    pub compute: ComputeDtype,
    /// Logits are bounded to this much, by `cap · tanh(logit / cap)` (Gemma 2, arXiv:2408.00118, section 2).
    pub softcap: Option<f64>,
}

/// The keys and values of every layer.
pub type Cache<B> = Vec<Option<LayerCache<B>>>;

impl<B: Ops> Head<B> {
    /// `[tokens, hidden] -> [tokens, vocab]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let logits = self.weight.logits(self.norm.forward(x, FloatDType::F32), self.compute);
        match self.softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// Rebuilds the head with `f(path, parameter)` in place of every parameter; a tied weight goes by the embedding's path.
    pub fn map<C: Shares<B>>(&self, f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> Head<C> {
        let path = if self.tied { EMBEDDING } else { "lm_head.weight" };
        Head {
            norm: self.norm.map("model.norm", f),
            weight: self.weight.map(path, f),
            tied: self.tied,
            compute: self.compute,
            softcap: self.softcap,
        }
    }
}

impl<B: Ops> Transformer<B> {
    /// The device that the embedding is on; the whole model's where it has one stage.
    pub fn device(&self) -> B::Device {
        self.embedding.device()
    }

    /// Asks every device of the model whether it refused something since it was last asked.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when one did: what was computed since is wrong.
    pub(crate) fn check(&self) -> Result<()> {
        self.stages.iter().try_for_each(|stage| check_device::<B>(&stage.device))
    }

    /// The rows of the embedding for `tokens`: `[tokens, hidden]`.
    pub fn embed(&self, tokens: &[u32]) -> Tensor<B, 2> {
        self.scaled(self.embedding.rows(tokens))
    }

    /// The embedding's gradient `[vocab, hidden]` from that of [`embed`](Self::embed)'s result.
    pub fn embed_backward(&self, tokens: &[u32], d_embedded: Tensor<B, 2>) -> Tensor<B, 2> {
        let device = self.device();
        let rows = indices(tokens.iter().map(|t| *t as i32), &device);
        let zeros = Tensor::zeros(self.embedding.dims(), &device);
        zeros.select_assign(0, rows, self.scaled(d_embedded), IndexingUpdateOp::Add)
    }

    fn scaled(&self, embedded: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.config.embedding_scale {
            Some(scale) => embedded * scale,
            None => embedded,
        }
    }

    /// A pass over sequences, on the device of every stage.
    pub fn passes(&self, sequences: &Sequences) -> Vec<Pass<B>> {
        let activations = if sequences.tokens() > FEW_TOKENS { self.activations } else { FloatDType::F32 };
        let pass = |stage: &Stage<B>| {
            let heads = self.config.attention.heads;
            Pass { activations, ..Pass::new(&self.kinds, heads, sequences.clone(), self.compute, &stage.device) }
        };
        self.stages.iter().map(pass).collect()
    }

    /// Whether a cache that was filled while a sequence had `seen` tokens is of no use once it has `total`.
    pub fn outgrows_cache(&self, seen: usize, total: usize) -> bool {
        self.kinds.iter().any(|kind| kind.rope.changes(seen, total))
    }

    /// Hidden states of `tokens` after the last layer, before the head: `[tokens, hidden]`. There is a pass for each stage
    /// ([`passes`](Self::passes)); a cache holds one sequence.
    pub fn hidden(&self, tokens: &[u32], passes: &[Pass<B>], cache: Option<&mut Cache<B>>) -> Tensor<B, 2> {
        let mut slots: Vec<Option<&mut Option<LayerCache<B>>>> = match cache {
            Some(cache) => {
                cache.resize_with(self.layers.len(), || None);
                cache.iter_mut().map(Some).collect()
            }
            None => self.layers.iter().map(|_| None).collect(),
        };
        self.stages.iter().zip(passes).fold(self.embed(tokens), |x, (stage, pass)| {
            let range = stage.layers.clone();
            let layers = self.layers[range.clone()].iter().zip(&mut slots[range]);
            layers.fold(moved(x, &stage.device), |x, (layer, slot)| layer.forward(x, pass, slot.take()))
        })
    }

    /// All logits of whole sequences: `[tokens, vocab]`. For tests and small models: the trainer and the generator never
    /// hold them all.
    pub fn logits(&self, tokens: &[u32], lengths: &[usize]) -> Tensor<B, 2> {
        self.head.forward(self.hidden(tokens, &self.passes(&Sequences::new(lengths)), None))
    }

    /// Rebuilds the model with `f(path, parameter)` in place of every parameter, bottom to top; paths are Hugging Face's.
    pub fn map<C: Shares<B>>(&self, mut f: impl FnMut(&str, &Parameter<B>) -> Parameter<C>) -> Transformer<C> {
        let f = &mut f;
        let embedding = self.embedding.map(EMBEDDING, f);
        let layers = self.layers.iter().enumerate().map(|(i, layer)| layer.map(&layer_path(i), f)).collect();
        let mut head = self.head.map(f);
        if self.head.tied {
            head.weight = embedding.on(&self.head.weight.device());
        }
        let stage = |stage: &Stage<B>| Stage { device: stage.device.clone(), layers: stage.layers.clone() };
        let stages = self.stages.iter().map(stage).collect();
        let (config, kinds) = (self.config.clone(), self.kinds.clone());
        let (base_weights, compute, activations) = (self.base_weights, self.compute, self.activations);
        Transformer { config, embedding, layers, stages, head, kinds, base_weights, compute, activations }
    }

    /// Calls `f(path, parameter)` for every parameter, the tied head left out; for each part of a table that is in several.
    pub fn visit(&self, mut f: impl FnMut(&str, &Parameter<B>)) {
        let mut of_embedding = self.embedding.parts().len();
        self.map::<B>(|path, parameter| {
            if path != EMBEDDING || of_embedding > 0 {
                f(path, parameter);
            }
            of_embedding = of_embedding.saturating_sub(usize::from(path == EMBEDDING));
            parameter.clone()
        });
    }

    /// Every linear layer of the decoder layers with its path, for attaching and listing adapters.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear<B>)> {
        self.layers.iter_mut().enumerate().flat_map(|(i, layer)| {
            let of_attention = layer.self_attn.linears_mut().map(|(name, linear)| (join("self_attn", name), linear));
            let of_mlp = layer.mlp.linears_mut().map(|(name, linear)| (join("mlp", name), linear));
            of_attention.chain(of_mlp).map(move |(name, linear)| (join(&layer_path(i), &name), linear))
        })
    }

    /// The lowest decoder layer with a parameter that is trained; 0 where the embedding is, and as many as there are
    /// layers where only the head is.
    pub fn lowest_trained(&self) -> usize {
        if self.embedding.trainable() {
            return 0;
        }
        let trained = |layer: &DecoderLayer<B>| {
            let mut trained = false;
            layer.map::<B>("", &mut |_, parameter| {
                trained |= parameter.trainable;
                parameter.clone()
            });
            trained
        };
        self.layers.iter().position(trained).unwrap_or(self.layers.len())
    }

    /// How many parameters are trained, and how many there are in all (4-bit weights counted by their elements).
    pub fn parameter_counts(&mut self) -> (usize, usize) {
        let (mut trained, mut all) = (0, 0);
        self.visit(|path, parameter| {
            if path.ends_with(SQUARES) {
                return;
            }
            let count = parameter.value.shape().num_elements();
            all += count;
            trained += if parameter.trainable { count } else { 0 };
        });
        for (_, linear) in self.linears_mut() {
            if let Weight::Nf4(weight) = &linear.weight {
                all += weight.shape().iter().product::<usize>();
            }
        }
        (trained, all)
    }
}

/// `model.layers.I`.
pub(crate) fn layer_path(index: usize) -> String {
    format!("model.layers.{index}")
}

/// Of a path in a decoder layer, the layer's index and the rest.
pub(crate) fn in_layer(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix("model.layers.")?.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

/// Row numbers as a device tensor.
pub(crate) fn indices<B: Backend>(values: impl Iterator<Item = i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i32> = values.collect();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}
