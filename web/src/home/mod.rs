//! The first page: what Halfbyte is, and where to go.

use leptos::prelude::*;

use crate::ui::Link;

/// The page.
#[component]
pub(crate) fn Home() -> impl IntoView {
    view! { <article class="page"><h1>"Halfbyte"</h1><p><Link to="calculator">"Calculator"</Link></p></article> }
}
