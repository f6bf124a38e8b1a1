//! Parts of a whole as one bar, with a legend that says the same in words.

use leptos::prelude::*;

/// A part.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What it is.
    pub label: String,
    /// How much.
    pub value: f64,
    /// How much, as it is read.
    pub text: String,
    /// Its colour: one of the twelve `--tone-0` to `--tone-11` of `style/base.css`.
    pub tone: u8,
}

/// A bar of parts.
#[component]
pub fn Stack(
    /// What the bar shows, for who does not see it.
    #[prop(into)]
    label: Signal<String>,
    /// The parts, from left to right.
    #[prop(into)]
    parts: Signal<Vec<Part>>,
    /// What a full bar would be; the sum of the parts where they are more.
    #[prop(into, optional)]
    of: Signal<f64>,
) -> impl IntoView {
    let segments = move || {
        let parts = parts.get();
        let whole = of.get().max(parts.iter().map(|part| part.value).sum()).max(f64::MIN_POSITIVE);
        let segment = |part: Part| {
            let width = format!("{:.3}%", 100.0 * part.value / whole);
            view! { <span class=format!("tone-{}", part.tone) style:width=width title=format!("{}: {}", part.label, part.text)></span> }
        };
        parts.into_iter().map(segment).collect_view()
    };
    let legend = move || {
        let row = |part: Part| {
            view! {
                <li>
                    <span class=format!("dot tone-{}", part.tone) aria-hidden="true"></span>
                    <span>{part.label}</span>
                    <span class="amount">{part.text}</span>
                </li>
            }
        };
        parts.get().into_iter().map(row).collect_view()
    };
    view! {
        <figure class="stack">
            <div class="stack-bar" role="img" aria-label=label>{segments}</div>
            <ul class="legend">{legend}</ul>
        </figure>
    }
}
