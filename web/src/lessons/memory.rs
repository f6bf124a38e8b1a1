//! Lesson: where the memory of a run goes under full fine-tuning, LoRA and QLoRA, for a model of any size.

use halfbyte_memory::{Component, Method, ModelShape, Plan, Run, bytes, grouped, plan};
use leptos::prelude::*;

use super::parts::{Figures, Formula, Lesson, Model, Predict, Task, shape};
use crate::ui::{Cite, Part, Scale, Slider, Source, Stack, query_state};

/// Vocabulary and group of query heads of the Llama 3 models, which models of any size are made after.
const VOCABULARY: u64 = 128_256;
/// Width of a head.
const HEAD: u64 = 128;

/// A model like Llama 3 with about this many parameters: as wide as 128 times its layers, an MLP 3.5 times as wide, eight key
/// heads, and below four thousand million parameters the embedding as its head.
pub(super) fn model_of(parameters: u64) -> ModelShape {
    let of = |hidden: u64, layers: u64| ModelShape {
        vocab_size: VOCABULARY,
        hidden_size: hidden,
        intermediate_size: hidden * 7 / 2,
        layers,
        heads: hidden / HEAD,
        kv_heads: Some(8.min(hidden / HEAD)),
        head_dim: Some(HEAD),
        tied: parameters < 4_000_000_000,
        attention_bias: false,
        mlp_bias: false,
        model_type: "llama".into(),
        in_16_bits: true,
    };
    let widths = (4..=160).map(|i| i * 2 * HEAD);
    let hidden = widths.into_iter().find(|hidden| of(*hidden, hidden / HEAD).parameters() >= parameters);
    let hidden = hidden.unwrap_or(160 * 2 * HEAD);
    let (empty, one) = (of(hidden, 0).parameters(), of(hidden, 1).parameters());
    let layers = parameters.saturating_sub(empty) as f64 / (one - empty) as f64;
    of(hidden, (layers.round() as u64).max(1))
}

/// The run of a method: one sequence, layers computed again, in bf16.
fn run(method: Method, length: u64) -> Run {
    Run { method, length, ..Run::default() }
}

/// What a plan's peak is made of, in five groups: bytes of each.
fn groups(plan: &Plan) -> [u64; 5] {
    let mut groups = [0; 5];
    for line in plan.at_peak() {
        let group = match line.component {
            Component::Base | Component::Other => 0,
            Component::Adapters => 1,
            Component::Gradients => 2,
            Component::Optimizer => 3,
            _ => 4,
        };
        groups[group] += line.bytes;
    }
    groups
}

const GROUPS: [(&str, u8); 5] = [
    ("weights", 0),
    ("adapters, or an f32 copy of the weights", 2),
    ("gradients", 3),
    ("optimizer", 5),
    ("activations, logits, decoded weights", 8),
];

fn parts(plan: &Plan) -> Vec<Part> {
    let part = |((label, tone), value): ((&str, u8), u64)| Part {
        label: label.into(),
        value: value as f64,
        text: bytes(value),
        tone,
    };
    GROUPS.into_iter().zip(groups(plan)).map(part).collect()
}

const METHODS: [(Method, &str); 3] =
    [(Method::Full, "Full fine-tuning"), (Method::Lora, "LoRA"), (Method::Qlora, "QLoRA")];

fn needs(model: &ModelShape, length: u64) -> [Plan; 3] {
    METHODS.map(|(method, _)| plan(model, &run(method, length)))
}

/// The task: full training beyond the largest card of the list that many have, QLoRA within a small one.
fn goals([full, _, qlora]: &[Plan; 3], length: u64) -> Vec<(String, bool)> {
    vec![
        ("Full fine-tuning needs more than 80 GiB".into(), full.peak() > 80 << 30),
        ("QLoRA needs at most 8 GiB".into(), qlora.peak() <= 8 << 30),
        ("A sequence has at least 2048 tokens".into(), length >= 2048),
    ]
}

/// Sizes in thousand millions of parameters, a tenth of the way further each.
fn sizes() -> Vec<f64> {
    let steps = 52;
    (0..=steps).map(|i| 405f64.powf(f64::from(i) / f64::from(steps))).map(|size| (size * 10.0).round() / 10.0).collect()
}

/// The page.
#[component]
pub(crate) fn Memory() -> impl IntoView {
    let model = query_state("model", String::new());
    let size = query_state("size", 1.0_f64);
    let length = query_state("length", 512.0_f64);
    let chosen = Memo::new(move |_| match model.get().as_str() {
        "" => model_of((size.get().clamp(1.0, 405.0) * 1e9) as u64),
        name => shape(name),
    });
    let plans = Memo::new(move |_| needs(&chosen.get(), length.get() as u64));
    let most = Signal::derive(move || plans.with(|plans| plans[0].peak()) as f64);
    let bars = METHODS.iter().enumerate().map(move |(i, (_, name))| {
        let peak = move || bytes(plans.with(|plans| plans[i].peak()));
        view! {
            <div class="method">
                <h3>{*name}<span class="amount" id=format!("peak-{i}")>{peak}</span></h3>
                <Stack
                    label=Signal::derive(move || format!("{name}: {} at the peak", peak()))
                    parts=Signal::derive(move || plans.with(|plans| parts(&plans[i])))
                    of=most
                />
            </div>
        }
    });
    let figures = move || {
        let parameters = chosen.with(ModelShape::parameters);
        plans.with(|plans| {
            let states: u64 = groups(&plans[0])[..4].iter().sum();
            vec![
                ("Parameters".to_owned(), grouped(parameters)),
                ("Bytes per parameter, full".to_owned(), format!("{:.2}", states as f64 / parameters as f64)),
                ("Full over QLoRA".to_owned(), format!("{:.1} ×", plans[0].peak() as f64 / plans[2].peak() as f64)),
            ]
        })
    };
    view! {
        <Lesson path="lessons/memory" lede="A model that answers on one card may need eight of them to be trained. Where does the memory go, and which part of it does each method take away?">
            <Predict
                question="The weights of an 8B model take 16 GB in 16 bits. How much do weights, gradients and optimizer take while all of them are trained?"
                options=&["about 32 GB, twice as much", "about 64 GB, four times as much", "about 128 GB, eight times as much"]
                right=2
            >
                <p>
                    "Training in mixed precision holds five numbers for each parameter: the weight and its gradient in 16 bits, a copy of the weight and Adam's two moments in 32. That is 16 bytes where answering takes 2. "
                    <Cite of=Source::ZERO place="section 3.1"/>
                </p>
                <Formula math="<munder><mn>2</mn><mtext>weight</mtext></munder><mo>+</mo><munder><mn>2</mn><mtext>gradient</mtext></munder><mo>+</mo><munder><mn>4</mn><mtext>f32 copy</mtext></munder><mo>+</mo><munder><mrow><mn>4</mn><mo>+</mo><mn>4</mn></mrow><mtext>moments</mtext></munder><mo>=</mo><mn>16</mn><mtext>&nbsp;bytes</mtext>"/>
            </Predict>
            <p>
                "LoRA freezes the weights and trains two thin matrices beside each, so gradients and moments are held for these alone; the frozen weights still take 2 bytes each. "
                <Cite of=Source::LORA place="section 4"/>
                " QLoRA holds the frozen weights in about four bits, and decodes them when they are multiplied. "
                <Cite of=Source::QLORA place="section 3"/>
                " What remains are activations, which depend on how many tokens are seen at once, and not on what is trained."
            </p>
            <section class="card" aria-label="Three methods compared">
                <div class="fields">
                    <Model value=model also=("", "Any size, made like Llama 3")/>
                    <Show when=move || model.with(String::is_empty)>
                        <Slider label="Model size" value=size scale=Scale::Stops(sizes()) format=|size| format!("{size} billion parameters")/>
                    </Show>
                    <Slider
                        label="Tokens of a sequence"
                        value=length
                        scale=Scale::Stops((7..=15).map(|power| f64::from(1u32 << power)).collect())
                        format=|length| format!("{} tokens", grouped(length as u64))
                    />
                </div>
                <Figures of=Signal::derive(figures)/>
                <div class="methods">{bars.collect_view()}</div>
                <p class="help">"One sequence at a time, rank 16 on all seven linear layers, AdamW, layers computed again in the backward pass. All three bars have the scale of the first."</p>
            </section>
            <Task
                goals=Signal::derive(move || plans.with(|plans| goals(plans, length.get() as u64)))
                solved="The same model, in a tenth of the memory: what went away are copies of the weights that only their training needs."
            >
                "Find a model that full fine-tuning cannot train on an 80 GiB card, and that QLoRA trains on an 8 GiB one, on sequences of 2048 tokens or more."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_size_is_met_within_two_percent() {
        for size in sizes() {
            let asked = size * 1e9;
            let model = model_of(asked as u64);
            model.check().expect("a possible model");
            let off = model.parameters() as f64 / asked - 1.0;
            assert!(off.abs() < 0.04, "{size}: {off} {model:?}");
        }
        assert_eq!((sizes().first(), sizes().last()), (Some(&1.0), Some(&405.0)));
    }

    #[test]
    fn groups_sum_to_the_peak_and_full_training_has_sixteen_bytes() {
        let model = shape("llama-3.1-8b");
        let plans = needs(&model, 2048);
        for plan in &plans {
            assert_eq!(groups(plan).iter().sum::<u64>(), plan.peak());
        }
        assert_eq!(groups(&plans[0])[..4].iter().sum::<u64>(), 16 * model.parameters());
    }

    #[test]
    fn the_task_is_open_at_first_and_can_be_solved() {
        let solved = |model: &ModelShape, length| goals(&needs(model, length), length).iter().all(|(_, met)| *met);
        assert!(!solved(&model_of(1_000_000_000), 512));
        assert!(solved(&shape("llama-2-7b"), 2048));
        assert!(!solved(&shape("llama-3.1-70b"), 2048));
    }
}
