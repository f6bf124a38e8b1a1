//! One of many, by a list that opens.

use leptos::prelude::*;

use super::unique;

/// One of many options, in groups.
#[component]
pub fn Select(
    /// What is chosen.
    #[prop(into)]
    label: String,
    /// The chosen option's value.
    value: RwSignal<String>,
    /// Groups and their options, each a value and its words; a group without a name stands outside of all.
    #[prop(into)]
    groups: Signal<Vec<(String, Vec<(String, String)>)>>,
) -> impl IntoView {
    let id = unique("select");
    let option = move |(option, words): (String, String)| {
        let chosen = option.clone();
        view! { <option value=option prop:selected=move || value.with(|value| *value == chosen)>{words}</option> }
    };
    let list = move || {
        let of_group = |(name, options): (String, Vec<(String, String)>)| {
            let options = options.into_iter().map(option).collect_view();
            match name.is_empty() {
                true => options.into_any(),
                false => view! { <optgroup label=name>{options}</optgroup> }.into_any(),
            }
        };
        groups.get().into_iter().map(of_group).collect_view()
    };
    view! {
        <div class="field select">
            <label for=id.clone()>{label}</label>
            <select id=id on:change:target=move |event| value.set(event.target().value())>{list}</select>
        </div>
    }
}
