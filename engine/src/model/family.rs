//! The model families: what distinguishes them and what their `config.json` leaves unsaid.
//!
//! A row says how transformers' class of that family computes, and which value it takes for a key that is absent.

use crate::ops::Activation;

/// A family of decoder-only transformers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Family {
    /// Its name for people.
    pub name: &'static str,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class in `architectures`.
    pub architecture: &'static str,
    /// Which linear layers have biases.
    pub biases: Biases,
    /// `qkv_proj` and `gate_up_proj` in place of q, k, v, gate and up.
    pub fused: bool,
    /// `q_norm` and `k_norm` on every head.
    pub qk_norm: bool,
    /// `pre_feedforward_layernorm` and `post_feedforward_layernorm`.
    pub norms_around_mlp: bool,
    /// What norms add to their weights.
    pub norm_offset: f64,
    /// Embeddings are multiplied by the root of their width.
    pub scaled_embeddings: bool,
    /// That is done after the embedding's module, so that what PEFT and TRL add to its output, NEFTune's noise, is multiplied as well.
    pub scales_outside: bool,
    /// The key of the MLP's activation.
    pub activation_key: &'static str,
    /// The activation where that key is absent.
    pub activation: Activation,
    /// Which layers see through a window.
    pub windows: Windows,
    /// `vocab_size` where it is absent.
    pub vocab_size: Option<usize>,
    /// `num_attention_heads` and `num_key_value_heads` where they are absent.
    pub heads: Option<[usize; 2]>,
    /// `max_position_embeddings` where it is absent.
    pub max_positions: usize,
    /// `rms_norm_eps` where it is absent.
    pub rms_norm_eps: f64,
    /// `sliding_window` where it is absent.
    pub sliding_window: Option<usize>,
    /// `head_dim` where it is absent; else `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `query_pre_attn_scalar` where it is absent; scores are divided by its root. Else by that of `head_dim`.
    pub query_pre_attn_scalar: Option<f64>,
    /// `attn_logit_softcapping` where it is absent.
    pub attn_logit_softcapping: Option<f64>,
    /// `final_logit_softcapping` where it is absent.
    pub final_logit_softcapping: Option<f64>,
    /// `tie_word_embeddings` where it is absent.
    pub tied: bool,
    /// `rope_theta` where it is absent.
    pub rope_theta: f64,
    /// `rope_local_base_freq` where it is absent: layers with a window have a base of their own, and no scaling.
    pub rope_local_base_freq: Option<f64>,
}

/// Which linear layers have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Biases {
    /// None.
    None,
    /// Those that `attention_bias` (q, k, v and o) and `mlp_bias` (the MLP's) say.
    Configured,
    /// q, k and v.
    Qkv,
}

/// Which layers see no further back than `sliding_window`; `layer_types`, where the configuration has it, says the same
/// layer by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None.
    None,
    /// All.
    All,
    /// With `use_sliding_window`, those from `max_window_layers` on.
    Upper,
    /// All but every n-th, `sliding_window_pattern` being n where it is there.
    AllButEvery(usize),
}

const LLAMA: Family = Family {
    name: "Llama",
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    biases: Biases::Configured,
    fused: false,
    qk_norm: false,
    norms_around_mlp: false,
    norm_offset: 0.0,
    scaled_embeddings: false,
    scales_outside: false,
    activation_key: "hidden_act",
    activation: Activation::Silu,
    windows: Windows::None,
    vocab_size: None,
    heads: None,
    max_positions: 2048,
    rms_norm_eps: 1e-6,
    sliding_window: None,
    head_dim: None,
    query_pre_attn_scalar: None,
    attn_logit_softcapping: None,
    final_logit_softcapping: None,
    tied: false,
    rope_theta: 10_000.0,
    rope_local_base_freq: None,
};

const GEMMA2: Family = Family {
    name: "Gemma 2",
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    norms_around_mlp: true,
    norm_offset: 1.0,
    scaled_embeddings: true,
    scales_outside: true,
    activation_key: "hidden_activation",
    activation: Activation::GeluTanh,
    windows: Windows::AllButEvery(2),
    max_positions: 8192,
    sliding_window: Some(4096),
    head_dim: Some(256),
    query_pre_attn_scalar: Some(256.0),
    attn_logit_softcapping: Some(50.0),
    final_logit_softcapping: Some(30.0),
    tied: true,
    ..LLAMA
};

/// Every family.
pub static FAMILIES: [Family; 7] = [
    LLAMA,
    Family {
        name: "Mistral",
        model_type: "mistral",
        architecture: "MistralForCausalLM",
        biases: Biases::None,
        windows: Windows::All,
        max_positions: 131_072,
        sliding_window: Some(4096),
        ..LLAMA
    },
    Family {
        name: "Qwen2",
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        biases: Biases::Qkv,
        windows: Windows::Upper,
        max_positions: 32_768,
        sliding_window: Some(4096),
        ..LLAMA
    },
    Family {
        name: "Qwen3",
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        qk_norm: true,
        windows: Windows::Upper,
        max_positions: 32_768,
        sliding_window: Some(4096),
        head_dim: Some(128),
        ..LLAMA
    },
    GEMMA2,
    Family {
        name: "Gemma 3",
        model_type: "gemma3_text",
        architecture: "Gemma3ForCausalLM",
        qk_norm: true,
        windows: Windows::AllButEvery(6),
        // The multi-modal models' files leave out what is as in the class.
        vocab_size: Some(262_208),
        heads: Some([8, 4]),
        max_positions: 131_072,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        rope_theta: 1_000_000.0,
        rope_local_base_freq: Some(10_000.0),
        scales_outside: false,
        ..GEMMA2
    },
    Family {
        name: "Phi-3",
        model_type: "phi3",
        architecture: "Phi3ForCausalLM",
        biases: Biases::None,
        fused: true,
        windows: Windows::All,
        max_positions: 4096,
        rms_norm_eps: 1e-5,
        ..LLAMA
    },
];
