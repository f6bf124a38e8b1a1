//! The memory calculator.

use leptos::prelude::*;

/// The page.
#[component]
pub(crate) fn Calculator() -> impl IntoView {
    view! { <article class="page"><h1>"Memory calculator"</h1></article> }
}
