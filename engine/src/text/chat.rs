//! Chat templates, rendered as transformers renders them (`apply_chat_template`).

use std::fmt::Write;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error as JinjaError, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use web_time::SystemTime;

use crate::{Error, Result};

/// One turn of a conversation. Keys beside role and content are kept for the template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or what the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Other keys.
    #[serde(flatten)]
    pub extra: Map<String, serde_json::Value>,
}

impl Message {
    /// A turn without other keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// Instructions that a template may take: it comes with the model and may be hostile.
const FUEL: u64 = 5_000_000;
/// Bytes that it may write: fuel counts instructions, and one of them can write much.
const MAX_RENDERED: usize = 16 << 20;
const NAME: &str = "chat_template";
/// The function that tells the time.
const CLOCK: &str = "strftime_now";

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether what it makes depends on the day.
    tells_time: bool,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is no Jinja.
    pub fn new(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function(CLOCK, |format: String| formatted(now(), &format));
        environment.add_filter("tojson", to_json);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool if value.is_true() => out.write_str("True").map_err(JinjaError::from),
            ValueKind::Bool => out.write_str("False").map_err(JinjaError::from),
            ValueKind::None => out.write_str("None").map_err(JinjaError::from),
            _ => minijinja::escape_formatter(out, state, value),
        });
        // `{% generation %}` marks answers for transformers' masks; masks here come from renderings alone.
        let source = without_generation_tags(source);
        let tells_time = source.contains(CLOCK);
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| Error::Invalid(format!("the chat template does not compile: {e:#}")))?;
        Ok(Self { environment, tells_time })
    }

    /// From now on it is always this day, or today, where the template asks. Which day it is: none where it does not ask.
    pub fn settle_date(&mut self, date: Option<NaiveDate>) -> Option<NaiveDate> {
        if !self.tells_time {
            return None;
        }
        let date = date.unwrap_or_else(|| now().date_naive());
        let time = date.and_time(NaiveTime::MIN).and_utc();
        self.environment.add_function(CLOCK, move |format: String| formatted(time, &format));
        Some(date)
    }

    /// Renders a conversation; with `add_generation_prompt` it ends where the answer begins.
    ///
    /// # Errors
    /// What the template raises, or that it took too many instructions or writes too much.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        bos_token: &str,
        eos_token: &str,
    ) -> Result<String> {
        let mut out = Bounded::default();
        let values = context! { messages, add_generation_prompt, bos_token, eos_token, tools => (), documents => () };
        let rendered =
            self.environment.get_template(NAME).and_then(|t| t.render_captured_to(values, &mut out).map(|_| ()));
        match rendered {
            Ok(()) => String::from_utf8(out.text).map_err(|e| Error::Invalid(e.to_string())),
            Err(_) if out.full => {
                Err(Error::Invalid("the chat template makes more than 16 MiB of the conversation; shorten it".into()))
            }
            Err(e) => {
                let detail = e.detail().map_or_else(|| e.to_string(), str::to_string);
                Err(Error::Invalid(format!("the chat template refuses the conversation: {detail}")))
            }
        }
    }
}

/// What a template writes, up to [`MAX_RENDERED`].
#[derive(Default)]
struct Bounded {
    text: Vec<u8>,
    full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + piece.len() > MAX_RENDERED {
            self.full = true;
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        self.text.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The template without its `generation` and `endgeneration` tags, with what their trimming marks would have trimmed.
fn without_generation_tags(source: &str) -> String {
    let mut out = source.to_string();
    for (tag, comment) in [("generation", "{#"), ("endgeneration", "{#")] {
        let mut from = 0;
        while let Some(found) = out[from..].find("{%") {
            let start = from + found;
            // `{%}` does not close itself.
            let Some(length) = out[start + 2..].find("%}") else { break };
            let inside = &out[start + 2..start + 2 + length];
            let name = inside.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
            if name == tag {
                // A comment takes part in the trimming of blanks as a block does.
                let (left, right) =
                    (if inside.starts_with('-') { "-" } else { "" }, if inside.ends_with('-') { "-" } else { "" });
                out.replace_range(start..start + length + 4, &format!("{comment}{left} {right}#}}"));
            }
            from = start + 2;
        }
    }
    out
}

/// transformers' `tojson`: JSON as Python writes it (`, ` and `: `), not escaped for HTML, indented on request.
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<String, JinjaError> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed = |e: serde_json::Error| JinjaError::new(ErrorKind::BadSerialization, e.to_string());
    let json = serde_json::to_value(value).map_err(failed)?;
    let mut out = String::new();
    write_json(&json, indent, 0, &mut out);
    Ok(out)
}

fn write_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let newline = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    let list = |open: char, close: char, items: Vec<(Option<&String>, &serde_json::Value)>, out: &mut String| {
        out.push(open);
        for (i, (key, item)) in items.iter().enumerate() {
            out.push_str(if i > 0 { separator } else { "" });
            newline(depth + 1, out);
            if let Some(key) = key {
                out.push_str(&format!("{}: ", serde_json::Value::String((*key).clone())));
            }
            write_json(item, indent, depth + 1, out);
        }
        if !items.is_empty() {
            newline(depth, out);
        }
        out.push(close);
    };
    match value {
        serde_json::Value::Array(items) => list('[', ']', items.iter().map(|item| (None, item)).collect(), out),
        serde_json::Value::Object(map) => list('{', '}', map.iter().map(|(k, v)| (Some(k), v)).collect(), out),
        other => out.push_str(&other.to_string()),
    }
}

/// A time in UTC by C's format; transformers takes the machine's own zone.
fn formatted(time: DateTime<Utc>, format: &str) -> std::result::Result<String, JinjaError> {
    let mut text = String::new();
    let refused = |_| JinjaError::new(ErrorKind::InvalidOperation, format!("strftime_now: `{format}` is no format"));
    write!(text, "{}", time.format(format)).map_err(refused)?;
    Ok(text)
}

/// The time now.
fn now() -> DateTime<Utc> {
    let since = SystemTime::now().duration_since(web_time::UNIX_EPOCH).unwrap_or_default();
    DateTime::from_timestamp(since.as_secs() as i64, 0).unwrap_or_default()
}
