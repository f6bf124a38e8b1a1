//! Which model: the one that ships, a folder of this machine, or one of the hub, whose plan is looked at before it is fetched.

use halfbyte_memory::bytes;
use halfbyte_protocol::{ModelReport, ModelSource, Part, Request};
use leptos::prelude::*;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{Event, HtmlInputElement};

use super::settings::Settings;
use super::shipped;
use super::state::{Phase, Play};
use crate::ui::{Callout, Choice, Kind, unique};

/// Where a model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Shipped,
    Folder,
    Hub,
}

/// The files that make a model, out of those of a folder.
fn wanted(name: &str) -> bool {
    let ends = [".json", ".safetensors", ".jinja"];
    ends.iter().any(|end| name.ends_with(end))
}

/// The choice of the model, its plan and its loading.
#[component]
pub(crate) fn Model(play: Play, settings: Settings) -> impl IntoView {
    let from = RwSignal::new(From::Shipped);
    let name = RwSignal::new(String::new());
    let files: RwSignal<Vec<(String, JsValue)>, LocalStorage> = RwSignal::new_local(vec![]);
    let chosen = move |event: Event| {
        let input = event.target().and_then(|target| target.dyn_into::<HtmlInputElement>().ok());
        let Some(list) = input.and_then(|input| input.files()) else { return };
        let all = (0..list.length()).filter_map(|i| list.get(i)).filter(|file| wanted(&file.name()));
        files.set(all.map(|file| (file.name(), file.into())).collect());
    };
    // The source, and the files that go with it.
    let source = move || -> Option<(ModelSource, Vec<JsValue>)> {
        match from.get() {
            From::Shipped => Some((shipped(), vec![])),
            From::Hub => {
                let name = name.get().trim().to_string();
                (!name.is_empty()).then(|| (ModelSource::Hub { name, endpoint: String::new() }, vec![]))
            }
            From::Folder => {
                let (names, parts): (Vec<String>, Vec<JsValue>) = files.get().into_iter().unzip();
                let files = names.into_iter().enumerate().map(|(i, name)| (name, Part(i))).collect();
                (!parts.is_empty()).then(|| (ModelSource::Files { name: "my-model".into(), files }, parts))
            }
        }
    };
    let idle = move || play.phase.get() == Phase::Idle;
    let ready = move || idle() && source().is_some();
    let recipe = move || settings.recipe(u64::MAX);
    let plan = move |_| {
        if let Some((model, parts)) = untrack(source) {
            play.failure.set(None);
            play.planned.set(None);
            play.post_with(&Request::Plan { model, recipe: untrack(recipe) }, &parts);
        }
    };
    let load = move |_| {
        if let Some((model, parts)) = untrack(source) {
            play.load(model, untrack(recipe), parts, false);
        }
    };
    let options = vec![(From::Shipped, "Shipped"), (From::Folder, "A folder"), (From::Hub, "Hugging Face")];
    let (folder_id, hub_id) = (unique("folder"), unique("hub"));
    let field = move || {
        match from.get() {
        From::Shipped => view! {
            <p class="help">"wordnet-4m, 4 million parameters, pretrained on dictionary definitions; 8 MB."</p>
        }
        .into_any(),
        From::Folder => view! {
            <div class="field">
                <label for=folder_id.clone()>"config.json, tokenizer.json, *.safetensors and what else the folder holds"</label>
                <input id=folder_id.clone() type="file" multiple on:change=chosen/>
                <p class="help">{move || format!("{} files chosen; they are copied into this browser's storage", files.with(Vec::len))}</p>
            </div>
        }
        .into_any(),
        From::Hub => view! {
            <div class="field">
                <label for=hub_id.clone()>"Name, as org/name or org/name@revision"</label>
                <input
                    id=hub_id.clone()
                    type="text"
                    placeholder="HuggingFaceTB/SmolLM2-135M-Instruct"
                    prop:value=name
                    on:input:target=move |event| name.set(event.target().value())
                />
                <p class="help">"Asks huggingface.co; the files are kept in this browser's storage and a broken download goes on where it stopped."</p>
            </div>
        }
        .into_any(),
    }
    };
    let loaded = move || match (play.model.get(), play.progress.get()) {
        (_, Some(progress)) => {
            let part = |done: u64, total: u64| {
                (100 * done).checked_div(total).map_or(String::new(), |share| format!(" {share}%"))
            };
            format!("{}{}", progress.what, part(progress.done, progress.total))
        }
        (Some(model), None) => {
            format!("{}: {} parameters, loaded", model.name, halfbyte_memory::grouped(model.parameters))
        }
        (None, None) => "No model is loaded.".into(),
    };
    view! {
        <section class="card" aria-labelledby="model-title">
            <h2 id="model-title">"Model"</h2>
            <Choice label="Model" value=from options=options quiet=true/>
            {field}
            <div class="buttons">
                <button class="button" on:click=plan disabled=move || !ready()>"What would it need?"</button>
                <button class="button" on:click=load disabled=move || !ready()>"Load"</button>
            </div>
            {move || play.planned.get().map(|report| view! { <Planned report=report/> })}
            <p aria-live="polite" data-testid="model">{loaded}</p>
        </section>
    }
}

/// What a run with a model needs.
#[component]
fn Planned(report: ModelReport) -> impl IntoView {
    let ModelReport { name, parameters, download, needed, available, refusal, .. } = report;
    let fetched = if download > 0 { format!("; {} to fetch", bytes(download)) } else { String::new() };
    let has = available.map_or(String::new(), |available| format!(" of {}", bytes(available)));
    let line =
        format!("{} parameters{fetched}; a run needs {}{has}.", halfbyte_memory::grouped(parameters), bytes(needed));
    let kind = if refusal.is_some() { Kind::Warning } else { Kind::Good };
    view! { <Callout kind=kind title=name><p>{line}</p>{refusal.map(|refusal| view! { <p>{refusal}</p> })}</Callout> }
}
