//! Where the answers of a conversation lie in its rendering, for templates without marks of their own.

use crate::text::{Message, Tokenizer};
use crate::{Error, Result};

/// The bytes of the answers in `text`, the whole conversation as rendered: from where generation would begin through the
/// end-of-turn mark. With `last` only that of the last one.
///
/// Most templates render a conversation so far as the beginning of the whole, and then two renderings bound an answer.
/// Some do not: Qwen3 drops the thoughts of earlier turns, Mistral moves the system text to the last question. For these
/// the content is replaced by a sentinel, which shows where the template puts it within the whole.
///
/// # Errors
/// When neither way finds an answer with certainty.
pub(super) fn answers(
    messages: &[Message],
    tokenizer: &Tokenizer,
    text: &str,
    last: bool,
) -> Result<Vec<(usize, usize)>> {
    let mut turns: Vec<usize> = (0..messages.len()).filter(|i| messages[*i].role == "assistant").collect();
    if last {
        turns = turns.split_off(turns.len().saturating_sub(1));
    }
    let span = |turn: usize| {
        let prompt = tokenizer.render_chat(&messages[..turn], true)?;
        let through = tokenizer.render_chat(&messages[..=turn], false)?;
        // White space after the last mark of the turn is layout between turns.
        let through = through.trim_end();
        match text.starts_with(&prompt) && text.starts_with(through) {
            true => Ok((prompt.len(), through.len().max(prompt.len()))),
            false => in_place(messages, turn, tokenizer, text, &prompt).map_err(|reason| {
                let cure =
                    "set data.train_on = \"all\", or use a template that renders each turn alike wherever it stands";
                Error::Invalid(format!("message {turn} (assistant): {reason}; {cure}"))
            }),
        }
    };
    turns.into_iter().map(span).collect()
}

/// An answer's bytes, found by the texts around it: where generation begins is what the prompt has after the message
/// before, and the end-of-turn mark is what follows the content when nothing else does.
fn in_place(
    messages: &[Message],
    turn: usize,
    tokenizer: &Tokenizer,
    text: &str,
    prompt: &str,
) -> std::result::Result<(usize, usize), String> {
    let around = |messages: &[Message], at: usize, prompt: bool| around(messages, at, tokenizer, text, prompt);
    let (before, after) = around(messages, turn, false)?;
    let (_, mark) = around(&messages[..=turn], turn, false)?;
    let mark = mark.trim_end();
    if !text.ends_with(&after) || !after.starts_with(mark) {
        return Err("the chat template does not end it as it ends a last answer".into());
    }
    let end = text.len() - after.len() + mark.len();
    let start = if text.starts_with(prompt) {
        prompt.len()
    } else {
        let (_, header) = match turn {
            0 => return Err("the chat template does not render what it answers as a prefix".into()),
            _ => around(&messages[..turn], turn - 1, true)?,
        };
        let found = before.rfind(&header).filter(|_| !header.is_empty()).map(|at| at + header.len());
        found.ok_or_else(|| format!("the chat template does not put its generation prompt {header:?} before it"))?
    };
    // What comes before the answer must not depend on its content, or the sentinel moved more than itself.
    match before.get(..start).is_some_and(|before| text.starts_with(before)) && start <= end {
        true => Ok((start, end)),
        false => Err("the chat template renders what stands before it differently for another content".into()),
    }
}

/// What a rendering has before and after the content of one message; of one that calls a tool, around the last call's name,
/// since templates leave out such a message's content or lay it out by whether it is empty.
fn around(
    messages: &[Message],
    at: usize,
    tokenizer: &Tokenizer,
    text: &str,
    prompt: bool,
) -> std::result::Result<(String, String), String> {
    // A character of the private use area that the conversation lacks: no template trims, splits or changes it.
    let sentinel = ('\u{e000}'..='\u{f8ff}').find(|c| !text.contains(*c)).ok_or("it holds every private character")?;
    let mut messages = messages.to_vec();
    match last_call(&mut messages[at]) {
        Some(name) => *name = sentinel.to_string().into(),
        None => messages[at].content = sentinel.to_string(),
    }
    let rendered = tokenizer.render_chat(&messages, prompt).map_err(|e| e.to_string())?;
    match rendered.split_once(sentinel) {
        Some((before, after)) if !after.contains(sentinel) => Ok((before.to_string(), after.to_string())),
        Some(_) => Err(format!("the chat template repeats the content of message {at}")),
        None => Err(format!("the chat template leaves out the content of message {at}")),
    }
}

/// The name of the last tool that a message calls.
fn last_call(message: &mut Message) -> Option<&mut serde_json::Value> {
    let call = message.extra.get_mut("tool_calls")?.as_array_mut()?.last_mut()?;
    match call.get("function").is_some() {
        true => call.get_mut("function")?.get_mut("name"),
        false => call.get_mut("name"),
    }
}
