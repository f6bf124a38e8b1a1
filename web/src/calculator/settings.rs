//! The run's settings.

use halfbyte_memory::grouped;
use leptos::prelude::*;

use super::question::{LINEARS, Question};
use crate::ui::{Choice, Scale, Slider};

/// Powers of two and what lies halfway, as people choose lengths.
fn lengths() -> Vec<f64> {
    let powers = (7..=17).map(|power| f64::from(1u32 << power));
    powers.flat_map(|power| [power, power * 1.5]).filter(|length| *length <= f64::from(1u32 << 17)).collect()
}

fn powers(most: u32) -> Scale {
    Scale::Stops((0..=most).map(|power| f64::from(1u32 << power)).collect())
}

fn tokens(count: f64) -> String {
    format!("{} tokens", grouped(count as u64))
}

/// The settings.
#[component]
pub(crate) fn Settings(question: Question) -> impl IntoView {
    let adapters = move || question.method.with(|method| method != "full");
    let of_adapters = move || {
        adapters().then(|| {
            view! {
                <Slider label="Rank of the adapters" value=question.rank scale=powers(9)/>
                <Targets question/>
            }
        })
    };
    let packed_stops = Scale::Stops([0.0].into_iter().chain((5..=12).map(|power| f64::from(1u32 << power))).collect());
    view! {
        <Choice label="Method" value=question.method options=vec![
            ("qlora".to_owned(), "QLoRA"), ("lora".to_owned(), "LoRA"), ("full".to_owned(), "Full"),
        ]/>
        {of_adapters}
        <Slider label="Length of a row" value=question.length scale=Scale::Stops(lengths()) format=tokens/>
        <Slider label="Rows of a micro-batch" value=question.batch scale=powers(6)/>
        <Choice label="In the backward pass, layers are" value=question.recompute options=vec![
            (true, "computed again"), (false, "kept"),
        ]/>
        <Choice label="Optimizer" value=question.optimizer options=vec![
            ("adamw".to_owned(), "AdamW"), ("adamw8bit".to_owned(), "AdamW in 8 bits"),
        ]/>
        <details>
            <summary>"More settings"</summary>
            <div class="more">
                <Choice label="Computes in" value=question.dtype options=vec![
                    ("bf16".to_owned(), "bf16"), ("f32".to_owned(), "f32"),
                ]/>
                <p class="help">
                    "bf16 takes an NVIDIA GPU from Ampere on; a recipe asks for it by "<code>"compute_dtype"</code>". f32 runs on every GPU. LoRA and full fine-tuning in bf16 are shown for comparison: Halfbyte itself trains a base that is not in 4 bits in f32."
                </p>
                <Slider label="Micro-batches of a step" value=question.accumulation scale=powers(7)/>
                <Slider
                    label="Rows packed with examples of"
                    value=question.packed
                    scale=packed_stops
                    format=|count| if count == 0.0 { "not packed".to_owned() } else { tokens(count) }
                />
                <div class="checks">
                    <Check label="Double quantization" value=question.double_quant/>
                    <Check label="Optimizer paged to host memory" value=question.paged/>
                    <Check label="Dropout on the adapters" value=question.dropout/>
                </div>
            </div>
        </details>
    }
}

/// Which linear layers have adapters.
#[component]
fn Targets(question: Question) -> impl IntoView {
    let has = move |name: &str| {
        question.targets.with(|targets| targets.is_empty() || targets.split(',').any(|target| target == name))
    };
    let toggle = move |name: &'static str| {
        let chosen: Vec<&str> = LINEARS.into_iter().filter(|known| has(known) != (*known == name)).collect();
        match chosen.len() {
            // Without adapters there is nothing to train.
            0 => question.targets.notify(),
            7 => question.targets.set(String::new()),
            _ => question.targets.set(chosen.join(",")),
        }
    };
    let boxes = LINEARS.map(|name| {
        view! {
            <label class="check">
                <input type="checkbox" prop:checked=move || has(name) on:change=move |_| toggle(name)/>
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

#[component]
fn Check(#[prop(into)] label: String, value: RwSignal<bool>) -> impl IntoView {
    view! {
        <label class="check">
            <input type="checkbox" prop:checked=value on:change:target=move |event| value.set(event.target().checked())/>
            {label}
        </label>
    }
}
