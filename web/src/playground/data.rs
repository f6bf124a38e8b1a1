//! What is trained on: the shipped questions, what is pasted, or a file that is dropped.

use halfbyte_protocol::{DataSource, Part};
use leptos::prelude::*;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{DragEvent, File, HtmlInputElement};

use crate::ui::{Choice, address, unique};

/// Where the data comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Shipped,
    Pasted,
    Dropped,
}

/// An example of what can be pasted.
const EXAMPLE: &str = r#"{"prompt": "What do you say when you meet someone?", "completion": "Hello there!"}
{"prompt": "What do you say when you leave?", "completion": "See you soon!"}"#;

/// The chosen data.
#[derive(Clone, Copy)]
pub(crate) struct Data {
    pub(crate) from: RwSignal<From>,
    pub(crate) text: RwSignal<String>,
    pub(crate) file: RwSignal<Option<File>, LocalStorage>,
}

impl Data {
    pub(crate) fn new() -> Self {
        Self {
            from: RwSignal::new(From::Shipped),
            text: RwSignal::new(EXAMPLE.into()),
            file: RwSignal::new_local(None),
        }
    }

    /// What is trained on, what is held out, and the files that go with the message.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn sources(self) -> Result<(DataSource, Option<DataSource>, Vec<JsValue>), String> {
        let site = |file: &str| DataSource::Site { url: address(&format!("recipes/kinds/{file}")) };
        match self.from.get_untracked() {
            From::Shipped => Ok((site("train.jsonl"), Some(site("test.jsonl")), vec![])),
            From::Pasted => {
                let text = self.text.get_untracked();
                Ok((DataSource::Text { name: "pasted.jsonl".into(), text }, None, vec![]))
            }
            From::Dropped => {
                let file = self.file.get_untracked().ok_or("Choose a file to train on, or drop one, first.")?;
                Ok((DataSource::File { name: file.name(), file: Part(0) }, None, vec![file.into()]))
            }
        }
    }
}

/// The choice of the data.
#[component]
pub(crate) fn Chooser(data: Data) -> impl IntoView {
    let options = vec![(From::Shipped, "Shipped questions"), (From::Pasted, "Paste"), (From::Dropped, "A file")];
    let (text_id, file_id) = (unique("text"), unique("file"));
    let chosen = move |event: web_sys::Event| {
        let input = event.target().and_then(|target| target.dyn_into::<HtmlInputElement>().ok());
        data.file.set(input.and_then(|input| input.files()).and_then(|files| files.get(0)));
    };
    let dropped = move |event: DragEvent| {
        event.prevent_default();
        if let Some(file) = event.data_transfer().and_then(|transfer| transfer.files()).and_then(|files| files.get(0)) {
            data.file.set(Some(file));
            data.from.set(From::Dropped);
        }
    };
    let part = move || {
        match data.from.get() {
        From::Shipped => view! {
            <p class="help">
                "1,500 questions of one kind, What kind of thing is this: …?, answered in one short sentence; 200 more are held out."
            </p>
        }
        .into_any(),
        From::Pasted => view! {
            <div class="field">
                <label for=text_id.clone()>"Records, one JSON object a line"</label>
                <textarea
                    id=text_id.clone()
                    spellcheck="false"
                    prop:value=data.text
                    on:input:target=move |event| data.text.set(event.target().value())
                ></textarea>
                <p class="help">"prompt and completion, or messages, instruction and output, or text."</p>
            </div>
        }
        .into_any(),
        From::Dropped => view! {
            <div class="field drop">
                <label for=file_id.clone()>"A JSONL, JSON or CSV file, chosen or dropped here"</label>
                <input id=file_id.clone() type="file" accept=".jsonl,.ndjson,.json,.csv" on:change=chosen/>
                <p class="help">{move || data.file.get().map(|file| format!("{} · {} bytes", file.name(), file.size()))}</p>
            </div>
        }
        .into_any(),
    }
    };
    view! {
        <div class="data" on:dragover=|event: DragEvent| event.prevent_default() on:drop=dropped>
            <Choice label="Train on" value=data.from options=options/>
            {part}
        </div>
    }
}
