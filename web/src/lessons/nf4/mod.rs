//! Lesson: the 16 levels of NF4, why they lie where they lie, and what they do to weights of any distribution.

mod tensor;

use halfbyte_nf4::{NF4_TABLE, naive_quantile_table, rmse, uniform_table};
use leptos::prelude::*;

use super::parts::{Axis, Chart, Distribution, Formula, Lesson, Predict, Series, Shape, Task};
use crate::ui::{Choice, Cite, Scale, Slider, Source, query_state};

use tensor::RealTensor;

/// A table of 16 levels and what it is called.
type Table = (&'static str, [f32; 16]);

/// The tables that are compared, NF4 first.
fn tables() -> [Table; 3] {
    [("NF4", NF4_TABLE), ("uniform", uniform_table()), ("naive quantiles", naive_quantile_table())]
}

/// Each value over the largest magnitude of its block: what the levels are compared with.
fn scaled(values: &[f32], block_size: usize) -> Vec<f64> {
    let block = |block: &[f32]| {
        let absmax = block.iter().fold(0.0f32, |max, value| max.max(value.abs())).max(f32::MIN_POSITIVE);
        block.iter().map(|value| f64::from(value / absmax)).collect::<Vec<_>>()
    };
    values.chunks(block_size.max(1)).flat_map(block).collect()
}

/// How many bits of information a code carries: the entropy of how often each of the 16 is used, at most 4.
fn entropy(scaled: &[f64], table: &[f32; 16]) -> f64 {
    let mut counts = [0u32; 16];
    for value in scaled {
        let distance = |i: &usize| (f64::from(table[*i]) - value).abs();
        counts[(0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)] += 1;
    }
    let share = |count: u32| f64::from(count) / scaled.len().max(1) as f64;
    counts.into_iter().filter(|count| *count > 0).map(|count| -share(count) * share(count).log2()).sum()
}

/// What a table does to a sample: the error, the same as a share of the weights' own root mean square, and the entropy of the
/// codes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Outcome {
    rmse: f64,
    error: f64,
    entropy: f64,
}

fn outcomes(values: &[f32], block_size: usize) -> [Outcome; 3] {
    let size = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len().max(1) as f64).sqrt();
    let scaled = scaled(values, block_size);
    tables().map(|(_, table)| {
        let rmse = rmse(values, &table, block_size);
        Outcome { rmse, error: rmse / size.max(f64::MIN_POSITIVE), entropy: entropy(&scaled, &table) }
    })
}

fn goals([nf4, _, naive]: &[Outcome; 3]) -> Vec<(String, bool)> {
    let ratio = naive.error / nf4.error.max(f64::MIN_POSITIVE);
    vec![
        (format!("Naive quantiles err at least 1.15 times as much as NF4 (now {ratio:.2})"), ratio >= 1.15),
        (format!("A code of NF4 still carries 3.5 bits (now {:.2})", nf4.entropy), nf4.entropy >= 3.5),
    ]
}

/// A histogram of scaled values, and the levels of a table on top.
fn histogram(scaled: &[f64], (name, table): Table) -> (f64, Vec<Series>) {
    const BINS: usize = 60;
    let width = 2.0 / BINS as f64;
    let mut counts = vec![0u32; BINS];
    for value in scaled {
        counts[(((value + 1.0) / width) as usize).min(BINS - 1)] += 1;
    }
    let share = |count: u32| 100.0 * f64::from(count) / scaled.len().max(1) as f64;
    let bars: Vec<(f64, f64)> =
        counts.iter().enumerate().map(|(i, count)| ((i as f64 + 0.5) * width - 1.0, share(*count))).collect();
    let top = bars.iter().map(|(_, share)| *share).fold(0.0, f64::max);
    let levels = table.map(|level| (f64::from(level), top));
    let weights = Series::new("weights, each over its block's absmax", 6, Shape::Bars(0.85 * width), bars);
    (top, vec![weights, Series::new(&format!("the 16 levels: {name}"), 3, Shape::Stems, levels.into())])
}

fn percent(value: f64) -> String {
    format!("{:.0} %", 100.0 * value)
}

/// The sizes of a block that the format allows.
fn block_sizes() -> Scale {
    Scale::Stops((5..=12).map(|power| f64::from(1u32 << power)).collect())
}

/// The page.
#[component]
pub(crate) fn Nf4() -> impl IntoView {
    let width = query_state("width", 0.02_f64);
    let outliers = query_state("outliers", 0.0_f64);
    let skew = query_state("skew", 0.0_f64);
    let zeros = query_state("zeros", 0.0_f64);
    let block_size = query_state("block", 64.0_f64);
    let table = query_state("table", 0usize);
    let size = Memo::new(move |_| (block_size.get() as usize).clamp(32, 4096));
    let values = Memo::new(move |_| {
        let (width, skew) = (width.get(), skew.get().clamp(-1.0, 1.0));
        Distribution { width, skew, outliers: outliers.get(), zeros: zeros.get() }.sample()
    });
    let outcome = Memo::new(move |_| values.with(|values| outcomes(values, size.get())));
    let drawn = Memo::new(move |_| {
        let table = tables().get(table.get()).copied().unwrap_or(("NF4", NF4_TABLE));
        values.with(|values| histogram(&scaled(values, size.get()), table))
    });
    let rows = move || {
        let row = |((name, _), outcome): (Table, Outcome)| {
            view! {
                <tr>
                    <th scope="row">{name}</th>
                    <td class="number">{format!("{:.5}", outcome.rmse)}</td>
                    <td class="number">{format!("{:.2} %", 100.0 * outcome.error)}</td>
                    <td class="number">{format!("{:.2}", outcome.entropy)}</td>
                </tr>
            }
        };
        tables().into_iter().zip(outcome.get()).map(row).collect_view()
    };
    view! {
        <Lesson path="lessons/nf4" lede="Four bits are sixteen levels. Which sixteen numbers should stand for billions of weights?">
            <Predict
                question="All weights of a layer are doubled. What happens to the error of NF4, as a share of the weights?"
                options=&["it doubles", "it stays the same", "it halves"]
                right=1
            >
                <p>
                    "Each block of 64 weights is divided by its largest magnitude, its absmax, before a level is chosen, and multiplied by it afterwards. What is common to a block drops out; only the shape of the distribution counts. Drag the width below: the errors do not move. "
                    <Cite of=Source::QLORA place="section 2"/>
                </p>
                <Formula math="<msub><mi>c</mi><mi>i</mi></msub><mo>=</mo><munder><mi>arg min</mi><mi>k</mi></munder><mo>|</mo><mfrac><msub><mi>w</mi><mi>i</mi></msub><mrow><mi>max</mi><mo>|</mo><mi>w</mi><mo>|</mo></mrow></mfrac><mo>−</mo><msub><mi>q</mi><mi>k</mi></msub><mo>|</mo><mo>,</mo><mspace width='1em'/><msub><mover><mi>w</mi><mo>^</mo></mover><mi>i</mi></msub><mo>=</mo><msub><mi>q</mi><msub><mi>c</mi><mi>i</mi></msub></msub><mo>·</mo><mi>max</mi><mo>|</mo><mi>w</mi><mo>|</mo>"/>
            </Predict>
            <p>
                "Weights of a trained network are close to normally distributed. So NF4 takes its levels from the quantiles of a normal distribution: where many weights are, levels are close together, and each is used about as often. Zero is a level of its own, which costs one on the negative side: eight lie below zero, seven above. "
                <Cite of=Source::QLORA place="section 3 and appendix E"/>
            </p>
            <section class="card" aria-label="A distribution and three tables">
                <div class="fields">
                    <Slider label="Width" value=width scale=Scale::Even { from: 0.005, to: 0.1, step: 0.005 } format=|v| format!("σ = {v:.3}")/>
                    <Slider label="Outliers, ten times as far out" value=outliers scale=Scale::Even { from: 0.0, to: 0.1, step: 0.005 } format=|v| format!("{:.1} %", 100.0 * v)/>
                    <Slider label="Skew" value=skew scale=Scale::Even { from: -1.0, to: 1.0, step: 0.05 } format=|v| format!("δ = {v:.2}")/>
                    <Slider label="Exact zeros" value=zeros scale=Scale::Even { from: 0.0, to: 0.9, step: 0.05 } format=percent/>
                    <Slider label="Weights of a block" value=block_size scale=block_sizes()/>
                </div>
                <Choice label="Levels drawn" value=table options=vec![(0, "NF4"), (1, "Uniform"), (2, "Naive quantiles")]/>
                <Chart
                    label="A histogram of the weights, each over its block's absmax, with the 16 levels of the chosen table"
                    x=Signal::derive(|| Axis::even("over the block's absmax", -1.0, 1.0, 4, |v| v.to_string()))
                    y=Signal::derive(move || Axis::even("share of the weights", 0.0, drawn.with(|(top, _)| *top), 2, |v| format!("{v:.1} %")))
                    series=Signal::derive(move || drawn.with(|(_, series)| series.clone()))
                />
                <div class="table" tabindex="0" role="region" aria-label="Error of each table of levels" aria-live="polite">
                    <table id="tables">
                        <thead><tr><th scope="col">"Table"</th><th scope="col" class="number">"Error"</th><th scope="col" class="number">"of the weights"</th><th scope="col" class="number">"Bits of a code"</th></tr></thead>
                        <tbody>{rows}</tbody>
                    </table>
                </div>
                <p class="help">"4096 weights. Error: root mean square of what is decoded minus what it was, as a number and over that of the weights. Bits of a code: the entropy of how often each code is used; 4 if all are used alike. Uniform: 16 levels at equal distances. Naive quantiles: at (i + ½)/16, without a zero."</p>
            </section>
            <RealTensor block_size=size/>
            <Task
                goals=Signal::derive(move || outcome.with(goals))
                solved="A weight that is exactly zero stays zero in NF4 alone. The other tables have no zero, and move each such weight to their nearest level."
            >
                "On normal weights the naive quantiles are about as good as NF4. Find weights for which they are not."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Distribution = Distribution { width: 0.02, skew: 0.0, outliers: 0.0, zeros: 0.0 };

    #[test]
    fn the_width_drops_out() {
        let narrow = outcomes(&PLAIN.sample(), 64);
        let wide = outcomes(&Distribution { width: 0.04, ..PLAIN }.sample(), 64);
        for (narrow, wide) in narrow.iter().zip(&wide) {
            assert!((narrow.error / wide.error - 1.0).abs() < 1e-5, "{narrow:?} {wide:?}");
        }
    }

    #[test]
    fn normal_weights_prefer_nf4_to_uniform_and_outliers_hurt_all() {
        let [nf4, uniform, naive] = outcomes(&PLAIN.sample(), 64);
        assert!(
            nf4.error < uniform.error && (nf4.error / naive.error - 1.0).abs() < 0.03,
            "{nf4:?} {uniform:?} {naive:?}"
        );
        assert!(nf4.entropy > uniform.entropy && nf4.entropy <= 4.0);
        for (plain, wild) in
            outcomes(&PLAIN.sample(), 64).iter().zip(outcomes(&Distribution { outliers: 0.01, ..PLAIN }.sample(), 64))
        {
            assert!(wild.error > 1.2 * plain.error);
        }
    }

    #[test]
    fn the_task_is_open_at_first_and_zeros_solve_it() {
        let solved = |d: Distribution| goals(&outcomes(&d.sample(), 64)).iter().all(|(_, met)| *met);
        assert!(!solved(PLAIN) && !solved(Distribution { outliers: 0.05, ..PLAIN }));
        assert!(solved(Distribution { zeros: 0.25, ..PLAIN }));
        assert!(!solved(Distribution { zeros: 0.9, ..PLAIN }), "codes that carry nothing");
    }

    #[test]
    fn a_histogram_holds_every_weight() {
        let scaled = scaled(&PLAIN.sample(), 64);
        assert!(scaled.iter().all(|value| value.abs() <= 1.0));
        let (top, series) = histogram(&scaled, tables()[0]);
        let sum: f64 = series[0].points.iter().map(|(_, share)| share).sum();
        assert!((sum - 100.0).abs() < 1e-9 && top < 100.0 && series[1].points.len() == 16);
    }
}
