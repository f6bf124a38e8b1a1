//! Which linear layers have adapters, as the short names that an address keeps: `q,v`.

use leptos::prelude::*;

/// Short name and name of the linear layers of a decoder layer.
const LINEARS: [(&str, &str); 7] = [
    ("q", "q_proj"),
    ("k", "k_proj"),
    ("v", "v_proj"),
    ("o", "o_proj"),
    ("gate", "gate_proj"),
    ("up", "up_proj"),
    ("down", "down_proj"),
];

/// The names of the chosen layers, for a run's `targets`; all seven where none is chosen, as the plan reads an empty list.
pub(crate) fn names(short: &str) -> Vec<String> {
    let chosen = LINEARS.into_iter().filter(|(known, _)| short.split(',').any(|name| name == *known));
    chosen.map(|(_, name)| name.to_owned()).collect()
}

/// Check boxes for the seven layers.
#[component]
pub(crate) fn Targets(
    /// Short names with commas between them.
    value: RwSignal<String>,
) -> impl IntoView {
    let has = move |short: &str| value.with(|value| value.split(',').any(|name| name == short));
    let toggle = move |short: &'static str| {
        let chosen: Vec<&str> =
            LINEARS.into_iter().map(|(known, _)| known).filter(|known| has(known) != (*known == short)).collect();
        // Without adapters nothing is trained: the last one stays.
        if chosen.is_empty() { value.notify() } else { value.set(chosen.join(",")) }
    };
    let boxes = LINEARS.map(|(short, name)| {
        view! {
            <label class="check">
                <input type="checkbox" prop:checked=move || has(short) on:change=move |_| toggle(short)/>
                <code>{name}</code>
            </label>
        }
    });
    view! {
        <fieldset class="field">
            <legend>"Layers with adapters"</legend>
            <div class="checks">{boxes.collect_view()}</div>
        </fieldset>
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn short_names_are_those_of_the_plan() {
        assert_eq!(super::names("q,down,nonsense"), ["q_proj", "down_proj"]);
        let shape = super::super::shape("llama-3.1-8b");
        assert_eq!(super::names("q,k,v,o,gate,up,down"), shape.linears().map(|linear| linear.name));
    }
}
