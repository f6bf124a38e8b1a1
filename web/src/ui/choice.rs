//! One of a few, all in sight: radio buttons that look like one control.

use leptos::prelude::*;

use super::unique;

/// One of a few options.
#[component]
pub fn Choice<T>(
    /// What is chosen.
    #[prop(into)]
    label: String,
    /// The choice.
    value: RwSignal<T>,
    /// The options and their words.
    options: Vec<(T, &'static str)>,
    /// Says what is chosen to screen readers only.
    #[prop(optional)]
    quiet: bool,
) -> impl IntoView
where
    T: Clone + PartialEq + Send + Sync + 'static,
{
    let name = unique("choice");
    let options = options.into_iter().map(|(option, word)| {
        let chosen = option.clone();
        view! {
            <label>
                <input
                    type="radio"
                    name=name.clone()
                    prop:checked=move || value.with(|value| *value == chosen)
                    on:change=move |_| value.set(option.clone())
                />
                <span>{word}</span>
            </label>
        }
    });
    view! {
        <fieldset class="field choice">
            <legend class=if quiet { "unseen" } else { "" }>{label}</legend>
            <div class="segments">{options.collect_view()}</div>
        </fieldset>
    }
}
