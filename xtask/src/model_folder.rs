//! Writes the small base model's folder, all but its weights: configuration, tokenizer, chat template.

use std::path::Path;

use anyhow::{Result, anyhow};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::files::{write, write_json};
use crate::tokenizer::{BEGIN, END, VOCABULARY};

/// Tokens that the model was trained to look back on.
const CONTEXT: usize = 512;

/// Plain words instead of role marks: the base model knows every token of it. A prompt that ends in `Answer:` is an exact
/// prefix, in text and in tokens, of the same conversation with its answer.
const CHAT_TEMPLATE: &str = "\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] + '\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- 'Question: ' + message['content'] + '\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'Answer: ' + message['content'] + eos_token + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Answer:' }}
{%- endif %}";

/// Writes `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.
pub(crate) fn write_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let text = tokenizer.to_string(true).map_err(|error| anyhow!("cannot write the tokenizer as JSON: {error}"))?;
    write(&folder.join("tokenizer.json"), &(text + "\n"))?;
    write(&folder.join("chat_template.jinja"), CHAT_TEMPLATE)?;
    write_json(
        &folder.join("tokenizer_config.json"),
        &json!({
            "added_tokens_decoder": { "0": mark(BEGIN), "1": mark(END) },
            "bos_token": BEGIN,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": false,
            "eos_token": END,
            "model_max_length": CONTEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }),
    )?;
    write_json(
        &folder.join("config.json"),
        &json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "hidden_act": "silu",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "mlp_bias": false,
            "initializer_range": 0.02,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": null,
            "tie_word_embeddings": true,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "bfloat16",
            "use_cache": true,
        }),
    )?;
    write_json(&folder.join("generation_config.json"), &json!({ "bos_token_id": 0, "eos_token_id": 1 }))
}

/// How transformers describes a special token.
fn mark(content: &str) -> serde_json::Value {
    json!({
        "content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true
    })
}
