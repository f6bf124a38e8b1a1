//! A link that restores the question, and the tag that puts it into another page.

use leptos::prelude::*;
use wasm_bindgen_futures::{JsFuture, spawn_local};

use super::question::Question;
use crate::ui::address;

/// The tag of the widget with what differs from its defaults.
fn tag(question: Question) -> String {
    let mut text = "<halfbyte-memory".to_owned();
    let mut attribute = |name: &str, value: String, default: &str| {
        if value != default {
            let value = value.replace('&', "&amp;").replace('"', "&quot;");
            text.push_str(&format!(" {name}=\"{value}\""));
        }
    };
    let config = question.config.get();
    if config.is_empty() {
        attribute("model", question.model.get(), "");
    }
    attribute("config", config, "");
    attribute("gpu", question.gpu.get(), "");
    attribute("method", question.method.get(), "qlora");
    attribute("rank", question.rank.get().to_string(), "16");
    attribute("targets", question.targets.get(), "");
    attribute("length", question.length.get().to_string(), "2048");
    attribute("batch", question.batch.get().to_string(), "1");
    attribute("accumulation", question.accumulation.get().to_string(), "1");
    attribute("recompute", question.recompute.get().to_string(), "true");
    attribute("optimizer", if question.optimizer.get() == "adamw8bit" { "AdamW8bit" } else { "" }.to_owned(), "");
    attribute("dtype", question.dtype.get(), "bf16");
    text + "></halfbyte-memory>"
}

/// The link and the tag.
#[component]
pub(crate) fn Share(question: Question) -> impl IntoView {
    let copied = RwSignal::new("");
    let copy = move |_| {
        spawn_local(async move {
            let link = window().location().href().unwrap_or_default();
            let done = JsFuture::from(window().navigator().clipboard().write_text(&link)).await;
            copied.set(if done.is_ok() { "Copied." } else { "The browser forbids it; the address bar has the link." });
        });
    };
    let script = move || {
        let origin = window().location().origin().unwrap_or_default();
        format!(
            "<script type=\"module\" src=\"{origin}{}\"></script>\n{}",
            address("halfbyte-memory.js"),
            tag(question)
        )
    };
    view! {
        <section class="card" aria-labelledby="share-title">
            <h2 id="share-title">"Share"</h2>
            <p>"The page's address holds every setting."</p>
            <div class="buttons">
                <button class="button" on:click=copy>"Copy the link"</button>
                <span role="status">{copied}</span>
            </div>
            <details>
                <summary>"Put it into a page of yours"</summary>
                <pre tabindex="0"><code>{script}</code></pre>
            </details>
        </section>
    }
}
