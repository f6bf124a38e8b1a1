//! Lesson: the optimizer's state in pages, and how they make room for one long sequence.

mod simulation;

use halfbyte_memory::{Optimizer, Run, bytes, grouped};
use leptos::prelude::*;

use super::parts::{Axis, Chart, Figures, Lesson, Model, Predict, Series, Shape, Task, shape};
use crate::ui::{Choice, Cite, Scale, Slider, Source, query_state};

use simulation::{LONG, Outcome, STEPS, Setting, places, simulate};

const GIB: f64 = (1u64 << 30) as f64;

fn goals(outcome: &Outcome, memory: u64, long: u64) -> Vec<(String, bool)> {
    let moved = outcome.moved as f64 / outcome.state.max(1) as f64;
    vec![
        (format!("The long sequence has 4096 tokens or more (now {})", grouped(long)), long >= 4096),
        (
            format!("Without paging it would not fit (it would need {})", bytes(outcome.unpaged)),
            outcome.unpaged > memory,
        ),
        (format!("With paging it fits (it needs {})", bytes(outcome.peak)), outcome.peak <= memory),
        (format!("At most 70 % of the state moves in a step (now {:.0} %)", 100.0 * moved), moved <= 0.7),
    ]
}

/// The timeline as series: everything, the state, the card's memory, and the chosen instant.
fn series(outcome: &Outcome, memory: u64, at: usize) -> (f64, Vec<Series>) {
    let points = |f: fn(&simulation::Instant) -> u64| {
        outcome.instants.iter().enumerate().map(|(i, one)| (i as f64, f(one) as f64 / GIB)).collect::<Vec<_>>()
    };
    let last = outcome.instants.len().saturating_sub(1) as f64;
    let (memory, unpaged) = (memory as f64 / GIB, outcome.unpaged as f64 / GIB);
    let top = 1.1 * memory.max(unpaged);
    // A pass is one instant, drawn as wide as a twentieth of the updates so that it can be seen.
    let wide = (outcome.pages as f64 / 20.0).max(1.0);
    let passes = outcome.instants.iter().enumerate().filter(|(_, one)| one.page.is_none());
    let passes = passes.map(|(i, one)| (i as f64 + wide / 2.0, one.total as f64 / GIB)).collect();
    let series = vec![
        Series::new("going through the layers", 6, Shape::Bars(wide), passes),
        Series::new(
            "everything, while pages are updated",
            1,
            Shape::Area,
            points(|one| if one.page.is_some() { one.total } else { 0 }),
        ),
        Series::new("optimizer state on the device", 5, Shape::Area, points(|one| one.resident)),
        Series::new("the card's memory", 3, Shape::Limit, vec![(0.0, memory), (last, memory)]),
        Series::new("the instant below", 2, Shape::Stems, vec![(at as f64, top)]),
    ];
    (top, series)
}

/// The page.
#[component]
pub(crate) fn PagedOptimizers() -> impl IntoView {
    let model = query_state("model", "llama-3.1-8b".to_owned());
    let rank = query_state("rank", 64.0_f64);
    let state = query_state("optimizer", "adamw".to_owned());
    let share = query_state("budget", 1.0_f64);
    let long = query_state("long", 2048.0_f64);
    let memory = query_state("memory", 13.0_f64);
    let at = query_state("at", 0.0_f64);
    let setting = Memo::new(move |_| {
        let optimizer = if state.get() == "adamw8bit" { Optimizer::AdamW8bit } else { Optimizer::AdamW };
        let run = Run { rank: rank.get().clamp(1.0, 512.0) as u64, length: 1024, optimizer, ..Run::default() };
        Setting { model: shape(&model.get()), run, share: share.get(), long: long.get().clamp(1.0, 65_536.0) as u64 }
    });
    let outcome = Memo::new(move |_| setting.with(simulate));
    let room = move || (memory.get().max(0.0) * GIB) as u64;
    let instant = move || (at.get().max(0.0) as usize).min(outcome.with(|all| all.instants.len()).saturating_sub(1));
    let drawn = Memo::new(move |_| outcome.with(|all| series(all, room(), instant())));
    let cells = Memo::new(move |_| setting.with(|setting| places(setting, instant())));
    let figures = move || {
        outcome.with(|all| {
            vec![
                ("Optimizer state".to_owned(), bytes(all.state)),
                ("Pages".to_owned(), grouped(all.pages as u64)),
                ("Fetched in a step".to_owned(), format!("{} pages", grouped(all.fetched[STEPS - 1] as u64))),
                ("Bytes fetched".to_owned(), bytes(all.moved)),
                ("Peak".to_owned(), bytes(all.peak)),
                ("Peak without paging".to_owned(), bytes(all.unpaged)),
            ]
        })
    };
    let now = move || {
        outcome.with(|all| {
            let Some(one) = all.instants.get(instant()) else { return String::new() };
            let here = cells.with(|cells| cells.iter().filter(|here| **here).count());
            let doing = match one.page {
                None => "going through the layers".to_owned(),
                Some(page) => format!("updating with page {}", page + 1),
            };
            format!(
                "Step {}, {doing}: {here} of {} pages on the device, {} in all.",
                one.step,
                all.pages,
                bytes(one.total)
            )
        })
    };
    let used = move || outcome.with(|all| all.instants.get(instant()).and_then(|one| one.page));
    let grid = move || {
        let used = used();
        let cell = |(page, here): (usize, bool)| {
            let class = match (used == Some(page), here) {
                (true, _) => "cell used",
                (false, true) => "cell here",
                (false, false) => "cell",
            };
            view! { <span class=class></span> }
        };
        cells.get().into_iter().enumerate().map(cell).collect_view()
    };
    let slider = move || {
        let last = outcome.with(|all| all.instants.len()).saturating_sub(1) as f64;
        view! { <Slider label="Instant of the timeline" value=at scale=Scale::Even { from: 0.0, to: last, step: 1.0 } format=|at| grouped(at as u64)/> }
    };
    view! {
        <Lesson path="lessons/paged-optimizers" lede="A run fits, until one long sequence comes. The optimizer's state is only needed at the end of a step: it can make room.">
            <Predict
                question="An optimizer has 100 pages of state and room on the device for 60. It needs every page once in each step. How many have to be fetched from the host in a step, at least?"
                options=&["40", "60", "100"]
                right=0
            >
                <p>"If pages are always used in the same order and the one used longest ago goes first, all 100 are fetched: each is sent away just before it is needed. Halfbyte visits the parameters forwards in odd steps and backwards in even ones. Then the 60 that were used last are used first, and 40 move."</p>
            </Predict>
            <p>
                "The paper pages the optimizer's state by the unified memory of CUDA, which moves pages when the GPU runs out of memory. "
                <Cite of=Source::QLORA place="section 3"/>
                " Halfbyte moves them itself, by a budget that you set, so that it works on every device: a page is the state of one parameter, and the page that was used longest ago goes first. Held in 8 bits the state takes a quarter. "
                <Cite of=Source::EIGHT_BIT place="section 1"/>
            </p>
            <section class="card" aria-label="A timeline of pages">
                <div class="fields">
                    <Model value=model/>
                    <Slider label="Rank" value=rank scale=Scale::Stops((3..=8).map(|power| f64::from(1u32 << power)).collect())/>
                    <Slider label="Tokens of the long sequence" value=long scale=Scale::Stops(vec![1024.0, 2048.0, 3072.0, 4096.0, 6144.0, 8192.0, 12_288.0, 16_384.0]) format=|n| format!("{} tokens", grouped(n as u64))/>
                    <Slider label="Memory of the card" value=memory scale=Scale::Stops(vec![4.0, 6.0, 8.0, 10.0, 11.0, 12.0, 13.0, 14.0, 16.0, 24.0, 32.0, 48.0, 80.0]) format=|n| format!("{n} GiB")/>
                    <Slider label="Budget for the optimizer's state" value=share scale=Scale::Even { from: 0.0, to: 1.0, step: 0.05 } format=|v| format!("{:.0} % of it", 100.0 * v)/>
                </div>
                <Choice label="Optimizer" value=state options=vec![("adamw".to_owned(), "AdamW"), ("adamw8bit".to_owned(), "AdamW in 8 bits")]/>
                <Figures of=Signal::derive(figures)/>
                <Chart
                    label=Signal::derive(move || format!("Memory over {STEPS} steps, of which step {LONG} sees the long sequence"))
                    x=Signal::derive(move || {
                        let pages = outcome.with(|all| all.pages) as f64 + 1.0;
                        let ticks = (0..STEPS).map(|step| (step as f64 * pages, format!("{}", step + 1))).collect();
                        Axis { label: "step; one place for each page".into(), from: 0.0, to: pages * STEPS as f64, ticks }
                    })
                    y=Signal::derive(move || Axis::even("GiB", 0.0, drawn.with(|(top, _)| *top), 4, |v| format!("{v:.1}")))
                    series=Signal::derive(move || drawn.with(|(_, series)| series.clone()))
                />
                {slider}
                <p id="now" aria-live="polite">{now}</p>
                <div class="cells" role="img" aria-label=now>{grid}</div>
                <p class="help">
                    <span class="key"><span class="cell used"></span>" used now"</span>
                    <span class="key"><span class="cell here"></span>" on the device"</span>
                    <span class="key"><span class="cell"></span>" in host memory, or not made yet"</span>
                </p>
            </section>
            <Task
                goals=Signal::derive(move || outcome.with(|all| goals(all, room(), setting.with(|s| s.long))))
                solved="The budget is what the longest sequence leaves free. Each step pays for it by what has no room."
            >
                "Make a long sequence fit that does not fit without paging, and do not move more than you must."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solved(share: f64, long: u64, memory: u64) -> bool {
        let run = Run { rank: 64, length: 1024, ..Run::default() };
        let setting = Setting { model: shape("llama-3.1-8b"), run, share, long };
        let outcome = simulate(&setting);
        goals(&outcome, memory << 30, long).iter().all(|(_, met)| *met)
    }

    #[test]
    fn the_task_is_open_at_first_and_can_be_solved() {
        assert!(!solved(1.0, 2048, 13), "not with what the page starts with");
        assert!(!solved(1.0, 6144, 13) && !solved(0.0, 6144, 13) && !solved(0.8, 6144, 13));
        assert!(solved(0.35, 6144, 13));
    }
}
