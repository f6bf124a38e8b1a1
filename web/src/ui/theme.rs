//! Light or dark: the system's choice until the reader makes another, which this browser remembers.

use leptos::prelude::*;

use super::Choice;

/// Where `static/theme.js` finds the choice.
const KEY: &str = "theme";

fn storage() -> Option<web_sys::Storage> {
    window().local_storage().ok().flatten()
}

/// The choice of a theme.
#[component]
pub fn Theme() -> impl IntoView {
    let stored = storage().and_then(|storage| storage.get_item(KEY).ok().flatten()).unwrap_or_default();
    let theme = RwSignal::new(match stored.as_str() {
        "light" => "light",
        "dark" => "dark",
        _ => "",
    });
    Effect::new(move |before: Option<()>| {
        let theme = theme.get();
        if before.is_none() {
            return;
        }
        // A browser that stores nothing still shows the theme until the page is left.
        let root = document().document_element();
        if theme.is_empty() {
            let _ = root.map(|root| root.remove_attribute("data-theme"));
            let _ = storage().map(|storage| storage.remove_item(KEY));
        } else {
            let _ = root.map(|root| root.set_attribute("data-theme", theme));
            let _ = storage().map(|storage| storage.set_item(KEY, theme));
        }
    });
    view! {
        <div class="theme">
            <Choice label="Theme" value=theme options=vec![("", "Auto"), ("light", "Light"), ("dark", "Dark")] quiet=true/>
        </div>
    }
}
