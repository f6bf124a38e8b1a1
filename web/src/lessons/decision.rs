//! Lesson: QLoRA or LoRA, as a few questions whose answer is computed from the memory plan, with its reasons.

use halfbyte_memory::{GPUS, Method, ModelShape, Run, bytes, grouped, longest, plan, widest};
use leptos::prelude::*;

use super::parts::{Lesson, Model, Predict, Task, shape};
use crate::ui::{Choice, Cite, Scale, Select, Slider, Source, query_state};

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
struct Question {
    model: ModelShape,
    gib: u64,
    length: u64,
    /// Sequences that should be seen at once.
    batch: u64,
    /// The adapter will be used on the base in four bits.
    four_bits: bool,
}

/// What is advised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advice {
    Lora,
    Qlora,
    Neither,
}

fn run(method: Method, length: u64) -> Run {
    Run { method, length, ..Run::default() }
}

/// The advice and why.
fn decide(question: &Question) -> (Advice, Vec<String>) {
    let Question { model, gib, length, batch, four_bits } = question;
    let memory = gib << 30;
    let needed = |method| plan(model, &run(method, *length)).peak();
    let (lora, qlora) = (needed(Method::Lora), needed(Method::Qlora));
    let most = |method| widest(model, &run(method, *length), memory, 256).unwrap_or(0);
    let fits = |bytes_needed: u64| if bytes_needed <= memory { "fits" } else { "does not fit" };
    let mut reasons = vec![format!(
        "One sequence of {} tokens needs {} with LoRA, which {} in {gib} GiB, and {} with QLoRA, which {}.",
        grouped(*length),
        bytes(lora),
        fits(lora),
        bytes(qlora),
        fits(qlora)
    )];
    if qlora > memory {
        let shorter = longest(model, &run(Method::Qlora, *length), memory, *length);
        reasons.push(match shorter {
            Some(length) => format!("QLoRA holds sequences of up to {} tokens.", grouped(length)),
            None => "Not even one token would fit: take a smaller model or a larger card.".into(),
        });
        return (Advice::Neither, reasons);
    }
    let (with_lora, with_qlora) = (most(Method::Lora), most(Method::Qlora));
    if lora > memory {
        reasons.push(format!("QLoRA has room for {with_qlora} such sequences at once."));
        return (Advice::Qlora, reasons);
    }
    reasons.push(format!(
        "At once there is room for {with_lora} sequences with LoRA and {with_qlora} with QLoRA; you want {batch}."
    ));
    if *four_bits {
        reasons.push("The adapter will stand on a base in four bits, so train it on that base: it then learns with the rounding that it will be used with.".into());
        return (Advice::Qlora, reasons);
    }
    if with_lora < *batch && with_qlora > with_lora {
        reasons.push(
            "LoRA would have to accumulate gradients over more, smaller passes to see as many sequences in a step."
                .into(),
        );
        return (Advice::Qlora, reasons);
    }
    reasons.push(
        "The base fits as it is: LoRA trains on the exact weights, and no product has to decode them first.".into(),
    );
    (Advice::Lora, reasons)
}

fn words(advice: Advice) -> &'static str {
    match advice {
        Advice::Lora => "LoRA",
        Advice::Qlora => "QLoRA",
        Advice::Neither => "Neither, as it stands",
    }
}

fn goals(question: &Question) -> Vec<(String, bool)> {
    let fits = plan(&question.model, &run(Method::Lora, question.length)).peak() <= question.gib << 30;
    vec![
        ("LoRA fits".into(), fits),
        ("The advice is QLoRA all the same".into(), decide(question).0 == Advice::Qlora),
        ("The base is not served in four bits".into(), !question.four_bits),
    ]
}

/// The page.
#[component]
pub(crate) fn Decision() -> impl IntoView {
    let model = query_state("model", "llama-3.1-8b".to_owned());
    let card = query_state("gpu", "RTX 4090".to_owned());
    let length = query_state("length", 1024.0_f64);
    let batch = query_state("batch", 1.0_f64);
    let serve = query_state("serve", "16".to_owned());
    let question = Memo::new(move |_| {
        let card = card.get();
        Question {
            model: shape(&model.get()),
            gib: GPUS.into_iter().find(|(name, _)| *name == card).map_or(24, |(_, gib)| gib),
            length: length.get().clamp(16.0, 131_072.0) as u64,
            batch: batch.get().clamp(1.0, 256.0) as u64,
            four_bits: serve.get() == "4",
        }
    });
    let decided = Memo::new(move |_| question.with(decide));
    let cards = GPUS.map(|(name, gib)| (name.to_owned(), format!("{name}, {gib} GiB"))).to_vec();
    let reasons = move || decided.get().1.into_iter().map(|reason| view! { <li>{reason}</li> }).collect_view();
    view! {
        <Lesson path="lessons/qlora-or-lora" lede="Both train the same adapter. They differ in how the frozen weights are held, and so in what fits and in what is computed.">
            <Predict
                question="Llama 3.1 8B on a card with 24 GiB, one sequence of 1024 tokens: what fits?"
                options=&["neither", "QLoRA alone", "LoRA and QLoRA", "full fine-tuning too"]
                right=2
            >
                <p>{move || {
                    let model = shape("llama-3.1-8b");
                    let [full, lora, qlora] = [Method::Full, Method::Lora, Method::Qlora].map(|method| bytes(plan(&model, &run(method, 1024)).peak()));
                    format!("LoRA needs {lora}, QLoRA {qlora}, full fine-tuning {full}. Where the 16-bit weights fit, the question is what the room that QLoRA frees is worth.")
                }}</p>
            </Predict>
            <p>
                "In the paper's comparisons adapters on an NF4 base reach what adapters on the 16-bit base reach. "
                <Cite of=Source::QLORA place="section 4"/>
                " So the choice is one of memory, of time, and of what the adapter will be used with."
            </p>
            <section class="card" aria-label="Five questions">
                <div class="fields">
                    <Model value=model/>
                    <Select label="Which card do you have?" value=card groups=vec![(String::new(), cards)]/>
                    <Slider label="How long are your examples?" value=length scale=Scale::Stops((8..=15).map(|power| f64::from(1u32 << power)).collect()) format=|n| format!("{} tokens", grouped(n as u64))/>
                    <Slider label="How many should be seen at once?" value=batch scale=Scale::Stops((0..=6).map(|power| f64::from(1u32 << power)).collect())/>
                </div>
                <Choice label="How will the base be held when the adapter is used?" value=serve options=vec![("16".to_owned(), "in 16 bits, or merged"), ("4".to_owned(), "in 4 bits")]/>
                <div class="advice" role="status">
                    <p class="verdict" id="advice">{move || words(decided.get().0)}</p>
                    <ul>{reasons}</ul>
                </div>
                <p class="help">"Rank 16 on all seven layers, AdamW, layers computed again, in bf16."</p>
            </section>
            <Task
                goals=Signal::derive(move || question.with(goals))
                solved="A base that fits is not all: what it leaves free decides how many sequences a pass can see."
            >
                "Find a case in which LoRA fits and QLoRA is the better choice."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, gib: u64, length: u64, batch: u64, four_bits: bool) -> Question {
        Question { model: shape(name), gib, length, batch, four_bits }
    }

    #[test]
    fn the_advice_follows_the_plan() {
        let cases = [
            (ask("llama-3.1-8b", 24, 1024, 1, false), Advice::Lora),
            (ask("llama-3.1-8b", 24, 1024, 1, true), Advice::Qlora),
            (ask("llama-3.1-8b", 24, 1024, 64, false), Advice::Qlora),
            (ask("llama-3.1-70b", 48, 1024, 1, false), Advice::Qlora),
            (ask("llama-3.1-405b", 24, 1024, 1, false), Advice::Neither),
        ];
        for (question, advice) in cases {
            let (found, reasons) = decide(&question);
            assert_eq!(found, advice, "{reasons:?}");
            assert!(reasons.len() >= 2, "{reasons:?}");
        }
    }

    #[test]
    fn full_fine_tuning_does_not_fit_where_the_prediction_says_so() {
        assert!(plan(&shape("llama-3.1-8b"), &run(Method::Full, 1024)).peak() > 24 << 30);
    }

    #[test]
    fn the_task_is_open_at_first_and_can_be_solved() {
        let solved = |question: &Question| goals(question).iter().all(|(_, met)| *met);
        assert!(!solved(&ask("llama-3.1-8b", 24, 1024, 1, false)));
        assert!(solved(&ask("llama-3.1-8b", 24, 1024, 64, false)));
    }
}
