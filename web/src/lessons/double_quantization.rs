//! Lesson: where the 0.373 bits per weight come from that quantizing the scales saves, and what that costs in precision.

use std::sync::LazyLock;

use halfbyte_memory::{Run, bits_per_weight, bytes};
use halfbyte_nf4::{DynamicCode, decode, quantize_blocks};
use leptos::prelude::*;

use super::parts::{
    Axis, Chart, Figures, Formula, Lesson, Model, OnGpu, Predict, Sample, Series, Shape, Task, normal, shape,
};
use crate::ui::{Cite, Part, Scale, Slider, Source, Stack, query_state};

/// Weights of the sample.
const COUNT: usize = 1 << 16;

/// Bits per weight by what they hold: the code, the block's scale, the scales' scale.
fn bits(block: f64, nested: Option<f64>) -> [f64; 3] {
    match nested {
        None => [4.0, 32.0 / block, 0.0],
        Some(nested) => [4.0, 8.0 / block, 32.0 / (block * nested)],
    }
}

fn sum(bits: [f64; 3]) -> f64 {
    bits.iter().sum()
}

/// The scales after they were quantized in blocks of `nested`, as `Absmax::double` of the format does it in blocks of 256.
fn through_eight_bits(scales: &[f32], nested: usize) -> Vec<f32> {
    let offset = scales.iter().map(|scale| f64::from(*scale)).sum::<f64>() / scales.len().max(1) as f64;
    let code = DynamicCode::signed();
    let block = |block: &[f32]| {
        let centred: Vec<f32> = block.iter().map(|scale| scale - offset as f32).collect();
        let mut codes = vec![0; block.len()];
        let scale = code.encode(&centred, &mut codes);
        codes.into_iter().map(|one| code.levels()[usize::from(one)] * scale + offset as f32).collect::<Vec<_>>()
    };
    scales.chunks(nested.max(1)).flat_map(block).collect()
}

/// Errors as shares of what they are errors of.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Outcome {
    /// Of the scales.
    scales: f64,
    /// Of the weights, with the scales in f32.
    plain: f64,
    /// Of the weights, with the scales quantized.
    double: f64,
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |sum: f64, value: f32| sum + f64::from(value).powi(2);
    let error = found.iter().zip(expected).map(|(a, b)| a - b).fold(0.0, square);
    (error / expected.iter().copied().fold(0.0, square).max(f64::MIN_POSITIVE)).sqrt()
}

/// The sample: normal weights.
static WEIGHTS: LazyLock<Vec<f32>> = LazyLock::new(|| normal(3, COUNT).into_iter().map(|w| 0.02 * w as f32).collect());

/// What both quantizations do to them.
fn outcome(block: usize, nested: usize) -> Outcome {
    let (packed, scales) = quantize_blocks(&WEIGHTS, block);
    let again = through_eight_bits(&scales, nested);
    let error = |scales: &[f32]| {
        let mut decoded = vec![0.0; COUNT];
        decode(&packed, scales, block, 0, &mut decoded);
        relative(&decoded, &WEIGHTS)
    };
    Outcome { scales: relative(&again, &scales), plain: error(&scales), double: error(&again) }
}

fn goals(block: f64, nested: f64, error: f64, usual: f64) -> Vec<(String, bool)> {
    let bits = sum(bits(block, Some(nested)));
    let more = 100.0 * (error / usual - 1.0);
    vec![
        (format!("At most 4.07 bits per weight (now {bits:.4})"), bits <= 4.07),
        (format!("An error at most 5 % above that of blocks of 64 and 256 (now {more:+.1} %)"), more <= 5.0),
    ]
}

fn powers(from: u32, to: u32) -> Vec<f64> {
    (from..=to).map(|power| f64::from(1u32 << power)).collect()
}

/// The allowed value that is nearest to one that an address may have made up.
fn allowed(value: f64, stops: &[f64]) -> f64 {
    let distance = |stop: &&f64| (**stop - value).abs();
    stops.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).copied().unwrap_or(64.0)
}

fn parts([code, scale, nested]: [f64; 3]) -> Vec<Part> {
    let part =
        |label: &str, value: f64, tone| Part { label: label.into(), value, text: format!("{value:.4} bits"), tone };
    let mut parts = vec![part("code", code, 0), part("scale of the block", scale, 2)];
    if nested > 0.0 {
        parts.push(part("scale of the scales", nested, 3));
    }
    parts
}

/// Bits per weight over the size of a block, with the chosen size marked.
fn curves(block: f64, nested: f64) -> Vec<Series> {
    let curve = |nested| powers(5, 12).into_iter().map(|b| (b.log2(), sum(bits(b, nested)) - 4.0)).collect();
    vec![
        Series::new("scales in 32 bits", 1, Shape::Line, curve(None)),
        Series::new("scales in 8 bits", 2, Shape::Line, curve(Some(nested))),
        Series::new("the chosen block", 3, Shape::Stems, vec![(block.log2(), 1.0)]),
    ]
}

/// The page.
#[component]
pub(crate) fn DoubleQuantization() -> impl IntoView {
    let block = query_state("block", 64.0_f64);
    let nested = query_state("nested", 256.0_f64);
    let model = query_state("model", "llama-3.1-70b".to_owned());
    let sizes = Memo::new(move |_| (allowed(block.get(), &powers(5, 12)), allowed(nested.get(), &powers(5, 10))));
    let found = Memo::new(move |_| {
        let (block, nested) = sizes.get();
        outcome(block as usize, nested as usize)
    });
    let usual = outcome(64, 256).double;
    let saved = move || {
        let (block, nested) = sizes.get();
        sum(bits(block, None)) - sum(bits(block, Some(nested)))
    };
    let figures = move || {
        let elements = shape(&model.get()).linear_elements();
        vec![
            ("Saved per weight".to_owned(), format!("{:.3} bits", saved())),
            ("Saved on this model".to_owned(), bytes((elements as f64 * saved() / 8.0) as u64)),
            ("Error of the scales".to_owned(), format!("{:.2} %", 100.0 * found.get().scales)),
            ("Error of the weights, before".to_owned(), format!("{:.3} %", 100.0 * found.get().plain)),
            ("and after".to_owned(), format!("{:.3} %", 100.0 * found.get().double)),
        ]
    };
    // The format's own count, headers included, where its nested blocks of 256 are chosen.
    let engine = move || {
        let (block, nested) = sizes.get();
        let of = |double_quant| {
            let run = Run { block_size: block as u64, double_quant, ..Run::default() };
            bits_per_weight(4096 * 14_336, &run)
        };
        (nested == 256.0).then(|| {
            format!(
                "The engine's plan counts {:.4} and {:.4} bits for a weight of 4096 × 14336, headers included.",
                of(false),
                of(true)
            )
        })
    };
    let whole = Signal::derive(move || sum(bits(sizes.get().0, None)));
    let sample = move || {
        let (shape, block_size) = ([COUNT / 256, 256], sizes.get_untracked().0 as usize);
        Some(Sample { values: WEIGHTS.clone(), shape, block_size, double_quant: true, adapter: None })
    };
    let what =
        move || format!("the 65536 weights in blocks of {}, their scales in nested blocks of 256,", sizes.get().0);
    view! {
        <Lesson path="lessons/double-quantization" lede="A 4-bit weight does not take four bits: each block has a scale as well. The scales can be quantized too.">
            <Predict
                question="Double quantization saves 0.373 bits per weight. How much is that for a model with 65 thousand million of them?"
                options=&["about 0.3 GB", "about 3 GB", "about 30 GB"]
                right=1
            >
                <p>
                    "65 · 10⁹ × 0.373 / 8 is 3.0 · 10⁹ bytes: whether such a model fits a 48 GB card can depend on that. "
                    <Cite of=Source::QLORA place="section 3"/>
                </p>
            </Predict>
            <p>
                "A scale in 32 bits for each 64 weights is half a bit per weight. The scales of a layer are all positive and of much the same size: with their mean taken away, 8 bits hold each well enough, in blocks of 256 that share a scale of their own. "
                <Cite of=Source::QLORA place="section 3"/>
                " The 8-bit levels are the dynamic map of the 8-bit optimizers. "
                <Cite of=Source::EIGHT_BIT place="section 1.3"/>
            </p>
            <Formula math="<mfrac><mn>32</mn><mn>64</mn></mfrac><mo>=</mo><mn>0.5</mn><mspace width='1em'/><mo>→</mo><mspace width='1em'/><mfrac><mn>8</mn><mn>64</mn></mfrac><mo>+</mo><mfrac><mn>32</mn><mrow><mn>64</mn><mo>·</mo><mn>256</mn></mrow></mfrac><mo>=</mo><mn>0.127</mn><mspace width='2em'/><mn>0.5</mn><mo>−</mo><mn>0.127</mn><mo>=</mo><mn>0.373</mn>"/>
            <section class="card" aria-label="Block sizes">
                <div class="fields">
                    <Slider label="Weights of a block" value=block scale=Scale::Stops(powers(5, 12))/>
                    <Slider label="Scales that share a scale" value=nested scale=Scale::Stops(powers(5, 10))/>
                    <Model value=model/>
                </div>
                <div class="methods">
                    <div class="method">
                        <h3>"Scales in 32 bits"<span class="amount" id="plain">{move || format!("{:.4} bits", whole.get())}</span></h3>
                        <Stack label="Bits per weight without double quantization" parts=Signal::derive(move || parts(bits(sizes.get().0, None))) of=whole/>
                    </div>
                    <div class="method">
                        <h3>"Scales in 8 bits"<span class="amount" id="double">{move || format!("{:.4} bits", sum(bits(sizes.get().0, Some(sizes.get().1))))}</span></h3>
                        <Stack label="Bits per weight with double quantization" parts=Signal::derive(move || parts(bits(sizes.get().0, Some(sizes.get().1)))) of=whole/>
                    </div>
                </div>
                <Figures of=Signal::derive(figures)/>
                <p class="help" id="engine">{engine}</p>
                <Chart
                    label="Bits per weight that scales take, over the size of a block, with scales in 32 and in 8 bits"
                    x=Signal::derive(|| Axis { label: "weights of a block".into(), from: 5.0, to: 12.0, ticks: powers(5, 12).into_iter().map(|b| (b.log2(), format!("{b}"))).collect() })
                    y=Signal::derive(|| Axis::even("bits beyond 4", 0.0, 1.0, 4, |v| format!("{v}")))
                    series=Signal::derive(move || curves(sizes.get().0, sizes.get().1))
                />
                <p class="help">"Errors: root mean square, as a share of the root mean square of what is quantized, over 65536 normal weights. The format fixes 256 scales to a nested block; other sizes are computed here with the engine's 8-bit code to see what they would do."</p>
                <OnGpu what=Signal::derive(what) sample/>
            </section>
            <Task
                goals=Signal::derive(move || goals(sizes.get().0, sizes.get().1, found.get().double, usual))
                solved="Twice as many weights to a block halve what scales take; the error grows because the largest of 128 weights is a little larger than that of 64."
            >
                "Go below the usual 4.127 bits without losing much: find block sizes that meet both."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use halfbyte_nf4::{Absmax, Nf4Data};

    use super::*;

    #[test]
    fn the_bits_are_the_papers_and_the_plans() {
        let saved = sum(bits(64.0, None)) - sum(bits(64.0, Some(256.0)));
        assert!((saved - 0.373).abs() < 1e-3, "{saved}");
        for block_size in [32u64, 64, 512] {
            for double_quant in [false, true] {
                let run = Run { block_size, double_quant, ..Run::default() };
                let planned = bits_per_weight(4096 * 14_336, &run);
                let found = sum(bits(block_size as f64, double_quant.then_some(256.0)));
                assert!((planned - found).abs() < 1e-3, "{block_size} {double_quant}: {planned} {found}");
            }
        }
    }

    #[test]
    fn blocks_of_256_are_the_formats() {
        let scales: Vec<f32> = normal(9, 1000).into_iter().map(|v| 0.05 + 0.01 * v as f32).collect();
        let absmax = Absmax::double(&scales);
        let data = Nf4Data { shape: [1000, 64], block_size: 64, packed: vec![0; 32_000].into(), absmax };
        for (ours, theirs) in through_eight_bits(&scales, 256).iter().zip(data.decoded_absmax()) {
            assert!((ours - theirs).abs() < 1e-5, "{ours} {theirs}");
        }
    }

    #[test]
    fn made_up_sizes_become_allowed_ones() {
        for (value, size) in [(50.0, 64.0), (-1.0, 32.0), (1e9, 4096.0), (f64::NAN, 32.0)] {
            assert_eq!(allowed(value, &powers(5, 12)), size, "{value}");
        }
    }

    #[test]
    fn scales_lose_little_and_weights_less() {
        let found = outcome(64, 256);
        assert!(found.scales < 0.01 && found.double / found.plain < 1.01, "{found:?}");
        assert!(outcome(64, 1024).scales >= outcome(64, 32).scales);
    }

    #[test]
    fn the_task_is_open_at_first_and_blocks_of_128_solve_it() {
        let usual = outcome(64, 256).double;
        let solved = |block: f64, nested: f64| {
            let error = outcome(block as usize, nested as usize).double;
            goals(block, nested, error, usual).iter().all(|(_, met)| *met)
        };
        assert!(!solved(64.0, 256.0) && !solved(128.0, 32.0) && !solved(1024.0, 256.0));
        assert!(solved(128.0, 256.0));
    }
}
