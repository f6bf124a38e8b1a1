//! How to train: the settings that the playground offers, and the recipe that they make.

use halfbyte_protocol::{RecipeSource, Request, Train};
use leptos::prelude::*;
use wasm_bindgen::JsValue;

use super::RECIPE;
use super::data::{self, Data};
use super::state::{Phase, Play};
use crate::ui::{Scale, Slider, query_state, unique};

/// The linear layers of a decoder, by the names that most families give them.
const LAYERS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/// Parameters below which a model is small.
const SMALL: u64 = 20_000_000;
/// The questions of the shipped recipe.
const QUESTIONS: &str = "What kind of thing is this: a large fish that lives in cold rivers?
What kind of thing is this: someone who bakes bread for a living?
What kind of thing is this: a tall evergreen with needles and cones?";

/// The settings of a run.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) data: Data,
    rank: RwSignal<f64>,
    alpha: RwSignal<f64>,
    rate: RwSignal<f64>,
    steps: RwSignal<f64>,
    batch: RwSignal<f64>,
    length: RwSignal<f64>,
    every: RwSignal<f64>,
    targets: RwSignal<Vec<&'static str>>,
    questions: RwSignal<String>,
}

impl Settings {
    /// Those of the shipped recipe, or what the address says.
    pub(crate) fn new() -> Self {
        Self {
            data: Data::new(),
            rank: query_state("r", 16.0),
            alpha: query_state("alpha", 32.0),
            rate: query_state("lr", 2e-3),
            steps: query_state("steps", 100.0),
            batch: query_state("batch", 16.0),
            length: query_state("length", 128.0),
            every: query_state("every", 25.0),
            targets: RwSignal::new(LAYERS.to_vec()),
            questions: RwSignal::new(QUESTIONS.into()),
        }
    }

    /// The recipe, as the command's `--set` would make it of the shipped one, for a model of so many parameters.
    pub(crate) fn recipe(self, parameters: u64) -> RecipeSource {
        // Keeping every layer's graph is fastest where it fits easily.
        let recompute = if parameters < SMALL { "none" } else { "layers" };
        let targets = self.targets.get();
        let targets = if targets.len() == LAYERS.len() { "\"all-linear\"".into() } else { format!("{targets:?}") };
        // Debug writes a string as TOML reads it, but for characters that it escapes as `\u{..}`.
        let question = |line: &str| serde_json::to_string(line.trim()).ok();
        let questions: Vec<String> =
            self.questions.get().lines().filter(|l| !l.trim().is_empty()).filter_map(question).collect();
        let set = vec![
            format!("lora.r={}", self.rank.get()),
            format!("lora.lora_alpha={:?}", self.alpha.get()),
            format!("lora.target_modules={targets}"),
            format!("training.learning_rate={}", self.rate.get()),
            format!("training.max_steps={}", self.steps.get()),
            // As many passes as the steps take.
            "training.epochs=0".into(),
            format!("training.batch_size={}", self.batch.get()),
            format!("data.max_length={}", self.length.get()),
            format!("training.recompute={recompute}"),
            format!("show.questions=[{}]", questions.join(", ")),
        ];
        RecipeSource { toml: RECIPE.into(), set }
    }

    /// A run by these settings.
    fn train(self, parameters: u64) -> Result<(Request, Vec<JsValue>), String> {
        let (train, test, parts) = self.data.sources()?;
        let answer_every = self.every.get_untracked() as usize;
        // Often enough that little is lost, and seldom enough that it does not slow a small model down.
        let save_every = (self.steps.get_untracked() as usize / 10).clamp(5, 50);
        Ok((Request::Train(Train { recipe: self.recipe(parameters), train, test, answer_every, save_every }), parts))
    }
}

fn rate_words(rate: f64) -> String {
    format!("{rate:e}")
}

/// The settings, and what begins and steers a run.
#[component]
pub(crate) fn Form(play: Play, settings: Settings) -> impl IntoView {
    let stops = |values: &[f64]| Scale::Stops(values.to_vec());
    let begin = move |_| match settings.train(play.model.with_untracked(|m| m.as_ref().map_or(0, |m| m.parameters))) {
        Ok((request, parts)) => play.begin(&request, &parts),
        Err(message) => {
            let kind = halfbyte_protocol::Kind::Setting;
            play.failure.set(Some(halfbyte_protocol::Failure { kind, message }));
        }
    };
    let ready = move || play.phase.get() == Phase::Idle && play.model.with(Option::is_some);
    let targets = LAYERS.map(|layer| {
        let toggle = move |_| {
            settings.targets.update(|targets| match targets.contains(&layer) {
                true if targets.len() > 1 => targets.retain(|target| *target != layer),
                true => {}
                false => *targets = LAYERS.into_iter().filter(|l| *l == layer || targets.contains(l)).collect(),
            });
        };
        view! {
            <label class="check">
                <input type="checkbox" prop:checked=move || settings.targets.with(|t| t.contains(&layer)) on:change=toggle/>
                {layer}
            </label>
        }
    });
    let questions_id = unique("questions");
    view! {
        <section class="card" aria-labelledby="settings-title">
            <h2 id="settings-title">"Data and settings"</h2>
            <data::Chooser data=settings.data/>
            <div class="fields">
                <Slider label="Rank" value=settings.rank scale=stops(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])/>
                <Slider label="Alpha" value=settings.alpha scale=stops(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])/>
                <Slider label="Learning rate" value=settings.rate scale=stops(&[1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2]) format=rate_words/>
                <Slider label="Steps" value=settings.steps scale=stops(&[10.0, 20.0, 50.0, 100.0, 200.0, 400.0, 1000.0])/>
                <Slider label="Examples per step" value=settings.batch scale=stops(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0])/>
                <Slider label="Longest example, in tokens" value=settings.length scale=stops(&[64.0, 128.0, 256.0, 512.0, 1024.0])/>
            </div>
            <fieldset class="field">
                <legend>"Adapted layers"</legend>
                <div class="checks">{targets.into_iter().collect_view()}</div>
            </fieldset>
            <details>
                <summary>"Questions that are answered while it trains"</summary>
                <div class="field">
                    <label for=questions_id.clone()>"One a line"</label>
                    <textarea
                        id=questions_id
                        prop:value=settings.questions
                        on:input:target=move |event| settings.questions.set(event.target().value())
                    ></textarea>
                </div>
                <Slider label="Steps between two rounds; 0 for before and after alone" value=settings.every scale=stops(&[0.0, 5.0, 10.0, 25.0, 50.0, 100.0])/>
            </details>
            <div class="buttons">
                <button class="button main" on:click=begin disabled=move || !ready()>"Train"</button>
                <Steer play=play/>
            </div>
        </section>
    }
}

/// Pause, go on, stop.
#[component]
fn Steer(play: Play) -> impl IntoView {
    let training = move || play.phase.get() == Phase::Training && play.started.with(Option::is_some);
    let paused = move || play.phase.get() == Phase::Paused;
    view! {
        <button class="button" on:click=move |_| play.post(&Request::Pause) disabled=move || !training()>"Pause"</button>
        <button class="button" on:click=move |_| play.post(&Request::Resume) disabled=move || !paused()>"Go on"</button>
        <button class="button" on:click=move |_| play.post(&Request::Stop) disabled=move || !training() && !paused()>"Stop"</button>
    }
}
