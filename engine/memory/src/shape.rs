//! The shape of a decoder-only transformer, and its parameters counted.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use serde::{Deserialize, Serialize};

/// A linear layer of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Its name in the decoder layer.
    pub name: &'static str,
    /// Output features.
    pub out: u64,
    /// Input features.
    pub input: u64,
    /// Whether it has a bias.
    pub bias: bool,
    /// It is stored as one with the layer before it.
    pub fused: bool,
}

impl LinearShape {
    /// Elements of the weight.
    pub fn elements(&self) -> u64 {
        self.out * self.input
    }
}

/// What of a Hugging Face `config.json` decides the memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Config")]
pub struct ModelShape {
    /// Rows of the embedding.
    pub vocab_size: u64,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Width inside the MLP.
    pub intermediate_size: u64,
    /// Decoder layers.
    #[serde(rename = "num_hidden_layers")]
    pub layers: u64,
    /// Query heads.
    #[serde(rename = "num_attention_heads")]
    pub heads: u64,
    /// Key and value heads; absent means as many as query heads.
    #[serde(rename = "num_key_value_heads")]
    pub kv_heads: Option<u64>,
    /// Width of a head; absent means `hidden_size / heads`.
    pub head_dim: Option<u64>,
    /// The output head is the embedding.
    #[serde(rename = "tie_word_embeddings")]
    pub tied: bool,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// `model_type` of the configuration, for what a family has without saying so: Qwen2 biases on q, k and v, Qwen3 and
    /// Gemma 3 norms on heads, Gemma norms around the MLP.
    pub model_type: String,
    /// Its files hold floats in bf16 or f16, as nearly all do: what is deserialized is taken to, and `halfbyte::train::shape_of` looks.
    #[serde(skip_serializing)]
    pub in_16_bits: bool,
}

/// The keys as files have them; a multi-modal model's are in `text_config`.
#[derive(Deserialize)]
struct Config {
    text_config: Option<Box<Config>>,
    vocab_size: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    model_type: String,
}

impl TryFrom<Config> for ModelShape {
    type Error = String;

    /// Fills in what transformers' class of the family takes for an absent key.
    fn try_from(config: Config) -> Result<Self, String> {
        if let Some(text) = config.text_config {
            return Self::try_from(*text);
        }
        let kind = config.model_type.as_str();
        let gemma3 = kind.starts_with("gemma3");
        let gemma = gemma3 || kind == "gemma2";
        let head_dim = if gemma { Some(256) } else { (kind == "qwen3").then_some(128) };
        let needed = |key: &str, value: Option<u64>| value.ok_or_else(|| format!("missing field `{key}`"));
        Ok(Self {
            vocab_size: needed("vocab_size", config.vocab_size.or(gemma3.then_some(262_208)))?,
            hidden_size: needed("hidden_size", config.hidden_size)?,
            intermediate_size: needed("intermediate_size", config.intermediate_size)?,
            layers: needed("num_hidden_layers", config.num_hidden_layers)?,
            heads: needed("num_attention_heads", config.num_attention_heads.or(gemma3.then_some(8)))?,
            kv_heads: config.num_key_value_heads.or(gemma3.then_some(4)),
            head_dim: config.head_dim.or(head_dim),
            tied: config.tie_word_embeddings.unwrap_or(gemma),
            attention_bias: config.attention_bias,
            mlp_bias: config.mlp_bias,
            model_type: config.model_type,
            in_16_bits: true,
        })
    }
}

impl ModelShape {
    /// Bytes of a float in its files.
    pub fn file_bytes(&self) -> u64 {
        if self.in_16_bits { 2 } else { 4 }
    }

    /// Checks that every size is one that a model can have, which keeps all sums of a plan inside 64 bits.
    ///
    /// # Errors
    /// A sentence that names the key and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.layers, 1 << 12),
            ("num_attention_heads", self.heads, 1 << 12),
            ("num_key_value_heads", self.kv(), self.heads),
            ("head_dim", self.head(), 1 << 12),
        ];
        match sizes.into_iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            Some((key, size, most)) => Err(format!("`{key}` is {size}; it must lie in 1..={most}")),
            None => Ok(()),
        }
    }

    /// Key and value heads.
    pub fn kv(&self) -> u64 {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// Width of a head.
    pub fn head(&self) -> u64 {
        self.head_dim.unwrap_or(self.hidden_size / self.heads.max(1))
    }

    /// The seven linear layers of a decoder layer. Phi-3 stores q, k and v as one and gate and up as one.
    pub fn linears(&self) -> [LinearShape; 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head(), self.kv() * self.head());
        let qkv = self.attention_bias || self.model_type == "qwen2";
        let linear = |name, out, input, bias| LinearShape { name, out, input, bias, fused: false };
        let fused = self.model_type == "phi3";
        let behind = |name, out, input, bias| LinearShape { fused, ..linear(name, out, input, bias) };
        [
            linear("q_proj", q, hidden, qkv),
            behind("k_proj", kv, hidden, qkv),
            behind("v_proj", kv, hidden, qkv),
            linear("o_proj", hidden, q, self.attention_bias),
            linear("gate_proj", inner, hidden, self.mlp_bias),
            behind("up_proj", inner, hidden, self.mlp_bias),
            linear("down_proj", hidden, inner, self.mlp_bias),
        ]
    }

    /// Elements of all linear weights of the decoder layers: what QLoRA holds in 4 bits.
    pub fn linear_elements(&self) -> u64 {
        self.layers * self.linears().iter().map(LinearShape::elements).sum::<u64>()
    }

    /// Everything else: embedding, head, norms, biases.
    pub fn other_elements(&self) -> u64 {
        let tables = if self.tied { 1 } else { 2 };
        tables * self.vocab_size * self.hidden_size + self.small_elements()
    }

    /// Norms and biases.
    pub(crate) fn small_elements(&self) -> u64 {
        let biases: u64 = self.linears().iter().filter(|l| l.bias).map(|l| l.out).sum();
        let gemma = self.model_type.starts_with("gemma");
        let norms = if gemma { 4 } else { 2 } * self.hidden_size;
        let on_heads = self.model_type == "qwen3" || self.model_type.starts_with("gemma3");
        let norms = norms + if on_heads { 2 * self.head() } else { 0 };
        self.layers * (norms + biases) + self.hidden_size
    }

    /// All parameters, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        self.linear_elements() + self.other_elements()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::ModelShape;
    use crate::{names, preset};
    use serde_json::json;

    #[test]
    fn every_preset_is_possible_and_nonsense_is_not() {
        for name in names() {
            preset(name).unwrap().check().unwrap();
        }
        let shape = preset("llama-3.1-8b").unwrap();
        let error = super::ModelShape { hidden_size: u64::MAX, ..shape.clone() }.check().unwrap_err();
        assert!(error.contains("`hidden_size`"), "{error}");
        assert!(super::ModelShape { heads: 0, ..shape }.check().is_err());
    }

    #[test]
    fn families_have_what_their_files_leave_unsaid() {
        let files = [
            (
                json!({"model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288,
                    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}),
                8_190_735_360,
            ),
            (
                json!({"model_type": "gemma2", "vocab_size": 256_000, "hidden_size": 3584, "intermediate_size": 14_336,
                    "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8}),
                9_241_705_984,
            ),
            (
                json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560,
                    "intermediate_size": 10_240, "num_hidden_layers": 34}}),
                3_880_263_168,
            ),
            (
                json!({"model_type": "phi3", "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192,
                    "num_hidden_layers": 32, "num_attention_heads": 32}),
                3_821_079_552,
            ),
        ];
        for (file, count) in files {
            let shape: ModelShape = serde_json::from_value(file.clone()).unwrap();
            assert_eq!(shape.parameters(), count, "{file}");
            let written = serde_json::to_value(&shape).unwrap();
            assert_eq!(serde_json::from_value::<ModelShape>(written).unwrap(), shape, "what is written is read");
        }
        let error = serde_json::from_value::<ModelShape>(json!({"model_type": "llama"})).unwrap_err();
        assert!(error.to_string().contains("`vocab_size`"), "{error}");
    }
}
