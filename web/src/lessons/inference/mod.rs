//! Lesson: after training, merge the adapter or keep it; how it is scaled; what servers read of it.

mod rounding;

use halfbyte_memory::{Component, Method, Phase, Run, bytes, plan};
use leptos::prelude::*;

use super::parts::{Axis, Chart, Figures, Formula, Lesson, Model, Predict, Series, Shape, Task, shape};
use crate::ui::{Choice, Cite, Scale, Slider, Source, query_state};

use rounding::lost;

/// What adapters are multiplied by: `alpha / r`, or `alpha / sqrt(r)` under rsLoRA.
fn scaling(alpha: f64, rank: f64, rslora: bool) -> f64 {
    alpha / if rslora { rank.sqrt() } else { rank }
}

/// What serving takes: in all, and what is read of it for each generated token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    held: u64,
    read: u64,
}

/// Serving some adapters of a model: beside a base in 4 bits, and each merged into a copy in 16 bits.
fn costs(model: &str, rank: u64, adapters: u64) -> [Cost; 2] {
    let model = shape(model);
    let run = Run { rank, ..Run::default() };
    let base: u64 = {
        let lines = plan(&model, &run).lines.into_iter().filter(|line| line.phase == Phase::Always);
        lines.filter(|line| matches!(line.component, Component::Base | Component::Other)).map(|line| line.bytes).sum()
    };
    let dense = 2 * model.parameters();
    // As saved, an adapter's numbers have 32 bits.
    let adapter = 4 * run.trained(&model);
    [Cost { held: base + adapters * adapter, read: base + adapter }, Cost { held: adapters * dense, read: dense }]
}

/// Operations that an adapter beside its base adds to a token, over those of the base.
fn extra(model: &str, rank: u64) -> f64 {
    let model = shape(model);
    let run = Run { rank, method: Method::Qlora, ..Run::default() };
    run.trained(&model) as f64 / model.linear_elements() as f64
}

fn goals([kept, merged]: [Cost; 2], adapters: u64, trained: f64, served: f64) -> Vec<(String, bool)> {
    vec![
        (format!("Eight adapters or more (now {adapters})"), adapters >= 8),
        (format!("Kept, they fit in 8 GiB with their base (now {})", bytes(kept.held)), kept.held <= 8 << 30),
        (format!("Merged, they would need more than 100 GiB (now {})", bytes(merged.held)), merged.held > 100 << 30),
        (
            format!(
                "A server that ignores rsLoRA would use a quarter of the scale (now {:.2} of it)",
                served / trained
            ),
            (served / trained - 0.25).abs() < 1e-6,
        ),
    ]
}

const SERVERS: [(&str, bool, &str); 4] = [
    ("PEFT, transformers", true, "everything that its configuration says"),
    ("vLLM", true, "no rank_pattern, no alpha_pattern"),
    ("SGLang", false, "no use_rslora, no rank_pattern, no alpha_pattern"),
    ("llama.cpp, Ollama", false, "no use_rslora, no alpha_pattern; each layer's own rank"),
];

/// What is lost of updates of all lengths, merged in both ways.
fn curves() -> Vec<Series> {
    let shares = (0..=24).map(|i| -3.0 + 2.5 * f64::from(i) / 24.0);
    let points: Vec<_> = shares.map(|power| (power, lost(10f64.powf(power)))).collect();
    let curve = |f: fn(rounding::Lost) -> f64| points.iter().map(|(x, lost)| (*x, 100.0 * f(*lost).min(1.2))).collect();
    vec![
        Series::new("merged, then NF4 again", 3, Shape::Line, curve(|lost| lost.four)),
        Series::new("merged in bf16", 0, Shape::Line, curve(|lost| lost.half)),
    ]
}

/// The page.
#[component]
pub(crate) fn Inference() -> impl IntoView {
    let model = query_state("model", "llama-3.1-8b".to_owned());
    let rank = query_state("rank", 64.0_f64);
    let alpha = query_state("alpha", 32.0_f64);
    let rslora = query_state("rslora", false);
    let adapters = query_state("adapters", 1.0_f64);
    let bandwidth = query_state("bandwidth", 1000.0_f64);
    let update = query_state("update", -2.0_f64);
    let used = move || rank.get().clamp(1.0, 1024.0);
    let count = move || adapters.get().clamp(1.0, 1024.0) as u64;
    let cost = Memo::new(move |_| costs(&model.get(), used() as u64, count()));
    let trained = move || scaling(alpha.get(), used(), rslora.get());
    let rows = move || {
        let row = |(name, reads, ignores): (&'static str, bool, &'static str)| {
            let scale = scaling(alpha.get(), used(), rslora.get() && reads);
            view! {
                <tr class:no=scale != trained()>
                    <th scope="row">{name}</th>
                    <td class="number">{format!("{scale:.3}")}</td>
                    <td class="number">{format!("{:.2}", scale / trained())}</td>
                    <td>{ignores}</td>
                </tr>
            }
        };
        SERVERS.map(row).collect_view()
    };
    let trade = move || {
        let [kept, merged] = cost.get();
        let fastest = |cost: Cost| format!("{:.0} tokens/s", bandwidth.get() * 1e9 / cost.read as f64);
        vec![
            ("Kept: held".to_owned(), bytes(kept.held)),
            ("Merged: held".to_owned(), bytes(merged.held)),
            ("Kept: at most".to_owned(), fastest(kept)),
            ("Merged: at most".to_owned(), fastest(merged)),
            ("Kept: more operations".to_owned(), format!("{:.2} %", 100.0 * extra(&model.get(), used() as u64))),
        ]
    };
    let share = move || 10f64.powf(update.get().clamp(-3.0, -0.5));
    let fate = Memo::new(move |_| lost(share()));
    let survived = move || {
        vec![
            ("Lost, merged in bf16".to_owned(), format!("{:.1} %", 100.0 * fate.get().half)),
            ("Lost, merged and in NF4 again".to_owned(), format!("{:.0} %", 100.0 * fate.get().four)),
        ]
    };
    let curves = curves();
    view! {
        <Lesson path="lessons/inference" lede="The run is over and a small file remains. Beside its base or inside it: what is exact, what is fast, and what will a server make of it?">
            <Predict
                question="An update as long as a hundredth of its weights is added to the 4-bit base, and the sum is quantized to NF4 again. What remains of the update?"
                options=&["almost all of it", "about half", "next to nothing"]
                right=2
            >
                <p>{move || {
                    let lost = lost(0.01);
                    format!("The difference to what was trained is {:.0} % of the update. Most weights are nearest to the level that they had before: a step between levels is larger than what is added. In bf16 {:.1} % are lost.", 100.0 * lost.four, 100.0 * lost.half)
                }}</p>
            </Predict>
            <p>"A layer computes with its adapter beside it or with the sum. Both are the same function until the sum is rounded."</p>
            <Formula math="<mi>y</mi><mo>=</mo><mi>W</mi><mi>x</mi><mo>+</mo><mi>s</mi><mi>B</mi><mo>(</mo><mi>A</mi><mi>x</mi><mo>)</mo><mo>=</mo><mo>(</mo><mi>W</mi><mo>+</mo><mi>s</mi><mi>B</mi><mi>A</mi><mo>)</mo><mi>x</mi><mo>,</mo><mspace width='2em'/><mi>s</mi><mo>=</mo><mfrac><mi>α</mi><mi>r</mi></mfrac><mspace width='0.7em'/><mtext>or</mtext><mspace width='0.7em'/><mfrac><mi>α</mi><msqrt><mi>r</mi></msqrt></mfrac>"/>
            <section class="card" aria-label="What rounding leaves">
                <h2>"What rounding leaves of an update"</h2>
                <Slider label="Length of the update over that of the weights" value=update scale=Scale::Even { from: -3.0, to: -0.5, step: 0.1 } format=|power| format!("{:.2} %", 100.0 * 10f64.powf(power))/>
                <Figures of=Signal::derive(survived)/>
                <Chart
                    label="What is lost of an update, over its length, merged in bf16 and merged into NF4"
                    x=Signal::derive(|| Axis { label: "length of the update over that of the weights".into(), from: -3.0, to: -0.5, ticks: vec![(-3.0, "0.1 %".into()), (-2.0, "1 %".into()), (-1.0, "10 %".into())] })
                    y=Signal::derive(|| Axis::even("lost", 0.0, 120.0, 3, |v| format!("{v} %")))
                    series=Signal::derive(move || curves.iter().cloned().chain([Series::new("the chosen length", 2, Shape::Stems, vec![(update.get(), 120.0)])]).collect::<Vec<_>>())
                />
                <p class="help">"A 64 × 64 weight in NF4 and an update of rank 4, added, rounded in both ways in this tab. Lost: the length of the difference to the exact sum, over the length of the update."</p>
                <p>"So merge into 16 bits and into the decoded weights, which are those that the adapter was trained on; "<code>"halfbyte merge"</code>" does so and measures the difference. To stay in 4 bits, keep the adapter beside them."</p>
            </section>
            <section class="card" aria-label="What servers read">
                <h2>"What servers read"</h2>
                <p>
                    "Servers read a part of an adapter's configuration and ignore the rest without a word. Where the scale differs, the answers do; "<code>"halfbyte export"</code>" rewrites the adapter so that each server computes what was trained. "
                    <Cite of=Source::LORA place="section 4.1"/> ", " <Cite of=Source::RSLORA/>
                </p>
                <div class="fields">
                    <Slider label="Alpha" value=alpha scale=Scale::Stops(vec![8.0, 16.0, 32.0, 64.0, 128.0])/>
                    <Slider label="Rank" value=rank scale=Scale::Stops((2..=8).map(|power| f64::from(1u32 << power)).collect())/>
                </div>
                <Choice label="Scaling" value=rslora options=vec![(false, "α / r"), (true, "rsLoRA: α / √r")]/>
                <div class="table folds two-numbers" tabindex="0" role="region" aria-label="Scales by server">
                    <table id="servers">
                        <thead><tr><th scope="col">"Server"</th><th scope="col" class="number">"Its scale"</th><th scope="col" class="number">"Of what was trained"</th><th scope="col">"Reads"</th></tr></thead>
                        <tbody aria-live="polite">{rows}</tbody>
                    </table>
                </div>
                <p>"DoRA adapters and modules that were trained in full are read by none of the three servers: those have to be merged. " <Cite of=Source::DORA/></p>
            </section>
            <section class="card" aria-label="Memory and speed">
                <h2>"Memory and speed"</h2>
                <div class="fields">
                    <Model value=model/>
                    <Slider label="Adapters of the same base" value=adapters scale=Scale::Stops((0..=6).map(|power| f64::from(1u32 << power)).collect())/>
                    <Slider label="Memory bandwidth" value=bandwidth scale=Scale::Stops(vec![50.0, 100.0, 200.0, 300.0, 500.0, 1000.0, 2000.0, 3350.0, 4800.0]) format=|n| format!("{n} GB/s")/>
                </div>
                <Figures of=Signal::derive(trade)/>
                <p class="help">"Kept: one base in NF4 and the adapters in 32 bits. Merged: a model in 16 bits for each adapter. At most: a token of one answer reads every weight once, so it cannot be faster than the memory; decoding NF4 takes some of it."</p>
            </section>
            <Task
                goals=Signal::derive(move || goals(cost.get(), count(), trained(), scaling(alpha.get(), used(), false)))
                solved="One base in 4 bits serves many adapters; and the rank decides how wrong a server is that ignores how they are scaled."
            >
                "Serve many adapters from a small card, and know what a careless server would do to them."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_pefts() {
        assert_eq!(scaling(32.0, 16.0, false), 2.0);
        assert_eq!(scaling(32.0, 16.0, true), 8.0);
    }

    #[test]
    fn a_merged_copy_is_two_bytes_per_parameter_and_a_kept_adapter_small() {
        let [kept, merged] = costs("llama-3.1-8b", 16, 4);
        assert_eq!(merged, Cost { held: 4 * 2 * 8_030_261_248, read: 2 * 8_030_261_248 });
        assert_eq!(kept.held - kept.read, 3 * 4 * 41_943_040);
        assert!((extra("llama-3.1-8b", 16) - 0.006).abs() < 5e-4);
    }

    #[test]
    fn the_task_is_open_at_first_and_can_be_solved() {
        let solved = |rank: f64, adapters, rslora| {
            let (trained, served) = (scaling(32.0, rank, rslora), scaling(32.0, rank, false));
            goals(costs("llama-3.1-8b", rank as u64, adapters), adapters, trained, served).iter().all(|(_, met)| *met)
        };
        assert!(!solved(64.0, 1, false) && !solved(64.0, 8, true) && !solved(16.0, 8, false));
        assert!(solved(16.0, 8, true));
    }
}
