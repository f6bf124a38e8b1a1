//! Which model: a known one, a `config.json` pasted, or one of the hub by its name.

use halfbyte_memory::{grouped, names};
use leptos::prelude::*;
use wasm_bindgen_futures::spawn_local;

use super::hub;
use super::question::Question;
use crate::ui::{Callout, Choice, Group, Kind, Select, unique};

/// A model's name as people write it: `Llama 3.1 8B`.
fn title(name: &str) -> String {
    let word = |word: &str| {
        let is_size = word.ends_with('b') && word.starts_with(|c: char| c.is_ascii_digit());
        match word {
            "codellama" => "Code Llama".to_owned(),
            _ if is_size => word.to_ascii_uppercase(),
            _ if word.starts_with('v') => word.to_owned(),
            _ => word[..1].to_ascii_uppercase() + &word[1..],
        }
    };
    name.split('-').map(word).collect::<Vec<_>>().join(" ")
}

/// The known models by family.
pub(crate) fn groups() -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for name in names() {
        let family = title(name.split('-').next().unwrap_or(name));
        let option = (name.to_owned(), title(name));
        match groups.iter_mut().find(|(known, _)| *known == family) {
            Some((_, options)) => options.push(option),
            None => groups.push((family, vec![option])),
        }
    }
    groups
}

/// The choice of a model.
#[component]
pub(crate) fn Model(question: Question) -> impl IntoView {
    let origin = question.origin.get_untracked();
    let first = if question.config.get_untracked().is_empty() {
        "known"
    } else if origin.is_empty() {
        "pasted"
    } else {
        "hub"
    };
    let way = RwSignal::new(first);
    Effect::new(move |before: Option<()>| {
        if way.get() == "known" && before.is_some() {
            question.use_known();
        }
    });
    let body = move || match way.get() {
        "pasted" => view! { <Pasted question/> }.into_any(),
        "hub" => view! { <Hub question/> }.into_any(),
        _ => view! { <Select label="Model" value=question.model groups=groups()/> }.into_any(),
    };
    let facts = move || match question.shape.get() {
        Ok(shape) => {
            let origin = question.origin.get();
            let origin = if origin.is_empty() { origin } else { format!("{origin}: ") };
            let heads = format!("{} heads, {} for keys and values", shape.heads, shape.kv());
            let facts = format!(
                "{origin}{} parameters in {} layers of {} x {}, {heads}",
                grouped(shape.parameters()),
                shape.layers,
                shape.hidden_size,
                shape.intermediate_size
            );
            view! { <p class="help">{facts}</p> }.into_any()
        }
        Err(error) => {
            view! { <Callout kind=Kind::Error title="This model cannot be planned">{error}</Callout> }.into_any()
        }
    };
    view! {
        <Choice label="Model from" value=way options=vec![("known", "List"), ("pasted", "config.json"), ("hub", "Hugging Face")]/>
        {body}
        {facts}
    }
}

#[component]
fn Pasted(question: Question) -> impl IntoView {
    let id = unique("config");
    let read = move |text: String| {
        if text.trim().is_empty() {
            question.use_known();
        } else if let Err(error) = question.configure(&text, "") {
            question.refused.set(Some(error));
        }
    };
    view! {
        <div class="field">
            <label for=id.clone()>"The model's config.json"</label>
            <textarea
                id=id
                spellcheck="false"
                autocomplete="off"
                placeholder="{ \"hidden_size\": 4096, ... }"
                prop:value=question.config.get_untracked()
                on:input:target=move |event| read(event.target().value())
            ></textarea>
        </div>
    }
}

#[component]
fn Hub(question: Question) -> impl IntoView {
    let id = unique("hub");
    let name = RwSignal::new(question.origin.get_untracked());
    let (busy, error) = (RwSignal::new(false), RwSignal::new(None::<String>));
    let ask = move || {
        if busy.get_untracked() {
            return;
        }
        busy.set(true);
        error.set(None);
        spawn_local(async move {
            let name = name.get_untracked();
            let answer = hub::configuration(&name).await;
            let answer = answer.and_then(|config| question.configure(&config, name.trim()));
            error.set(answer.err());
            busy.set(false);
        });
    };
    let failed = move || {
        error.get().map(|error| view! { <Callout kind=Kind::Error title="Nothing came of it">{error}</Callout> })
    };
    view! {
        <div class="field row">
            <div class="field">
                <label for=id.clone()>"Name on the hub"</label>
                <input
                    id=id
                    type="text"
                    spellcheck="false"
                    autocapitalize="none"
                    placeholder="Qwen/Qwen3-8B"
                    prop:value=name
                    on:input:target=move |event| name.set(event.target().value())
                    on:keydown=move |event| if event.key() == "Enter" { ask() }
                />
            </div>
            <button class="button" prop:disabled=busy on:click=move |_| ask()>
                {move || if busy.get() { "Asking ..." } else { "Fetch" }}
            </button>
        </div>
        <p class="help">"Asks huggingface.co for this model's config.json, and for nothing else. A revision may follow: org/name@revision."</p>
        {failed}
    }
}

#[cfg(test)]
mod tests {
    use super::{groups, title};

    #[test]
    fn models_are_called_what_people_call_them() {
        let names = [
            ("llama-3.1-8b", "Llama 3.1 8B"),
            ("qwen2.5-0.5b", "Qwen2.5 0.5B"),
            ("mistral-7b-v0.3", "Mistral 7B v0.3"),
            ("phi-3-mini", "Phi 3 Mini"),
            ("codellama-34b", "Code Llama 34B"),
        ];
        for (name, words) in names {
            assert_eq!(title(name), words);
        }
        assert_eq!(groups().iter().map(|(_, options)| options.len()).sum::<usize>(), halfbyte_memory::names().count());
    }
}
