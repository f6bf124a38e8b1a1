//! The tokenizer of a Hugging Face model folder, with its special tokens and chat template.

use std::path::Path;

use chrono::NaiveDate;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::tokenizer::Tokenizer as Inner;

use super::{ChatTemplate, Message};
use crate::{Error, Result};

/// A tokenizer.
pub struct Tokenizer {
    inner: Inner,
    name: String,
    bos: Option<(String, u32)>,
    eos: Option<(String, u32)>,
    stop: Vec<u32>,
    template: Option<ChatTemplate>,
}

/// The keys of `tokenizer_config.json` that matter here.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<Value>,
    eos_token: Option<Value>,
    chat_template: Option<Value>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`, `chat_template.jinja` and
    /// `generation_config.json`.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing or a file is malformed.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let json = std::fs::read(&path)
            .map_err(|e| Error::file(&path, format!("{e}; a model folder needs its tokenizer.json")))?;
        let optional = |name: &str| std::fs::read(folder.join(name)).ok();
        let template = optional("chat_template.jinja").map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let (config, generation) = (optional("tokenizer_config.json"), optional("generation_config.json"));
        Self::from_bytes(&folder.display().to_string(), &json, config.as_deref(), template, generation.as_deref())
    }

    /// The same from bytes; `name` is for messages, and `template` wins over the one in the configuration.
    ///
    /// # Errors
    /// As [`from_folder`](Self::from_folder).
    pub fn from_bytes(
        name: &str,
        tokenizer: &[u8],
        config: Option<&[u8]>,
        template: Option<String>,
        generation: Option<&[u8]>,
    ) -> Result<Self> {
        let file = |file: &str| Path::new(name).join(file);
        let mut inner = Inner::from_bytes(tokenizer).map_err(|e| Error::file(file("tokenizer.json"), e))?;
        // A folder may ask for padding or truncation; batches and examples do both here.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(file("tokenizer.json"), e))?;
        let config: TokenizerConfig = match config {
            Some(json) => serde_json::from_slice(json).map_err(|e| Error::file(file("tokenizer_config.json"), e))?,
            None => TokenizerConfig::default(),
        };
        let token = |value: &Option<Value>| {
            let text = value.as_ref().and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()))?;
            Some((text.to_string(), inner.token_to_id(text)?))
        };
        let (bos, eos) = (token(&config.bos_token), token(&config.eos_token));
        let mut stop: Vec<u32> = eos.iter().map(|(_, id)| *id).collect();
        if let Some(json) = generation {
            let generation: Value =
                serde_json::from_slice(json).map_err(|e| Error::file(file("generation_config.json"), e))?;
            let ids = match generation.get("eos_token_id") {
                Some(Value::Array(ids)) => ids.clone(),
                Some(id) => vec![id.clone()],
                None => vec![],
            };
            stop.extend(ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()));
            stop.sort_unstable();
            stop.dedup();
        }
        let template = template.or_else(|| default_template(config.chat_template.as_ref()));
        let template = template.map(|source| ChatTemplate::new(&source)).transpose();
        let template = template.map_err(|e| Error::file(name, e))?;
        Ok(Self { inner, name: name.to_string(), bos, eos, stop, template })
    }

    fn failed(&self, doing: &str, error: impl std::fmt::Display) -> Error {
        Error::file(&self.name, format!("the tokenizer cannot {doing}: {error}"))
    }

    /// Text to token ids; with `add_special_tokens` those that the tokenizer puts around a text.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text, add_special_tokens)?.into_iter().map(|(id, _)| id).collect())
    }

    /// The same, each token with the range of bytes that it comes from.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode_with_offsets(&self, text: &str, add_special_tokens: bool) -> Result<Vec<(u32, (usize, usize))>> {
        let encoding = self.inner.encode(text, add_special_tokens).map_err(|e| self.failed("encode a text", e))?;
        Ok(encoding.get_ids().iter().copied().zip(encoding.get_offsets().iter().copied()).collect())
    }

    /// Token ids to text.
    ///
    /// # Errors
    /// When the tokenizer fails on the ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| self.failed("decode tokens", e))
    }

    /// Ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that begins a text.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos.as_ref().map(|(text, _)| text.as_str())
    }

    /// The token that ends a text or an answer.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos.as_ref().map(|(text, _)| text.as_str())
    }

    /// The id of [`bos_token`](Self::bos_token).
    pub fn bos_id(&self) -> Option<u32> {
        self.bos.as_ref().map(|(_, id)| *id)
    }

    /// The id of [`eos_token`](Self::eos_token).
    pub fn eos_id(&self) -> Option<u32> {
        self.eos.as_ref().map(|(_, id)| *id)
    }

    /// The ids that end generation.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// The chat template, where the folder has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Tells the chat template, where it asks, that it is always this day, or today: what is trained on does not change when a run is
    /// continued on another day. Which day it is; none where no template asks.
    pub fn settle_date(&mut self, date: Option<NaiveDate>) -> Option<NaiveDate> {
        self.template.as_mut()?.settle_date(date)
    }

    /// Renders a conversation by the folder's template; the text is encoded without adding special tokens.
    ///
    /// # Errors
    /// When there is no template, or it refuses the conversation.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            let reason = "has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); \
                          use `prompt` and `completion` or `text` in place of `messages`";
            Error::file(&self.name, reason)
        })?;
        let (bos, eos) = (self.bos_token().unwrap_or_default(), self.eos_token().unwrap_or_default());
        template.render(messages, add_generation_prompt, bos, eos)
    }
}

/// The template of a configuration: a string, or the one named `default` of a list.
fn default_template(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(source) => Some(source.clone()),
        Value::Array(list) => {
            let named = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            named?.get("template")?.as_str().map(str::to_string)
        }
        _ => None,
    }
}
