//! Lesson: a training step layer by layer, with layers computed again and with everything kept, side by side in time.

use halfbyte_memory::{Component, ModelShape, Moment, Run, Stretch, Workload, bytes, grouped, plan, timeline};
use leptos::prelude::*;

use super::parts::{Axis, Chart, Figures, Formula, Lesson, Model, Predict, Series, Shape, Task, shape};
use crate::ui::{Cite, Scale, Slider, Source, query_state};

const GIB: f64 = (1u64 << 30) as f64;
/// Milliseconds from one layer to the next while it plays.
const PACE: std::time::Duration = std::time::Duration::from_millis(250);

/// A step in one of the two ways.
#[derive(Clone, Debug, PartialEq)]
struct Way {
    moments: Vec<Moment>,
    /// What stays for the whole run.
    persistent: u64,
    peak: u64,
}

fn run(batch: u64, length: u64, recompute: bool) -> Run {
    Run { batch, length, recompute, ..Run::default() }
}

/// With layers computed again, and with their graphs kept.
fn ways(model: &ModelShape, batch: u64, length: u64) -> [Way; 2] {
    [true, false].map(|recompute| {
        let run = run(batch, length, recompute);
        let plan = plan(model, &run);
        Way { moments: timeline(model, &run), persistent: plan.persistent(), peak: plan.peak() }
    })
}

/// Operations with layers computed again, over those with everything kept.
fn extra(model: &ModelShape, batch: u64, length: u64) -> f64 {
    let of = |recompute| Workload::of(model, &run(batch, length, recompute), 1e6).operations;
    of(true) / of(false)
}

/// What of a layer is in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Nothing,
    Input,
    Graph,
    Working,
}

/// What is held of each layer at the end of a stretch, and which layer it works on.
fn held(stretch: Stretch, layers: u64, recompute: bool) -> Vec<Held> {
    let kept = if recompute { Held::Input } else { Held::Graph };
    let of = |layer: u64| match stretch {
        Stretch::Forward(now) if layer == now => Held::Working,
        Stretch::Forward(now) if layer < now => kept,
        Stretch::Backward(now) if layer == now => Held::Working,
        Stretch::Backward(now) if layer < now => kept,
        Stretch::Loss => kept,
        Stretch::Forward(_) | Stretch::Backward(_) | Stretch::Update => Held::Nothing,
    };
    (0..layers).map(of).collect()
}

fn words(stretch: Stretch, recompute: bool) -> String {
    match (stretch, recompute) {
        (Stretch::Forward(layer), true) => format!("forward through layer {}: only its input is kept", layer + 1),
        (Stretch::Forward(layer), false) => format!("forward through layer {}: its whole graph is kept", layer + 1),
        (Stretch::Loss, _) => "the loss and its gradient, a few tokens at a time".into(),
        (Stretch::Backward(layer), true) => {
            format!("layer {} again, now with its graph, and backwards through it", layer + 1)
        }
        (Stretch::Backward(layer), false) => format!("backwards through layer {}, whose graph goes", layer + 1),
        (Stretch::Update, _) => "the optimizer updates the adapters".into(),
    }
}

fn component(moment: &Moment, of: Component) -> u64 {
    moment.peak_parts().find(|(component, _)| *component == of).map_or(0, |(_, bytes)| bytes)
}

fn goals([again, kept]: &[Way; 2], tokens: u64) -> Vec<(String, bool)> {
    vec![
        (format!("With layers computed again it fits in 24 GiB (now {})", bytes(again.peak)), again.peak <= 24 << 30),
        (format!("With everything kept it needs more than 48 GiB (now {})", bytes(kept.peak)), kept.peak > 48 << 30),
        (format!("A step sees 8192 tokens or more (now {})", grouped(tokens)), tokens >= 8192),
    ]
}

fn reduced_motion() -> bool {
    let query = window().match_media("(prefers-reduced-motion: reduce)").ok().flatten();
    query.is_some_and(|query| query.matches())
}

/// The page.
#[component]
pub(crate) fn TrainingLoop() -> impl IntoView {
    let model = query_state("model", "llama-3.2-1b".to_owned());
    let batch = query_state("batch", 1.0_f64);
    let length = query_state("length", 1024.0_f64);
    let at = query_state("at", 0.0_f64);
    let size = Memo::new(move |_| {
        (shape(&model.get()), batch.get().clamp(1.0, 64.0) as u64, length.get().clamp(16.0, 32_768.0) as u64)
    });
    let both = Memo::new(move |_| size.with(|(model, batch, length)| ways(model, *batch, *length)));
    let last = Memo::new(move |_| both.with(|both| both[0].moments.len()).saturating_sub(1));
    let place = move || (at.get().max(0.0) as usize).min(last.get());
    let playing = RwSignal::new(false);
    let go = move |by: f64| at.set((at.get_untracked() + by).clamp(0.0, last.get_untracked() as f64));
    Effect::new(move |_| {
        if !playing.get() {
            return;
        }
        let tick = move || if untrack(place) >= last.get_untracked() { playing.set(false) } else { go(1.0) };
        if let Ok(timer) = set_interval_with_handle(tick, PACE) {
            on_cleanup(move || timer.clear());
        }
    });
    let toggle = move |_| {
        if !playing.get_untracked() && untrack(place) >= last.get_untracked() {
            at.set(0.0);
        }
        playing.update(|playing| *playing = !*playing);
    };
    let series = move || {
        both.with(|both| {
            let curve = |way: &Way| {
                let over = |moment: &Moment| moment.peak().saturating_sub(way.persistent) as f64 / GIB;
                way.moments.iter().enumerate().map(|(i, moment)| (i as f64, over(moment))).collect()
            };
            let top = both.iter().map(|way| way.peak - way.persistent).max().unwrap_or(0) as f64 / GIB;
            let series = vec![
                Series::new("everything kept", 3, Shape::Line, curve(&both[1])),
                Series::new("layers computed again", 0, Shape::Line, curve(&both[0])),
                Series::new("now", 2, Shape::Stems, vec![(place() as f64, top)]),
            ];
            (top, series)
        })
    };
    let drawn = Memo::new(move |_| series());
    let figures = move || {
        both.with(|both| {
            let over = |way: &Way| bytes(way.peak - way.persistent);
            let ratio = size.with(|(model, batch, length)| extra(model, *batch, *length));
            vec![
                ("Stays for the whole run".to_owned(), bytes(both[0].persistent)),
                ("On top, computed again".to_owned(), over(&both[0])),
                ("On top, everything kept".to_owned(), over(&both[1])),
                ("Operations, computed again".to_owned(), format!("{ratio:.2} ×")),
            ]
        })
    };
    let lanes = [(true, "Layers computed again"), (false, "Everything kept")].map(move |(recompute, title)| {
        let way = usize::from(!recompute);
        let moment = move || both.with(|both| both[way].moments.get(place()).cloned());
        let cells = move || {
            let cell = |held: Held| {
                let class = match held {
                    Held::Nothing => "cell",
                    Held::Input => "cell here",
                    Held::Graph => "cell graph",
                    Held::Working => "cell used",
                };
                view! { <span class=class></span> }
            };
            let layers = size.with(|(model, ..)| model.layers);
            moment().map(|moment| held(moment.stretch, layers, recompute).into_iter().map(cell).collect_view())
        };
        let says = move || moment().map_or_else(String::new, |moment| words(moment.stretch, recompute));
        let holds = move || {
            let Some(moment) = moment() else { return String::new() };
            let (inputs, graphs) = (component(&moment, Component::Inputs), component(&moment, Component::Graph));
            format!("{} of inputs, {} of graphs", bytes(inputs), bytes(graphs))
        };
        view! {
            <div class="method">
                <h3>{title}<span class="amount">{holds}</span></h3>
                <div class="cells" role="img" aria-label=says>{cells}</div>
                <p class="help lane">{says}</p>
            </div>
        }
    });
    let still = reduced_motion();
    view! {
        <Lesson path="lessons/training-loop" lede="The backward pass needs what the forward pass computed. It can be kept, or computed again when its turn comes.">
            <Predict
                question="Each layer of a frozen model with adapters is computed a second time in the backward pass. How many more operations does a step take?"
                options=&["about a tenth more", "about half as many again", "three times as many"]
                right=1
            >
                <p>{move || {
                    let ratio = extra(&shape("llama-3.1-8b"), 1, 2048);
                    format!("{ratio:.2} times as many for Llama 3.1 8B and 2048 tokens. A frozen weight is multiplied once on the way forward and once on the way back, for the gradient of its input; a weight's own gradient is not needed. A third product is half as many again.")
                }}</p>
            </Predict>
            <p>
                "Keeping the input of each layer is enough to compute the layer again. So the graph of one layer exists at a time, whatever the depth, and the rest is a thin slice for each. "
                <Cite of=Source::CHECKPOINTS place="section 4"/>
                " Halfbyte's trainer goes this way: forward without a graph, then from the top a layer at a time. Below are both ways through one step, tensor by tensor, from the plan that its tests compare with the allocator."
            </p>
            <Formula math="<mtext>kept</mtext><mo>:</mo><mspace width='0.5em'/><mi>L</mi><mo>·</mo><mi>G</mi><mspace width='2em'/><mtext>computed again</mtext><mo>:</mo><mspace width='0.5em'/><mi>L</mi><mo>·</mo><mi>t</mi><mi>H</mi><mo>+</mo><mi>G</mi>"/>
            <p class="help">"L layers, t tokens, H the width of the residual stream, G the graph of one layer."</p>
            <section class="card" aria-label="One training step">
                <div class="fields">
                    <Model value=model/>
                    <Slider label="Sequences at once" value=batch scale=Scale::Stops(vec![1.0, 2.0, 4.0, 8.0, 16.0])/>
                    <Slider label="Tokens of a sequence" value=length scale=Scale::Stops((8..=14).map(|power| f64::from(1u32 << power)).collect()) format=|n| format!("{} tokens", grouped(n as u64))/>
                </div>
                <Figures of=Signal::derive(figures)/>
                <Chart
                    label="Memory on top of what stays, over one training step, in both ways"
                    x=Signal::derive(move || {
                        let layers = size.with(|(model, ..)| model.layers) as f64;
                        let ticks = vec![(0.0, "forward".to_owned()), (layers, "loss".to_owned()), (2.0 * layers, "update".to_owned())];
                        Axis { label: "layer by layer".into(), from: 0.0, to: 2.0 * layers + 1.0, ticks }
                    })
                    y=Signal::derive(move || Axis::even("GiB on top", 0.0, drawn.with(|(top, _)| *top), 4, |v| format!("{v:.2}")))
                    series=Signal::derive(move || drawn.with(|(_, series)| series.clone()))
                />
                <div class="buttons">
                    <button class="button" on:click=move |_| go(-1.0) prop:disabled=move || place() == 0>"Back"</button>
                    {(!still).then(|| view! {
                        <button class="button main" on:click=toggle>{move || if playing.get() { "Pause" } else { "Play" }}</button>
                    })}
                    <button class="button" on:click=move |_| go(1.0) prop:disabled=move || place() == last.get()>"Step"</button>
                    {still.then(|| view! { <span class="help">"Your system asks for little motion: go by hand."</span> })}
                </div>
                {move || view! { <Slider label="Place in the step" value=at scale=Scale::Even { from: 0.0, to: last.get() as f64, step: 1.0 } format=|at| grouped(at as u64)/> }}
                <div class="methods">{lanes.collect_view()}</div>
                <p class="help">
                    <span class="key"><span class="cell used"></span>" worked on"</span>
                    <span class="key"><span class="cell here"></span>" input kept"</span>
                    <span class="key"><span class="cell graph"></span>" graph kept"</span>
                    <span class="key"><span class="cell"></span>" nothing kept"</span>
                </p>
            </section>
            <Task
                goals=Signal::derive(move || both.with(|both| size.with(|(_, batch, length)| goals(both, batch * length))))
                solved="Half as many operations again bought a step that would have needed a card twice the size and more."
            >
                "Find a step that only computing again can make on a 24 GiB card."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computing_again_costs_half_as_many_operations_again() {
        let ratio = extra(&shape("llama-3.1-8b"), 1, 2048);
        assert!((1.3..1.55).contains(&ratio), "{ratio}");
    }

    #[test]
    fn what_is_drawn_as_held_is_what_the_plan_holds() {
        let model = shape("llama-3.2-1b");
        for (way, recompute) in ways(&model, 1, 1024).iter().zip([true, false]) {
            for moment in &way.moments {
                let held = held(moment.stretch, model.layers, recompute);
                let count = |what| held.iter().filter(|held| **held == what).count() as u64;
                let graphs = moment.parts_after().find(|(c, _)| *c == Component::Graph).map_or(0, |(_, bytes)| bytes);
                if recompute {
                    assert_eq!((count(Held::Graph), graphs), (0, 0), "{:?}", moment.stretch);
                } else if let Stretch::Backward(layer) = moment.stretch {
                    assert_eq!(count(Held::Graph) == 0, graphs == 0 || layer == 0, "{:?}", moment.stretch);
                }
            }
        }
    }

    #[test]
    fn the_task_is_open_at_first_and_can_be_solved() {
        let solved = |name: &str, batch: u64, length: u64| {
            let both = ways(&shape(name), batch, length);
            goals(&both, batch * length).iter().all(|(_, met)| *met)
        };
        assert!(!solved("llama-3.2-1b", 1, 1024));
        assert!(solved("llama-3.1-8b", 8, 2048));
    }
}
