//! Lesson: which GPU trains which model by which method, and what a laptop without one can do.

use halfbyte_memory::{
    Device, GPUS, Gpu, Method, ModelShape, Run, Workload, bytes, grouped, names, plan, preset, widest,
};
use leptos::prelude::*;

use super::parts::{Figures, Formula, Lesson, Model, Predict, Task, shape};
use crate::ui::{Choice, Cite, Scale, Select, Slider, Source, query_state};

const METHODS: [(Method, &str); 3] = [(Method::Full, "Full"), (Method::Lora, "LoRA"), (Method::Qlora, "QLoRA")];
/// The largest micro-batch that is looked for.
const MOST: u64 = 64;

fn run(method: Method, length: u64) -> Run {
    Run { method, length, ..Run::default() }
}

/// The same run on a CPU, which computes in f32: eight threads, a megabyte of second-level cache each.
fn on_cpu(length: u64) -> Run {
    let device = Device::Cpu { threads: 8, cache: 1 << 20 };
    Run { length, device, ..Run::default() }
}

/// The largest micro-batch by method that a memory of so many GiB holds; none where not even one sequence fits.
fn batches(model: &ModelShape, length: u64, gib: u64) -> [Option<u64>; 3] {
    METHODS.map(|(method, _)| widest(model, &run(method, length), gib << 30, MOST))
}

/// The largest known model that a memory holds by a method, with its parameters.
fn largest(method: Method, length: u64, gib: u64) -> Option<(&'static str, u64)> {
    let run = run(method, length);
    let known = names().filter_map(|name| Some((name, preset(name)?)));
    let fits = known.filter(|(_, model)| plan(model, &run).peak() <= gib << 30);
    fits.map(|(name, model)| (name, model.parameters())).max_by_key(|(_, parameters)| *parameters)
}

/// A GPU of the list; the first one for a name that an address made up.
fn gpu(name: &str) -> (&'static str, u64) {
    GPUS.into_iter().find(|(known, _)| *known == name).unwrap_or(GPUS[0])
}

/// Hours for ten million tokens at a sustained rate.
fn hours(model: &ModelShape, run: &Run, tflops: f64) -> Option<f64> {
    let gpu = Gpu {
        name: String::new(),
        gib: 0,
        bf16: true,
        tflops: Some(tflops),
        tflops_f32: None,
        gigabytes_per_second: None,
        price_per_hour: None,
    };
    Some(gpu.seconds(&Workload::of(model, run, 1e7), 1.0)? / 3600.0)
}

fn goals(model: &ModelShape, length: u64, gib: u64) -> Vec<(String, bool)> {
    let [full, lora, qlora] = batches(model, length, gib);
    vec![
        ("QLoRA fits, and LoRA does not".into(), qlora.is_some() && lora.is_none()),
        ("Full fine-tuning does not either".into(), full.is_none()),
        (format!("The card has at most 24 GiB (now {gib})"), gib <= 24),
        (format!("A sequence has 4096 tokens or more (now {})", grouped(length)), length >= 4096),
    ]
}

/// The page.
#[component]
pub(crate) fn Hardware() -> impl IntoView {
    let model = query_state("model", "llama-3.2-1b".to_owned());
    let length = query_state("length", 1024.0_f64);
    let card = query_state("gpu", "RTX 4090".to_owned());
    let memory = query_state("ram", 16.0_f64);
    let rate = query_state("tflops", 50.0_f64);
    let size = Memo::new(move |_| (shape(&model.get()), length.get().clamp(16.0, 131_072.0) as u64));
    let rows = move || {
        let chosen = gpu(&card.get()).0;
        size.with(|(model, length)| {
            let row = |(name, gib): (&'static str, u64)| {
                let cell = |batch: Option<u64>| {
                    let words = match batch {
                        None => "no".to_owned(),
                        Some(MOST) => format!("{MOST}+"),
                        Some(batch) => format!("{batch}"),
                    };
                    view! { <td class="number" class:no=batch.is_none()>{words}</td> }
                };
                view! {
                    <tr class:chosen=name == chosen>
                        <th scope="row">{name}</th>
                        <td class="number">{format!("{gib} GiB")}</td>
                        {batches(model, *length, gib).map(cell).collect_view()}
                    </tr>
                }
            };
            GPUS.map(row).collect_view()
        })
    };
    let best = move || {
        let (name, gib) = gpu(&card.get());
        let length = size.with(|(_, length)| *length);
        let figure = |(method, word): (Method, &str)| {
            let found = largest(method, length, gib).map_or("none of the list".to_owned(), |(name, _)| name.to_owned());
            (format!("Largest by {word} on {name}"), found)
        };
        METHODS.map(figure).to_vec()
    };
    let laptop = move || {
        size.with(|(model, length)| {
            let run = on_cpu(*length);
            let needed = plan(model, &run).peak();
            let room = (memory.get() * (1u64 << 30) as f64) as u64;
            let operations = Workload::of(model, &run, 1e7).operations;
            vec![
                ("Needed in main memory".to_owned(), bytes(needed)),
                ("Of that memory".to_owned(), format!("{:.0} %", 100.0 * needed as f64 / room.max(1) as f64)),
                ("Operations for 10⁷ tokens".to_owned(), format!("{operations:.2e}")),
            ]
        })
    };
    let duration = move || {
        let found = size.with(|(model, length)| hours(model, &run(Method::Qlora, *length), rate.get()));
        found.map_or_else(String::new, |hours| match hours {
            hours if hours < 1.0 => format!("Ten million tokens take {:.0} minutes at this rate.", 60.0 * hours),
            hours if hours < 48.0 => format!("Ten million tokens take {hours:.1} hours at this rate."),
            hours => format!("Ten million tokens take {:.1} days at this rate.", hours / 24.0),
        })
    };
    let cards = GPUS.map(|(name, gib)| (name.to_owned(), format!("{name}, {gib} GiB"))).to_vec();
    view! {
        <Lesson path="lessons/hardware" lede="What can be trained is decided by memory first and by speed second. Which card is enough, and is one needed at all?">
            <Predict
                question="How large a model does QLoRA train on a card with 24 GiB, on sequences of 512 tokens?"
                options=&["up to about 8B", "up to about 14B", "up to about 34B", "up to about 70B"]
                right=2
            >
                <p>{move || {
                    let found = largest(Method::Qlora, 512, 24);
                    found.map_or_else(String::new, |(name, parameters)| format!("Of the models that the plan knows, {name} with {} parameters. The paper trains 33B in 24 GB, with a paged optimizer, and 65B in 48 GB.", grouped(parameters)))
                }} " " <Cite of=Source::QLORA place="section 1"/></p>
            </Predict>
            <p>"The table asks the memory plan for every card: the largest number of sequences that are seen at once. More at a time use a GPU better; a larger step is made of several by accumulating gradients, at no cost in memory but the sum."</p>
            <section class="card" aria-label="Cards and methods">
                <div class="fields">
                    <Model value=model/>
                    <Slider label="Tokens of a sequence" value=length scale=Scale::Stops((8..=15).map(|power| f64::from(1u32 << power)).collect()) format=|n| format!("{} tokens", grouped(n as u64))/>
                    <Select label="Your card" value=card groups=vec![(String::new(), cards)]/>
                </div>
                <div class="table" tabindex="0" role="region" aria-label="Largest micro-batch by card and method">
                    <table id="cards">
                        <thead><tr>
                            <th scope="col">"Card"</th><th scope="col" class="number">"Memory"</th>
                            <th scope="col" class="number">"Full"</th><th scope="col" class="number">"LoRA"</th><th scope="col" class="number">"QLoRA"</th>
                        </tr></thead>
                        <tbody aria-live="polite">{rows}</tbody>
                    </table>
                </div>
                <Figures of=Signal::derive(best)/>
                <p class="help">"Rank 16 on all seven layers, AdamW, layers computed again, in bf16. Whole memories as the vendors' datasheets state them; the driver and other programs take their part."</p>
            </section>
            <section class="card" aria-label="How long it takes">
                <h2>"How long it takes"</h2>
                <Formula math="<mtext>seconds</mtext><mo>=</mo><mfrac><mrow><mtext>operations per token</mtext><mo lspace=\"0.2em\" rspace=\"0.2em\">×</mo><mtext>tokens</mtext></mrow><mtext>sustained operations per second</mtext></mfrac>"/>
                <p>"What a datasheet promises is a limit. Put in what you measured: tokens per second times the operations of a token."</p>
                <Slider label="Sustained rate" value=rate scale=Scale::Stops(vec![0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 400.0]) format=|n| format!("{n} · 10¹² per second")/>
                <p id="duration" aria-live="polite">{duration}</p>
            </section>
            <section class="card" aria-label="Without a GPU">
                <h2>"Without a GPU"</h2>
                <p>"A CPU trains the same adapter, in 32 bits and main memory. It is a matter of time: take the rate above down to what a processor does, a tenth to one on most, and see which model ends before your patience does."</p>
                <Choice label="Main memory" value=memory options=vec![(8.0, "8 GiB"), (16.0, "16 GiB"), (32.0, "32 GiB"), (64.0, "64 GiB")]/>
                <Figures of=Signal::derive(laptop)/>
            </section>
            <Task
                goals=Signal::derive(move || size.with(|(model, length)| goals(model, *length, gpu(&card.get()).1)))
                solved="The 16-bit base is what does not fit; in 4 bits it leaves room for long sequences."
            >
                "Choose a model, a length and a card so that QLoRA is the only way."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prediction_is_the_plans() {
        let (name, parameters) = largest(Method::Qlora, 512, 24).expect("something fits");
        assert!((30_000_000_000..36_000_000_000).contains(&parameters), "{name}: {parameters}");
    }

    #[test]
    fn a_batch_fits_and_one_more_does_not() {
        let model = shape("llama-3.1-8b");
        let [full, lora, qlora] = batches(&model, 1024, 24);
        assert!(full.is_none() && lora < qlora, "{lora:?} {qlora:?}");
        let batch = qlora.expect("fits");
        let needed = |batch| plan(&model, &Run { batch, ..run(Method::Qlora, 1024) }).peak();
        assert!(needed(batch) <= 24 << 30 && needed(batch + 1) > 24 << 30);
    }

    #[test]
    fn time_is_operations_over_rate() {
        let model = shape("llama-3.2-1b");
        let run = run(Method::Qlora, 1024);
        let expected = Workload::of(&model, &run, 1e7).operations / 2e12 / 3600.0;
        assert!((hours(&model, &run, 2.0).expect("a rate") / expected - 1.0).abs() < 1e-12);
        assert_eq!(hours(&model, &run, 0.0), None);
    }

    #[test]
    fn the_task_is_open_at_first_and_can_be_solved() {
        let solved = |name: &str, length, gib| goals(&shape(name), length, gib).iter().all(|(_, met)| *met);
        assert!(!solved("llama-3.2-1b", 1024, 24));
        assert!(solved("llama-2-13b", 4096, 24));
    }
}
