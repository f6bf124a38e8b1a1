//! Records: what one line, row or list element of a data file may be, told apart by its keys.

use serde_json::{Map, Value, json};

use super::conversation::{conversation, messages_of, turns_of};
use crate::text::Message;

/// The forms of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// `messages`, or `prompt` and `completion` as lists of messages.
    Messages,
    /// `conversations` of `from` and `value`, as ShareGPT wrote them.
    ShareGpt,
    /// `prompt` and `completion` as strings.
    PromptCompletion,
    /// `instruction`, optionally `input`, and `output`, as Stanford Alpaca wrote them.
    Alpaca,
    /// `text`.
    Text,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::PromptCompletion => "prompt-completion",
            Self::Alpaca => "alpaca",
            Self::Text => "text",
        })
    }
}

/// One example of a data file, before it is tokenized.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A conversation, rendered by the chat template.
    Messages(Vec<Message>),
    /// Plain text and what follows it.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is learned.
        completion: String,
    },
    /// A task, rendered by the chat template where there is one, else by Alpaca's prompt.
    Instruction {
        /// What is to be done.
        instruction: String,
        /// What it is to be done with; may be empty.
        input: String,
        /// What is learned.
        output: String,
    },
    /// Plain text, all of it learned.
    Text(String),
}

/// What a record may hold.
pub(super) const ACCEPTED: &str = "`messages`, `conversations`, `prompt` and `completion`, \
                                   `instruction` and `output`, or `text`";

/// Keys that a record is read from.
#[cfg(not(target_arch = "wasm32"))]
pub(super) const KEYS: [&str; 10] =
    ["messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system", "text", "tools"];

type Reason<T> = std::result::Result<T, String>;

impl Record {
    /// Reads a record. Keys that no form knows are left alone, and one whose value is null counts as absent: a table
    /// writes null where a record has no such key.
    ///
    /// # Errors
    /// Why it is none, naming the key.
    pub fn parse(value: Value) -> Reason<(Format, Self)> {
        let Value::Object(mut object) = value else { return Err(format!("not a JSON object with {ACCEPTED}")) };
        let found: Vec<String> = object.keys().cloned().collect();
        object.retain(|_, value| !value.is_null());
        let format = format_of(&object).ok_or_else(|| unknown(&object, &found))?;
        if matches!(format, Format::Messages | Format::ShareGpt) && object.get("tools").is_some_and(|t| *t != json!([]))
        {
            return Err(
                "`tools` would not reach the chat template; remove the key, or put them into a system message".into()
            );
        }
        let record = match format {
            Format::Messages => Self::Messages(conversation(messages(&object)?)?),
            Format::ShareGpt => {
                let system = object.get("system").map(|_| string(&object, "system")).transpose()?;
                let system = system.filter(|text| !text.is_empty());
                Self::Messages(conversation(turns_of(system, &object["conversations"])?)?)
            }
            Format::PromptCompletion => Self::PromptCompletion {
                prompt: string(&object, "prompt")?,
                completion: answer(&object, "completion")?,
            },
            Format::Alpaca => {
                let instruction = string(&object, "instruction")?;
                let input = object.get("input").map_or(Ok(String::new()), |_| string(&object, "input"))?;
                Self::Instruction { instruction, input, output: answer(&object, "output")? }
            }
            Format::Text => match string(&object, "text")? {
                text if text.is_empty() => return Err("`text` is empty".into()),
                text => Self::Text(text),
            },
        };
        Ok((format, record))
    }

    /// Whether an object has the keys of some form.
    pub(super) fn is_record(object: &Map<String, Value>) -> bool {
        format_of(object).is_some()
    }
}

/// The form that an object's keys belong to. Published files carry several: a conversation wins over what it was made
/// from, and Alpaca's own three keys over the `text` that was rendered from them.
fn format_of(object: &Map<String, Value>) -> Option<Format> {
    let has = |key: &str| object.contains_key(key);
    match object {
        _ if has("messages") => Some(Format::Messages),
        _ if has("conversations") => Some(Format::ShareGpt),
        _ if has("prompt") && has("completion") && object["prompt"].is_array() => Some(Format::Messages),
        _ if has("prompt") && has("completion") => Some(Format::PromptCompletion),
        _ if has("instruction") && has("output") => Some(Format::Alpaca),
        _ if has("text") => Some(Format::Text),
        _ => None,
    }
}

fn unknown(object: &Map<String, Value>, found: &[String]) -> String {
    let has = |key: &str| object.contains_key(key);
    for (one, other) in [("prompt", "completion"), ("instruction", "output")] {
        match (has(one), has(other)) {
            (true, false) => return format!("`{one}` has no `{other}` beside it"),
            (false, true) => return format!("`{other}` has no `{one}` beside it"),
            _ => {}
        }
    }
    format!("has the keys [{}]; expected {ACCEPTED}", found.join(", "))
}

fn messages(object: &Map<String, Value>) -> Reason<Vec<Message>> {
    if let Some(list) = object.get("messages") {
        return messages_of("messages", list);
    }
    let mut messages = messages_of("prompt", &object["prompt"])?;
    messages.extend(messages_of("completion", &object["completion"])?);
    Ok(messages)
}

fn string(object: &Map<String, Value>, key: &str) -> Reason<String> {
    match &object[key] {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("`{key}` must be a string, not {}", kind(other))),
    }
}

fn answer(object: &Map<String, Value>, key: &str) -> Reason<String> {
    match string(object, key)? {
        text if text.is_empty() => Err(format!("`{key}` is empty: there is nothing to learn")),
        text => Ok(text),
    }
}

/// The kind of a JSON value, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_told_apart_by_its_keys() {
        let talk = Record::Messages(vec![Message::new("user", "q"), Message::new("assistant", "a")]);
        let list = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        let sharegpt = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
        let task =
            |input: &str| Record::Instruction { instruction: "i".into(), input: input.into(), output: "o".into() };
        for (value, format, record) in [
            (json!({"messages": list, "prompt": "q"}), Format::Messages, talk.clone()),
            (json!({"prompt": [list[0]], "completion": [list[1]]}), Format::Messages, talk.clone()),
            (json!({"conversations": sharegpt}), Format::ShareGpt, talk.clone()),
            (json!({"conversations": list}), Format::ShareGpt, talk),
            (
                json!({"prompt": "p", "completion": "c"}),
                Format::PromptCompletion,
                Record::PromptCompletion { prompt: "p".into(), completion: "c".into() },
            ),
            (json!({"instruction": "i", "input": "x", "output": "o", "text": "t"}), Format::Alpaca, task("x")),
            (json!({"instruction": "i", "input": null, "output": "o"}), Format::Alpaca, task("")),
            (json!({"text": "t", "messages": null, "id": 3}), Format::Text, Record::Text("t".into())),
        ] {
            assert_eq!(Record::parse(value.clone()).unwrap(), (format, record), "{value}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_key() {
        for (value, part) in [
            (json!({"question": "i", "answer": "o"}), "[question, answer]"),
            (json!({"prompt": "p"}), "no `completion`"),
            (json!({"output": "o"}), "no `instruction`"),
            (json!({"text": 3}), "must be a string, not a number"),
            (json!({"text": ""}), "empty"),
            (json!({"instruction": "i", "output": ""}), "nothing to learn"),
            (json!({"messages": [{"role": "user", "content": "q"}]}), "no answer"),
            (json!({"messages": [{"role": "user"}]}), "messages[0]"),
            (json!({"messages": "q"}), "must be a list"),
            (json!({"conversations": [{"from": "narrator", "value": "q"}]}), "`narrator`"),
            (json!({"conversations": [{"from": "gpt"}]}), "conversations[0]"),
            (json!([1]), "not a JSON object"),
        ] {
            let reason = Record::parse(value.clone()).unwrap_err();
            assert!(reason.contains(part), "{value}: {reason}");
        }
    }

    #[test]
    fn keys_of_a_message_that_are_null_are_absent_and_a_call_needs_no_content() {
        let call = json!([{"function": {"name": "f", "arguments": {"x": null}}}]);
        let value = json!({"messages": [
            {"role": "user", "content": "q", "name": null},
            {"role": "assistant", "content": null, "tool_calls": call},
            {"role": "tool", "content": "r", "tool_calls": null},
            {"role": "assistant", "content": "a"}]});
        let (_, Record::Messages(messages)) = Record::parse(value).unwrap() else { panic!("messages") };
        assert!(messages[0].extra.is_empty() && messages[2].extra.is_empty());
        assert_eq!((messages[1].content.as_str(), &messages[1].extra["tool_calls"]), ("", &call));
    }

    #[test]
    fn a_sharegpt_record_may_have_its_system_text_beside_it() {
        let value =
            json!({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]});
        let (_, Record::Messages(messages)) = Record::parse(value).unwrap() else { panic!("messages") };
        assert_eq!(messages.iter().map(|m| m.role.as_str()).collect::<Vec<_>>(), ["system", "user", "assistant"]);
    }
}
