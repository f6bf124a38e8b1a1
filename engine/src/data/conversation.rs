//! Conversations as messages, from the two ways that data sets write them.

use serde_json::Value;

use super::record::kind;
use crate::text::Message;

type Reason<T> = std::result::Result<T, String>;

/// The role of each speaker of ShareGPT's `from`.
const SPEAKERS: [(&str, &str); 12] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
];

/// A list of messages with `role` and `content`. Keys that are null are left out, as a table has to write them for every
/// message when one has them; a message that calls tools may have no content.
pub(super) fn messages_of(key: &str, value: &Value) -> Reason<Vec<Message>> {
    list(key, value)?.iter().enumerate().map(|(i, item)| message(key, i, item)).collect()
}

/// A list of turns with `from` and `value`, or with `role` and `content`; `system` goes before them.
pub(super) fn turns_of(system: Option<String>, value: &Value) -> Reason<Vec<Message>> {
    let key = "conversations";
    let turn = |(i, item): (usize, &Value)| {
        if item.get("role").is_some_and(|role| !role.is_null()) {
            return message(key, i, item);
        }
        let part = |name: &str| {
            item.get(name).and_then(Value::as_str).ok_or_else(|| {
                format!("`{key}[{i}]` must have the strings `from` and `value`, or `role` and `content`")
            })
        };
        let (from, text) = (part("from")?, part("value")?);
        let role = SPEAKERS.iter().find(|(name, _)| *name == from).map(|(_, role)| *role).ok_or_else(|| {
            let known: Vec<&str> = SPEAKERS.iter().map(|(name, _)| *name).collect();
            format!("`{key}[{i}].from` is `{from}`; known are {}", known.join(", "))
        })?;
        Ok(Message::new(role, text))
    };
    let turns = list(key, value)?.iter().enumerate().map(turn);
    system.map(|text| Ok(Message::new("system", text))).into_iter().chain(turns).collect()
}

fn list<'a>(key: &str, value: &'a Value) -> Reason<&'a Vec<Value>> {
    value.as_array().ok_or_else(|| format!("`{key}` must be a list of messages, not {}", kind(value)))
}

fn message(key: &str, i: usize, item: &Value) -> Reason<Message> {
    let mut item = item.clone();
    if let Value::Object(object) = &mut item {
        object.retain(|_, value| !value.is_null());
        if object.contains_key("tool_calls") && !object.contains_key("content") {
            object.insert("content".into(), Value::String(String::new()));
        }
    }
    serde_json::from_value(item)
        .map_err(|e| format!("`{key}[{i}]` is no message with the strings `role` and `content`: {e}"))
}

/// Refuses a conversation in which nobody answers.
pub(super) fn conversation(messages: Vec<Message>) -> Reason<Vec<Message>> {
    let answers = |m: &Message| m.role == "assistant" && (!m.content.is_empty() || m.extra.contains_key("tool_calls"));
    match messages.iter().any(answers) {
        true => Ok(messages),
        false => Err("holds no answer: no message with role `assistant` and content".into()),
    }
}
