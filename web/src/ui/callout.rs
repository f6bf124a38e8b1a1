//! A paragraph that stands out.

use leptos::prelude::*;

/// Why it stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Worth knowing.
    Note,
    /// It went well.
    Good,
    /// It may not do what is wanted.
    Warning,
    /// It does not work; read out at once.
    Error,
}

/// A paragraph that stands out, with a word that says why.
#[component]
pub fn Callout(
    /// Why.
    kind: Kind,
    /// Its heading.
    #[prop(into)]
    title: String,
    children: Children,
) -> impl IntoView {
    let (class, role) = match kind {
        Kind::Note => ("callout", "note"),
        Kind::Good => ("callout good", "status"),
        Kind::Warning => ("callout warning", "note"),
        Kind::Error => ("callout error", "alert"),
    };
    view! {
        <div class=class role=role>
            <p class="callout-title">{title}</p>
            {children()}
        </div>
    }
}
