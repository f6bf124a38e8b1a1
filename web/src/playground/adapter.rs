//! The adapter: down as the zip of a folder that PEFT and the command read, and up again.

use halfbyte_protocol::{Part, Request};
use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::{Event, HtmlInputElement};

use super::state::{Phase, Play};
use crate::ui::unique;

/// Download and upload.
#[component]
pub(crate) fn Adapter(play: Play) -> impl IntoView {
    let id = unique("zip");
    let idle = move || play.phase.get() == Phase::Idle;
    let there = move || play.adapter.with(Option::is_some);
    let upload = move |event: Event| {
        let input = event.target().and_then(|target| target.dyn_into::<HtmlInputElement>().ok());
        if let Some(file) = input.and_then(|input| input.files()).and_then(|files| files.get(0)) {
            play.failure.set(None);
            play.post_with(&Request::Import { zip: Part(0) }, &[file.into()]);
        }
    };
    view! {
        <section class="card" aria-labelledby="adapter-title">
            <h2 id="adapter-title">"Adapter"</h2>
            <p data-testid="adapter" aria-live="polite">
                {move || play.adapter.get().unwrap_or("None yet: train one, or upload one.".into())}
            </p>
            <div class="buttons">
                <button
                    class="button main"
                    on:click=move |_| play.post(&Request::Export)
                    disabled=move || !idle() || !there()
                >
                    "Download the adapter"
                </button>
            </div>
            <div class="field">
                <label for=id.clone()>"Upload an adapter, as a zip of PEFT's folder"</label>
                <input id=id type="file" accept=".zip" on:change=upload disabled=move || !idle()/>
            </div>
            <p class="help">
                "Unpacked, the native command talks with it: "<code>"halfbyte generate models/wordnet-4m --adapter adapter"</code>
            </p>
        </section>
    }
}
