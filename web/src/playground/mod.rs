//! The playground: fine-tunes a model in this tab, on the GPU through WebGPU or on the CPU.

mod adapter;
mod answers;
mod curve;
mod data;
mod device;
mod model;
mod settings;
mod state;
mod watch;

use halfbyte_protocol::{ModelSource, RecipeSource};
use leptos::prelude::*;

use self::settings::Settings;
use self::state::Play;
use crate::ui::{Callout, Kind, address};

/// The recipe that the playground starts from: the one that ships.
const RECIPE: &str = include_str!("../../../recipes/kinds.toml");

/// The model that ships.
fn shipped() -> ModelSource {
    ModelSource::Site { name: "models/wordnet-4m".into(), url: address("models/wordnet-4m/") }
}

/// The page.
#[component]
pub(crate) fn Playground() -> impl IntoView {
    let settings = Settings::new();
    let recipe = RecipeSource { toml: RECIPE.into(), set: vec![] };
    let play = Play::start(shipped(), recipe);
    on_cleanup(move || play.end());
    let failure = move || {
        play.failure.get().map(|failure| {
            view! { <Callout kind=Kind::Error title="That did not work">{failure.message}</Callout> }
        })
    };
    let notes = move || {
        let note = |text: String| view! { <Callout kind=Kind::Note title="Worth knowing">{text}</Callout> };
        play.notes.get().into_iter().map(note).collect_view()
    };
    view! {
        <article class="page playground">
            <header class="page-head">
                <h1>"Playground"</h1>
                <p class="lede">
                    "Fine-tune a language model in this tab. The base stays frozen in 4 bits; a small LoRA adapter is trained on top. Nothing leaves your machine."
                </p>
            </header>
            <device::Device play=play/>
            <device::Saved play=play/>
            {failure}
            {notes}
            <model::Model play=play settings=settings/>
            <settings::Form play=play settings=settings/>
            <watch::Watch play=play/>
            <answers::Rounds play=play/>
            <answers::Own play=play/>
            <adapter::Adapter play=play/>
        </article>
    }
}
