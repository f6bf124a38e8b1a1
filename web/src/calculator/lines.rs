//! Every line of the plan with its formula, phase by phase.

use halfbyte_memory::{Phase, Plan, bytes};
use leptos::prelude::*;

use super::question::Question;
use super::result::tone;

/// The phases in the order of a run, and what they are called.
const PHASES: [(Phase, &str); 8] = [
    (Phase::Always, "For the whole run"),
    (Phase::Load, "While the model is loaded"),
    (Phase::Layers, "A step: through the layers and back"),
    (Phase::Loss, "A step: the loss"),
    (Phase::Update, "A step: the optimizer"),
    (Phase::Evaluate, "A held-out loss"),
    (Phase::Save, "Saving the adapter"),
    (Phase::Merge, "Merging the adapter, a process of its own"),
];

/// The lines of a phase under its name and what exists at its peak.
fn of_phase(plan: &Plan, phase: Phase, words: &'static str) -> Option<impl IntoView + use<>> {
    let lines: Vec<_> = plan.lines.iter().filter(|line| line.phase == phase).cloned().collect();
    let exists = bytes(plan.peak_of(phase));
    let row = |line: halfbyte_memory::Line| {
        view! {
            <tr>
                <th scope="row"><span class=format!("dot tone-{}", tone(line.component)) aria-hidden="true"></span>{line.name}</th>
                <td class="number">{bytes(line.bytes)}</td>
                <td class="formula">{line.formula}</td>
            </tr>
        }
    };
    (!lines.is_empty()).then(|| {
        view! {
            <tbody>
                <tr class="phase">
                    <th colspan="3" scope="rowgroup">{words}<span class="amount">{format!("{exists} exist at its peak")}</span></th>
                </tr>
                {lines.into_iter().map(row).collect_view()}
            </tbody>
        }
    })
}

/// The table.
#[component]
pub(crate) fn Lines(question: Question) -> impl IntoView {
    let bodies = move || {
        let plan = question.plan.get();
        plan.map(|plan| PHASES.map(|(phase, words)| of_phase(&plan, phase, words)).into_iter().collect_view())
    };
    view! {
        <section class="card" aria-labelledby="lines-title">
            <h2 id="lines-title">"Line by line"</h2>
            <p>"Each phase lists what it adds to what stays for the whole run, at the instant when most exists; loading and merging list all there is."</p>
            <div class="table folds" tabindex="0" role="region" aria-labelledby="lines-title">
                <table>
                    <thead><tr><th scope="col">"What"</th><th scope="col" class="number">"Bytes"</th><th scope="col">"How it is computed"</th></tr></thead>
                    {bodies}
                </table>
            </div>
        </section>
    }
}
