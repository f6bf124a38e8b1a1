//! Which GPUs hold the run, and how much of each it takes.

use halfbyte_memory::{GPUS, bytes, computes};
use leptos::prelude::*;

use super::question::Question;

/// The list of GPUs; the chosen one is what the bar above is drawn against.
#[component]
pub(crate) fn Gpus(question: Question) -> impl IntoView {
    let needed = Memo::new(move |_| question.plan.with(|plan| plan.as_ref().map(|plan| plan.peak())));
    let dtype = Memo::new(move |_| question.run.with(|run| run.compute_dtype));
    let row = move |(name, gib): (&'static str, u64)| {
        let share = move || needed.get().map(|needed| needed as f64 / (gib << 30) as f64);
        let computed = move || computes(name, dtype.get());
        let fits = move || computed() && share().is_some_and(|share| share <= 1.0);
        let words = move || match share() {
            _ if !computed() => "no bf16 here".to_owned(),
            None => String::new(),
            Some(share) if share <= 1.0 => format!("{:.0}%", (100.0 * share).ceil()),
            Some(share) if share < 1000.0 => format!("needs {share:.1} times as much"),
            Some(_) => "far too small".to_owned(),
        };
        let chosen = move || question.gpu.with(|gpu| gpu == name);
        view! {
            <li class:fits=fits>
                <button
                    class="gpu"
                    aria-pressed=move || chosen().to_string()
                    on:click=move |_| question.gpu.set(if chosen() { String::new() } else { name.to_owned() })
                >
                    <span class="name">{name}</span>
                    <span class="amount">{format!("{gib} GiB")}</span>
                    <span class="gauge" aria-hidden="true">
                        <span style:width=move || format!("{:.1}%", 100.0 * share().unwrap_or(0.0).min(1.0))></span>
                    </span>
                    <span class="share">{words}</span>
                </button>
            </li>
        }
    };
    let smallest = move || {
        let needed = needed.get()?;
        Some(match halfbyte_memory::fitting(needed, dtype.get()).next() {
            Some(name) => format!("{} fits on {name} and on what is larger.", bytes(needed)),
            None => format!("{} fits on no single GPU of the list.", bytes(needed)),
        })
    };
    view! {
        <section class="card" aria-labelledby="gpus-title">
            <h2 id="gpus-title">"GPUs"</h2>
            <p id="smallest" aria-live="polite">{smallest}</p>
            <ul class="gpus">{GPUS.map(row).collect_view()}</ul>
            <p class="help">"Whole memories as the datasheets state them. Choose one to see the bar above against it."</p>
        </section>
    }
}
