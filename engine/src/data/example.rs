//! From a record to tokens, and which of them the loss is taken on.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::text::{Message, Tokenizer};
use crate::{Error, Result};

/// Which tokens of a conversation are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// The last answer.
    Completion,
    /// Every answer.
    Assistant,
    /// Everything.
    All,
}

/// A tokenized record.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether the loss is taken on predicting the token at the same position; never for the first.
    pub trained: Vec<bool>,
}

/// Tokenizes a record and cuts it to `max_length` tokens; `None` when nothing that is trained is left.
///
/// Conversations are rendered whole and encoded once, so that training sees the tokens that inference will; the bytes of
/// an answer are found by rendering the conversation up to it, which needs no marks in the template.
///
/// # Errors
/// When there is no chat template, or it does not render an answer as a continuation of what stands before it.
pub fn tokenize(
    record: &Record,
    tokenizer: &Tokenizer,
    max_length: usize,
    train_on: TrainOn,
) -> Result<Option<Example>> {
    let eos = tokenizer.eos_token().unwrap_or_default();
    let text = match record {
        Record::Text(text) => format!("{text}{eos}"),
        Record::PromptCompletion { prompt, completion } => format!("{prompt}{completion}{eos}"),
        Record::Messages(messages) => tokenizer.render_chat(messages, false)?,
    };
    let spans = match (record, train_on) {
        (Record::Text(_), _) | (_, TrainOn::All) => vec![(0, text.len())],
        (Record::PromptCompletion { prompt, .. }, _) => vec![(prompt.len(), text.len())],
        (Record::Messages(messages), TrainOn::Completion) => {
            answers(messages, tokenizer, &text)?.pop().into_iter().collect()
        }
        (Record::Messages(messages), TrainOn::Assistant) => answers(messages, tokenizer, &text)?,
    };
    // A template writes the special tokens itself.
    let special = !matches!(record, Record::Messages(_));
    let (mut tokens, mut offsets): (Vec<_>, Vec<_>) =
        tokenizer.encode_with_offsets(&text, special)?.into_iter().unzip();
    tokens.truncate(max_length);
    offsets.truncate(max_length);
    // A token is trained when it lies in a span: the rest of a token that begins before it belongs to the prompt. Tokens
    // that the tokenizer adds itself have no bytes.
    let inside = |range: &(usize, usize)| {
        range.0 < range.1 && spans.iter().any(|(start, end)| (*start..*end).contains(&range.0))
    };
    let mut trained: Vec<bool> = offsets.iter().map(inside).collect();
    if let Some(first) = trained.first_mut() {
        *first = false;
    }
    Ok(trained.contains(&true).then_some(Example { tokens, trained }))
}

/// The bytes of each answer in the rendered conversation, its end-of-turn mark included.
fn answers(messages: &[Message], tokenizer: &Tokenizer, text: &str) -> Result<Vec<(usize, usize)>> {
    let mut spans = Vec::new();
    for (i, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
        let before = tokenizer.render_chat(&messages[..i], true)?;
        let through = tokenizer.render_chat(&messages[..=i], false)?;
        if !through.starts_with(&before) || !text.starts_with(through.trim_end()) {
            let reason = "the chat template does not render the conversation up to it as a prefix of the whole; \
                          set data.train_on = \"all\" or use another template";
            return Err(Error::Invalid(format!("message {i} ({}): {reason}", message.role)));
        }
        // White space after the last mark of the turn is layout between turns.
        spans.push((before.len(), through.trim_end().len().max(before.len())));
    }
    Ok(spans)
}
