//! A few numbers, large, each with what it is.

use leptos::prelude::*;

/// Numbers that follow the controls.
#[component]
pub(crate) fn Figures(
    /// What each is, and its value with its unit.
    #[prop(into)]
    of: Signal<Vec<(String, String)>>,
) -> impl IntoView {
    let figure = |(what, value): (String, String)| view! { <div><dt>{what}</dt><dd>{value}</dd></div> };
    view! { <dl class="figures" aria-live="polite">{move || of.get().into_iter().map(figure).collect_view()}</dl> }
}
