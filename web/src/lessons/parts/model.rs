//! The choice of a model by its name.

use halfbyte_memory::{ModelShape, preset};
use leptos::prelude::*;

use crate::calculator::models;
use crate::ui::Select;

/// The model of a name; the 8B one for a name that an address made up.
pub(crate) fn shape(name: &str) -> ModelShape {
    let known = preset(name).or_else(|| preset("llama-3.1-8b"));
    known.unwrap_or_else(|| unreachable!("the list has this model"))
}

/// The choice of a model.
#[component]
pub(crate) fn Model(
    /// Its name.
    value: RwSignal<String>,
    /// A choice before all models: its value and its words.
    #[prop(optional)]
    also: Option<(&'static str, &'static str)>,
) -> impl IntoView {
    let also = also.map(|(value, words)| (String::new(), vec![(value.to_owned(), words.to_owned())]));
    let groups: Vec<_> = also.into_iter().chain(models()).collect();
    view! { <Select label="Model" value=value groups=groups/> }
}
