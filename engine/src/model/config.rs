//! What a decoder-only transformer looks like: sizes, constants, and what kinds of layer it has.

use burn::tensor::FloatDType;

use super::family::{Biases, Family};
use super::rope::RopeConfig;
use crate::ops::Activation;
use crate::{Error, Result};

/// The shape and constants of a decoder; [`parse`](Self::parse) reads them from a Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family that it belongs to.
    pub family: &'static Family,
    /// What its tensors' names begin with in files, before the names of the family; empty but for the text model of a
    /// multi-modal one.
    pub prefix: &'static str,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Heads, and what becomes of the scores.
    pub attention: AttentionConfig,
    /// The kinds of layer that occur, at least one.
    pub kinds: Vec<LayerKind>,
    /// Which of them each layer is.
    pub layer_kinds: Vec<usize>,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f64,
    /// The function on the gate of the MLP.
    pub activation: Activation,
    /// What embeddings are multiplied by.
    pub embedding_scale: Option<f64>,
    /// What logits are bounded to, by `cap · tanh(logit / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// The output head is the embedding.
    pub tied: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// A bias on o.
    pub output_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Positions that the model was trained on.
    pub max_positions: usize,
    /// What its files hold floats in, as far as it says so; else f32.
    pub dtype: FloatDType,
}

/// A linear layer: path inside its decoder layer, `[out, in]`, and whether it has a bias.
pub type LinearConfig = (&'static str, [usize; 2], bool);

/// The heads of the attention, and what becomes of the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads` (grouped-query attention, arXiv:2305.13245).
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// What scores are then bounded to, by `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// How layers see their sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerKind {
    /// Tokens that a query sees, its own among them; all of its sequence where absent.
    pub window: Option<usize>,
    /// Positions.
    pub rope: RopeConfig,
}

impl ModelConfig {
    /// Checks that the embedding has a row for every token.
    ///
    /// # Errors
    /// On the first token that it has none for.
    pub fn check_tokens<'a>(&self, tokens: impl IntoIterator<Item = &'a u32>) -> Result<()> {
        match tokens.into_iter().find(|token| **token as usize >= self.vocab_size) {
            Some(token) => Err(Error::Invalid(format!(
                "token {token} is outside the vocabulary of {}; the tokenizer belongs to another model",
                self.vocab_size
            ))),
            None => Ok(()),
        }
    }

    /// Columns of q, k and v.
    pub(super) fn qkv_widths(&self) -> [usize; 3] {
        let AttentionConfig { heads, kv_heads, head_dim, .. } = self.attention;
        [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    }

    /// The linear layers of a decoder layer as they are stored: path inside the layer, `[out, in]`, and whether it has a
    /// bias.
    pub fn linears(&self) -> Vec<LinearConfig> {
        [self.qkv(), vec![self.output()], self.gate_up(), vec![self.down()]].concat()
    }

    /// Those on q, k and v.
    pub(super) fn qkv(&self) -> Vec<LinearConfig> {
        let (input, bias) = (self.hidden_size, self.qkv_bias);
        let [q, k, v] = self.qkv_widths();
        match self.family.fused {
            true => vec![("self_attn.qkv_proj", [q + k + v, input], bias)],
            false => vec![
                ("self_attn.q_proj", [q, input], bias),
                ("self_attn.k_proj", [k, input], bias),
                ("self_attn.v_proj", [v, input], bias),
            ],
        }
    }

    /// That on the attention's result.
    pub(super) fn output(&self) -> LinearConfig {
        ("self_attn.o_proj", [self.hidden_size, self.qkv_widths()[0]], self.output_bias)
    }

    /// Those on gate and up.
    pub(super) fn gate_up(&self) -> Vec<LinearConfig> {
        let (inner, input, bias) = (self.intermediate_size, self.hidden_size, self.mlp_bias);
        match self.family.fused {
            true => vec![("mlp.gate_up_proj", [2 * inner, input], bias)],
            false => vec![("mlp.gate_proj", [inner, input], bias), ("mlp.up_proj", [inner, input], bias)],
        }
    }

    /// That on their product.
    pub(super) fn down(&self) -> LinearConfig {
        ("mlp.down_proj", [self.hidden_size, self.intermediate_size], self.mlp_bias)
    }

    /// All parameters, the tied head counted once.
    pub fn parameters(&self) -> u64 {
        let linear = |([out, input], bias): ([usize; 2], bool)| (out * input + if bias { out } else { 0 }) as u64;
        let linears: u64 = self.linears().iter().map(|(_, shape, bias)| linear((*shape, *bias))).sum();
        let hidden = self.hidden_size as u64;
        let norms = if self.family.norms_around_mlp { 4 } else { 2 } * hidden
            + if self.family.qk_norm { 2 * self.attention.head_dim as u64 } else { 0 };
        let embeddings = self.vocab_size as u64 * hidden * if self.tied { 1 } else { 2 };
        embeddings + self.layers as u64 * (linears + norms) + hidden
    }
}

impl Biases {
    /// Whether q, k and v, then o, then the MLP's layers have biases, given `attention_bias` and `mlp_bias`.
    pub(super) fn resolve(self, attention: bool, mlp: bool) -> [bool; 3] {
        match self {
            Self::None => [false; 3],
            Self::Configured => [attention, attention, mlp],
            Self::Qkv => [true, false, false],
        }
    }
}
