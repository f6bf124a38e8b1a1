//! The run as it goes: the loss curve, figures, and the memory against its plan.

use halfbyte_memory::bytes;
use leptos::prelude::*;

use super::curve::Curve;
use super::state::{Phase, Play};
use crate::ui::{Part, Stack};

/// A run under way, or the last one.
#[component]
pub(crate) fn Watch(play: Play) -> impl IntoView {
    let steps = Signal::derive(move || play.started.with(|s| s.as_ref().map_or(0, |s| s.steps)));
    let figure = move |label: &'static str, value: Signal<String>, id: &'static str| {
        view! { <div><dt>{label}</dt><dd data-testid=id>{value}</dd></div> }
    };
    let of_last = move |read: fn(&halfbyte_protocol::Step) -> String| {
        Signal::derive(move || play.last.with(|last| last.as_ref().map_or("–".into(), read)))
    };
    let step = Signal::derive(move || {
        let done = play.losses.with(Vec::len);
        format!("{done} / {}", steps.get())
    });
    let speed = Signal::derive(move || match play.speed.get() {
        speed if speed > 0.0 => format!("{speed:.0}"),
        _ => "–".into(),
    });
    let state = move || match (play.phase.get(), play.kept.get()) {
        (Phase::Paused, _) => "Paused.".into(),
        (_, Some(step)) => format!("Saved in this browser up to step {step}."),
        _ => String::new(),
    };
    let about = move || {
        play.started.get().map(|s| {
            let (trained, all) = s.parameters;
            let share = 100.0 * trained as f64 / all.max(1) as f64;
            format!(
                "{} examples, {} tokens of which {} are trained; {} parameters trained, {share:.2} % of all.",
                s.examples,
                s.tokens,
                s.trained_tokens,
                halfbyte_memory::grouped(trained as u64)
            )
        })
    };
    let warnings = move || {
        let warnings = play.started.with(|s| s.as_ref().map_or(vec![], |s| s.warnings.clone()));
        warnings.into_iter().map(|warning| view! { <p class="help">{warning}</p> }).collect_view()
    };
    view! {
        <section class="card" aria-labelledby="watch-title" hidden=move || play.started.with(Option::is_none)>
            <h2 id="watch-title">"Training"</h2>
            <p class="help">{about}</p>
            {warnings}
            <dl class="figures">
                {figure("Step", step, "step")}
                {figure("Loss", of_last(|s| format!("{:.3}", s.loss)), "loss")}
                {figure("Tokens per second", speed, "speed")}
                {figure("Learning rate", of_last(|s| format!("{:.1e}", s.learning_rate)), "rate")}
                {figure("Gradient norm", of_last(|s| format!("{:.2}", s.grad_norm)), "norm")}
            </dl>
            <Curve losses=play.losses evaluations=play.evaluations steps=steps/>
            <Memory play=play/>
            <p class="help" aria-live="polite">{state}</p>
            <details>
                <summary>"The recipe of this run"</summary>
                <pre>{move || play.started.with(|s| s.as_ref().map_or(String::new(), |s| s.recipe.clone()))}</pre>
            </details>
        </section>
    }
}

/// The plan's parts as a bar, and what is in use.
#[component]
fn Memory(play: Play) -> impl IntoView {
    let parts = Signal::derive(move || {
        let Some(started) = play.started.get() else { return vec![] };
        // What is there at the run's peak: what stays, and the phase in which most exists.
        let phases = [halfbyte_memory::Phase::Layers, halfbyte_memory::Phase::Loss, halfbyte_memory::Phase::Update];
        let peak = phases.into_iter().max_by_key(|phase| started.plan.peak_of(*phase));
        let lines =
            started.plan.lines.iter().filter(|l| l.phase == halfbyte_memory::Phase::Always || Some(l.phase) == peak);
        let part = |(tone, line): (usize, &halfbyte_memory::Line)| Part {
            label: line.name.clone(),
            value: line.bytes as f64,
            text: bytes(line.bytes),
            tone: (tone % 12) as u8,
        };
        lines.enumerate().map(part).collect()
    });
    let used = move || {
        play.last.get().map(|step| match step.device_bytes {
            Some(device) => {
                format!("In use on the device: {}; the worker's own memory: {}.", bytes(device), bytes(step.host_bytes))
            }
            None => format!("The worker's memory, which holds everything on the CPU: {}.", bytes(step.host_bytes)),
        })
    };
    view! {
        <h3>"Memory, as planned"</h3>
        <Stack label="The memory of the run at its peak, by component".to_string() parts=parts/>
        <p class="help" data-testid="memory">{used}</p>
    }
}
