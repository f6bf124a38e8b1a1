//! Where a claim comes from.

use leptos::prelude::*;

/// A paper or page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Authors and year, as one cites it.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// Where it is.
    pub href: &'static str,
}

impl Source {
    /// QLoRA.
    pub const QLORA: Self = Self {
        name: "Dettmers et al. 2023",
        title: "QLoRA: Efficient Finetuning of Quantized LLMs",
        href: "https://arxiv.org/abs/2305.14314",
    };
    /// The memory of training states.
    pub const ZERO: Self = Self {
        name: "Rajbhandari et al. 2020",
        title: "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
        href: "https://arxiv.org/abs/1910.02054",
    };
}

/// A source and the place in it, such as `section 3`.
#[component]
pub fn Cite(
    /// The source.
    of: Source,
    /// The place in it.
    #[prop(optional, into)]
    place: String,
) -> impl IntoView {
    let place = if place.is_empty() { place } else { format!(", {place}") };
    view! {
        <cite class="source"><a href=of.href title=of.title rel="noopener external">{of.name}</a>{place}</cite>
    }
}
