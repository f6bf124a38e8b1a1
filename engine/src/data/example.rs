//! From a record to tokens, and which of them the loss is taken on.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Record;
use super::answers::answers;
use crate::Result;
use crate::text::{Message, Tokenizer};

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

impl Example {
    /// The first `max_length` tokens; `None` when nothing that is trained is left.
    pub fn cut(mut self, max_length: usize) -> Option<Self> {
        self.tokens.truncate(max_length);
        self.trained.truncate(max_length);
        self.trained.contains(&true).then_some(self)
    }
}

/// Tokenizes a record whole.
///
/// Conversations are rendered whole and encoded once, so that training sees the tokens that inference will.
///
/// # Errors
/// When there is no chat template for a conversation, or it refuses it, or it does not show where its answers are.
pub fn tokenize(record: &Record, tokenizer: &Tokenizer, train_on: TrainOn) -> Result<Example> {
    match record {
        Record::Text(text) => encode(&ended(text, tokenizer), &[(0, usize::MAX)], true, tokenizer),
        Record::PromptCompletion { prompt, completion } => continued(prompt, completion, tokenizer, train_on),
        Record::Messages(messages) => conversation(messages, tokenizer, train_on),
        Record::Instruction { instruction, input, output } if tokenizer.chat_template().is_some() => {
            let question = if input.is_empty() { instruction.clone() } else { format!("{instruction}\n\n{input}") };
            let messages = [Message::new("user", question), Message::new("assistant", output)];
            conversation(&messages, tokenizer, train_on)
        }
        Record::Instruction { instruction, input, output } => {
            continued(&alpaca_prompt(instruction, input), output, tokenizer, train_on)
        }
    }
}

/// The prompt that Stanford Alpaca was trained with (`train.py` of tatsu-lab/stanford_alpaca).
fn alpaca_prompt(instruction: &str, input: &str) -> String {
    let (context, input) = match input {
        "" => ("", String::new()),
        input => (", paired with an input that provides further context", format!("### Input:\n{input}\n\n")),
    };
    format!(
        "Below is an instruction that describes a task{context}. Write a response that appropriately completes the \
         request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:"
    )
}

/// A text with the token that ends it, once.
fn ended(text: &str, tokenizer: &Tokenizer) -> String {
    let eos = tokenizer.eos_token().unwrap_or_default();
    if text.ends_with(eos) { text.to_string() } else { format!("{text}{eos}") }
}

fn continued(prompt: &str, completion: &str, tokenizer: &Tokenizer, train_on: TrainOn) -> Result<Example> {
    let text = format!("{prompt}{}", ended(completion, tokenizer));
    let start = if train_on == TrainOn::All { 0 } else { prompt.len() };
    encode(&text, &[(start, text.len())], true, tokenizer)
}

fn conversation(messages: &[Message], tokenizer: &Tokenizer, train_on: TrainOn) -> Result<Example> {
    let text = tokenizer.render_chat(messages, false)?;
    let spans = match train_on {
        TrainOn::All => vec![(0, text.len())],
        TrainOn::Assistant => answers(messages, tokenizer, &text, false)?,
        TrainOn::Completion => answers(messages, tokenizer, &text, true)?,
    };
    // A template writes the special tokens itself.
    encode(&text, &spans, false, tokenizer)
}

/// Tokens of `text`, trained where they lie in one of the ranges of bytes.
fn encode(text: &str, spans: &[(usize, usize)], special: bool, tokenizer: &Tokenizer) -> Result<Example> {
    let (tokens, offsets): (Vec<_>, Vec<_>) = tokenizer.encode_with_offsets(text, special)?.into_iter().unzip();
    // The rest of a token that begins before a span belongs to the prompt, unless nothing but blanks of it lies there: a word often
    // has the blank before it in its token. Tokens that the tokenizer adds itself have no bytes.
    let is_blank = |range: Range<usize>| text.get(range).is_some_and(|text| text.trim().is_empty());
    let inside = |&(first, after): &(usize, usize)| {
        let of_span = |&(start, end): &(usize, usize)| {
            (start..end).contains(&first)
                || first < start && start < after && is_blank(first..start) && !is_blank(start..after)
        };
        first < after && spans.iter().any(of_span)
    };
    let mut trained: Vec<bool> = offsets.iter().map(inside).collect();
    if let Some(first) = trained.first_mut() {
        *first = false;
    }
    Ok(Example { tokens, trained })
}

#[cfg(test)]
mod tests {
    use super::alpaca_prompt;

    #[test]
    fn the_alpaca_prompt_is_the_published_one() {
        assert_eq!(
            alpaca_prompt("Add.", "1 2"),
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
             response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### \
             Response:"
        );
        assert_eq!(
            alpaca_prompt("Sing.", ""),
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\nSing.\n\n### Response:"
        );
    }
}
