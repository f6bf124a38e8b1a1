//! Records of a JSONL file, each line checked before training starts.

use std::path::Path;

use serde_json::{Map, Value};

use crate::text::Message;
use crate::{Error, Result};

/// One line of a data file.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// `{"messages": [{"role": .., "content": ..}, ..]}`: a conversation, rendered by the chat template.
    Messages(Vec<Message>),
    /// `{"prompt": "..", "completion": ".."}`: plain text and what follows it.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is learned.
        completion: String,
    },
    /// `{"text": ".."}`: plain text, all of it learned.
    Text(String),
}

/// What a line may hold.
const ACCEPTED: &str = "`messages`, `prompt` and `completion`, or `text`";

/// Reads a JSONL file: each record with its line, counted from 1.
///
/// # Errors
/// [`Error::Line`] on the first line that is no record; [`Error::File`] when the file is missing or holds none.
pub fn read_jsonl(path: &Path) -> Result<Vec<(usize, Record)>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    parse_jsonl(path, &text)
}

/// [`read_jsonl`] from text; `path` is for messages.
///
/// # Errors
/// As [`read_jsonl`].
pub fn parse_jsonl(path: &Path, text: &str) -> Result<Vec<(usize, Record)>> {
    let mut records = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if !line.trim().is_empty() {
            records.push((i + 1, record(line).map_err(|reason| Error::line(path, i + 1, reason))?));
        }
    }
    if records.is_empty() {
        return Err(Error::file(path, format!("holds no record; each line is a JSON object with {ACCEPTED}")));
    }
    Ok(records)
}

fn record(line: &str) -> std::result::Result<Record, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    let Value::Object(object) = value else { return Err(format!("not a JSON object with {ACCEPTED}")) };
    if let Some(messages) = object.get("messages") {
        return conversation(messages_of("messages", messages)?).map(Record::Messages);
    }
    match (object.get("prompt"), object.get("completion"), object.get("text")) {
        (Some(Value::Array(_)), Some(completion), _) => {
            let mut messages = messages_of("prompt", &object["prompt"])?;
            messages.extend(messages_of("completion", completion)?);
            conversation(messages).map(Record::Messages)
        }
        (Some(_), Some(_), _) => {
            let completion = string(&object, "completion")?;
            if completion.is_empty() {
                return Err("`completion` is empty: there is nothing to learn".into());
            }
            Ok(Record::PromptCompletion { prompt: string(&object, "prompt")?, completion })
        }
        (Some(_), None, _) => Err("`prompt` has no `completion` beside it".into()),
        (None, Some(_), _) => Err("`completion` has no `prompt` beside it".into()),
        (None, None, Some(_)) => match string(&object, "text")? {
            text if text.is_empty() => Err("`text` is empty".into()),
            text => Ok(Record::Text(text)),
        },
        (None, None, None) => {
            let found: Vec<&str> = object.keys().map(String::as_str).collect();
            Err(format!("has the keys [{}]; expected {ACCEPTED}", found.join(", ")))
        }
    }
}

fn string(object: &Map<String, Value>, key: &str) -> std::result::Result<String, String> {
    match &object[key] {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("`{key}` must be a string, not {other}")),
    }
}

fn messages_of(key: &str, value: &Value) -> std::result::Result<Vec<Message>, String> {
    let Value::Array(items) = value else { return Err(format!("`{key}` must be a list of messages")) };
    let message = |(i, item): (usize, &Value)| {
        serde_json::from_value(item.clone())
            .map_err(|e| format!("`{key}[{i}]` is no message with the strings `role` and `content`: {e}"))
    };
    items.iter().enumerate().map(message).collect()
}

fn conversation(messages: Vec<Message>) -> std::result::Result<Vec<Message>, String> {
    match messages.iter().any(|m| m.role == "assistant" && !m.content.is_empty()) {
        true => Ok(messages),
        false => Err("holds no answer: no message with role `assistant` and content".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse_jsonl(Path::new("d.jsonl"), text).unwrap_err().to_string()
    }

    #[test]
    fn every_form_is_read() {
        let text = concat!(
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
            "\n\n",
            r#"{"prompt":"p","completion":"c"}"#,
            "\n",
            r#"{"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"a"}]}"#,
            "\n",
            r#"{"text":"t","id":3}"#,
        );
        let records = parse_jsonl(Path::new("d.jsonl"), text).unwrap();
        assert_eq!(records.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3, 4, 5]);
        assert_eq!(records[0].1, records[2].1);
        assert_eq!(records[3].1, Record::Text("t".into()));
    }

    #[test]
    fn a_bad_line_is_named_with_its_reason() {
        assert!(error("{\"text\":\"t\"}\n{oops").starts_with("d.jsonl:2: not JSON"));
        let message = error(r#"{"instruction":"i","output":"o"}"#);
        assert!(message.contains("[instruction, output]") && message.contains("`messages`"), "{message}");
        assert!(error(r#"{"prompt":"p"}"#).contains("no `completion`"));
        assert!(error(r#"{"text":3}"#).contains("must be a string"));
        assert!(error(r#"{"messages":[{"role":"user","content":"q"}]}"#).contains("no answer"));
        assert!(error(r#"{"messages":[{"role":"user"}]}"#).contains("messages[0]"));
        assert!(error("\n \n").contains("holds no record"));
    }
}
