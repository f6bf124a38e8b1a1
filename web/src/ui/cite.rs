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
    /// LoRA.
    pub(crate) const LORA: Self = Self {
        name: "Hu et al. 2022",
        title: "LoRA: Low-Rank Adaptation of Large Language Models",
        href: "https://arxiv.org/abs/2106.09685",
    };
    /// Another scale for LoRA.
    pub(crate) const RSLORA: Self = Self {
        name: "Kalajdzievski 2023",
        title: "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        href: "https://arxiv.org/abs/2312.03732",
    };
    /// LoRA with magnitudes of its own.
    pub(crate) const DORA: Self = Self {
        name: "Liu et al. 2024",
        title: "DoRA: Weight-Decomposed Low-Rank Adaptation",
        href: "https://arxiv.org/abs/2402.09353",
    };
    /// Optimizer state in 8 bits.
    pub(crate) const EIGHT_BIT: Self = Self {
        name: "Dettmers et al. 2022",
        title: "8-bit Optimizers via Block-wise Quantization",
        href: "https://arxiv.org/abs/2110.02861",
    };
    /// Layers computed again.
    pub(crate) const CHECKPOINTS: Self = Self {
        name: "Chen et al. 2016",
        title: "Training Deep Nets with Sublinear Memory Cost",
        href: "https://arxiv.org/abs/1604.06174",
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
