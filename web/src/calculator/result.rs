//! The answer at a glance: what is needed, of what it consists, whether the chosen GPU holds it.

use halfbyte_memory::{Component, bytes, gpu, grouped};
use leptos::prelude::*;

use super::question::Question;
use crate::ui::{Part, Stack};

/// A component's colour.
pub(crate) fn tone(component: Component) -> u8 {
    match component {
        Component::Base => 0,
        Component::Other => 1,
        Component::Adapters => 2,
        Component::Optimizer => 3,
        Component::Gradients => 4,
        Component::Inputs => 5,
        Component::Graph => 6,
        Component::Backward => 7,
        Component::Work => 8,
        Component::Scores => 9,
        Component::Logits => 10,
        Component::Scratch | Component::Decoded | Component::Batch | Component::File | Component::Kept => 11,
    }
}

/// The figures and the bar.
#[component]
pub(crate) fn Summary(question: Question) -> impl IntoView {
    let parts = Memo::new(move |_| {
        let lines = question.plan.with(|plan| plan.as_ref().map(|plan| plan.at_peak()).unwrap_or_default());
        let part = |line: halfbyte_memory::Line| Part {
            label: line.name,
            value: line.bytes as f64,
            text: bytes(line.bytes),
            tone: tone(line.component),
        };
        lines.into_iter().map(part).collect::<Vec<_>>()
    });
    let capacity = Signal::derive(move || {
        question.gpu.with(|name| gpu(name)).map_or(0.0, |(_, gib)| gib as f64 * (1u64 << 30) as f64)
    });
    let label = Signal::derive(move || {
        let parts = parts.get().into_iter().map(|part| format!("{} {}", part.label, part.text));
        parts.collect::<Vec<_>>().join(", ")
    });
    let needed = move || question.plan.with(|plan| plan.as_ref().map_or("-".to_owned(), |plan| bytes(plan.peak())));
    let stays =
        move || question.plan.with(|plan| plan.as_ref().map_or("-".to_owned(), |plan| bytes(plan.persistent())));
    let trained = move || {
        let count = question.shape.with(|shape| {
            shape.as_ref().ok().map(|shape| question.run.with(|run| (run.trained(shape), shape.parameters())))
        });
        count.map_or("-".to_owned(), |(trained, all)| {
            format!("{} ({:.2}%)", grouped(trained), 100.0 * trained as f64 / all as f64)
        })
    };
    view! {
        <section class="card" aria-labelledby="answer-title">
            <h2 id="answer-title">"At the peak"</h2>
            <dl class="figures" aria-live="polite">
                <div><dt>"Needed"</dt><dd id="needed">{needed}</dd></div>
                <div><dt>"Of it for the whole run"</dt><dd>{stays}</dd></div>
                <div><dt>"Trained parameters"</dt><dd>{trained}</dd></div>
            </dl>
            <Stack label parts of=capacity/>
        </section>
    }
}
