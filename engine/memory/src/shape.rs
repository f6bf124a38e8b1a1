//! The shape of a decoder-only transformer, and its parameters counted.

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
}

impl LinearShape {
    /// Elements of the weight.
    pub fn elements(&self) -> u64 {
        self.out * self.input
    }
}

/// What of a Hugging Face `config.json` decides the memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    #[serde(rename = "num_key_value_heads", default)]
    pub kv_heads: Option<u64>,
    /// Width of a head; absent means `hidden_size / heads`.
    #[serde(default)]
    pub head_dim: Option<u64>,
    /// The output head is the embedding.
    #[serde(rename = "tie_word_embeddings", default)]
    pub tied: bool,
    /// Biases on q, k, v and o.
    #[serde(default)]
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    #[serde(default)]
    pub mlp_bias: bool,
    /// `model_type` of the configuration; Qwen2 has biases on q, k and v without saying so.
    #[serde(default)]
    pub model_type: String,
}

impl ModelShape {
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

    /// The seven linear layers of a decoder layer.
    pub fn linears(&self) -> [LinearShape; 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head(), self.kv() * self.head());
        let qkv = self.attention_bias || self.model_type == "qwen2";
        let linear = |name, out, input, bias| LinearShape { name, out, input, bias };
        [
            linear("q_proj", q, hidden, qkv),
            linear("k_proj", kv, hidden, qkv),
            linear("v_proj", kv, hidden, qkv),
            linear("o_proj", hidden, q, self.attention_bias),
            linear("gate_proj", inner, hidden, self.mlp_bias),
            linear("up_proj", inner, hidden, self.mlp_bias),
            linear("down_proj", hidden, inner, self.mlp_bias),
        ]
    }

    /// Elements of all linear weights of the decoder layers: what QLoRA holds in 4 bits.
    pub fn linear_elements(&self) -> u64 {
        self.layers * self.linears().iter().map(LinearShape::elements).sum::<u64>()
    }

    /// Everything else: embedding, head, norms, biases.
    pub fn other_elements(&self) -> u64 {
        let biases: u64 = self.linears().iter().filter(|l| l.bias).map(|l| l.out).sum();
        let tables = if self.tied { 1 } else { 2 } * self.vocab_size * self.hidden_size;
        tables + self.layers * (2 * self.hidden_size + biases) + self.hidden_size
    }

    /// All parameters, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        self.linear_elements() + self.other_elements()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::{names, preset};

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
}
