//! Lesson: a low-rank update, how well a rank reconstructs one, and what share of a model it trains.

use halfbyte_memory::{Run, grouped};
use leptos::prelude::*;
use nalgebra::{DMatrix, SVD};

use super::parts::{
    Axis, Chart, Figures, Formula, Heatmap, Lesson, Model, OnGpu, Predict, Sample, Series, Shape, Targets, Task, names,
    normal, shape,
};
use crate::ui::{Cite, Scale, Slider, Source, query_state};

/// Rows and columns of the matrix.
const SIDE: usize = 32;

/// An update of rank `own` of length 1, and noise of length `noise` in every direction.
fn update(own: usize, noise: f64) -> DMatrix<f64> {
    let matrix = |seed, rows, columns| DMatrix::from_vec(rows, columns, normal(seed, rows * columns));
    let signal = matrix(11, SIDE, own.max(1)) * matrix(12, own.max(1), SIDE);
    let every = matrix(13, SIDE, SIDE);
    signal.normalize() + every.normalize() * noise
}

/// A matrix in its singular value decomposition, from which the nearest matrix of every rank is read off.
#[derive(Clone, Debug, PartialEq)]
struct Decomposed {
    matrix: DMatrix<f64>,
    left: DMatrix<f64>,
    values: Vec<f64>,
    right: DMatrix<f64>,
}

impl Decomposed {
    fn of(matrix: DMatrix<f64>) -> Self {
        let SVD { u, v_t, singular_values } = matrix.clone().svd(true, true);
        let empty = || DMatrix::zeros(SIDE, SIDE);
        let (left, right) = (u.unwrap_or_else(empty), v_t.unwrap_or_else(empty));
        Self { matrix, left, values: singular_values.iter().copied().collect(), right }
    }

    /// The nearest matrix of this rank: `B` is the first columns of the left factor times their values, `A` the first rows
    /// of the right one (Eckart and Young 1936).
    fn nearest(&self, rank: usize) -> DMatrix<f64> {
        let [a, b] = self.adapter(rank);
        b * a
    }

    /// `A` and `B` of it.
    fn adapter(&self, rank: usize) -> [DMatrix<f64>; 2] {
        let rank = rank.min(SIDE);
        let b = self.left.columns(0, rank) * DMatrix::from_diagonal(&self.values[..rank].to_vec().into());
        [self.right.rows(0, rank).into_owned(), b]
    }

    /// A frozen weight of normal numbers with the adapter of a rank beside it, for the GPU.
    fn sample(&self, rank: usize) -> Sample {
        let rank = rank.min(SIDE);
        let values = normal(14, SIDE * SIDE).into_iter().map(|value| value as f32 / SIDE as f32).collect();
        let [a, b] = self.adapter(rank).map(|matrix| pixels(&matrix).into_iter().map(|value| value as f32).collect());
        Sample { values, shape: [SIDE; 2], block_size: 64, double_quant: true, adapter: Some((a, b, rank)) }
    }

    /// How far that is from the matrix, over the matrix's length: what the left-out singular values amount to.
    fn error(&self, rank: usize) -> f64 {
        let square = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
        (square(&self.values[rank.min(SIDE)..]) / square(&self.values)).sqrt()
    }
}

/// Row by row, as a picture wants them.
fn pixels(matrix: &DMatrix<f64>) -> Vec<f64> {
    matrix.transpose().iter().copied().collect()
}

/// Trained parameters of an adapter, and all of its model.
fn trained(model: &str, targets: &str, rank: u64) -> (u64, u64) {
    let model = shape(model);
    let run = Run { rank, targets: names(targets), ..Run::default() };
    (run.trained(&model), model.parameters())
}

fn goals(own: f64, error: f64, (trained, all): (u64, u64)) -> Vec<(String, bool)> {
    vec![
        (format!("The update's own rank is 8 or more (now {own})"), own >= 8.0),
        (format!("The adapter is within 10 % of the update (now {:.1} %)", 100.0 * error), error <= 0.1),
        (
            format!(
                "Fewer than one parameter in a thousand is trained (now 1 in {:.0})",
                all as f64 / trained.max(1) as f64
            ),
            trained * 1000 < all,
        ),
    ]
}

/// The page.
#[component]
pub(crate) fn Lora() -> impl IntoView {
    let rank = query_state("rank", 4.0_f64);
    let own = query_state("own", 8.0_f64);
    let noise = query_state("noise", 0.2_f64);
    let model = query_state("model", "llama-3.1-8b".to_owned());
    let targets = query_state("targets", "q,k,v,o,gate,up,down".to_owned());
    let decomposed =
        Memo::new(move |_| Decomposed::of(update(own.get().clamp(1.0, 32.0) as usize, noise.get().clamp(0.0, 1.0))));
    let used = move || rank.get().clamp(1.0, 32.0) as usize;
    let error = Memo::new(move |_| decomposed.with(|matrix| matrix.error(used())));
    let counted = Memo::new(move |_| trained(&model.get(), &targets.get(), used() as u64));
    let most = Signal::derive(move || decomposed.with(|all| all.matrix.amax()));
    let figures = move || {
        let (trained, all) = counted.get();
        vec![
            ("Left over of the update".to_owned(), format!("{:.1} %", 100.0 * error.get())),
            ("Trained parameters".to_owned(), grouped(trained)),
            ("Share of the model".to_owned(), format!("{:.3} %", 100.0 * trained as f64 / all as f64)),
        ]
    };
    let series = move || {
        decomposed.with(|all| {
            let curve = (0..=SIDE).map(|rank| (rank as f64, 100.0 * all.error(rank))).collect();
            vec![
                Series::new("left over, by rank", 0, Shape::Line, curve),
                Series::new("the chosen rank", 3, Shape::Stems, vec![(used() as f64, 100.0)]),
            ]
        })
    };
    let nearest = move || decomposed.with(|all| pixels(&all.nearest(used())));
    let sample = move || decomposed.with_untracked(|all| Some(all.sample(untrack(used))));
    let what = move || format!("a frozen 32 × 32 weight in NF4, beside it the adapter of rank {} from above,", used());
    let rest = move || decomposed.with(|all| pixels(&(&all.matrix - all.nearest(used()))));
    view! {
        <Lesson path="lessons/lora" lede="Fine-tuning changes every weight a little. How much of such a change fits into two thin matrices?">
            <Predict
                question="Rank 16 on all seven linear layers of every block of Llama 3.1 8B: what share of the parameters is trained?"
                options=&["about 0.5 %", "about 5 %", "about 25 %"]
                right=0
            >
                <p>{move || {
                    let (trained, all) = trained("llama-3.1-8b", "q,k,v,o,gate,up,down", 16);
                    format!("{} of {} parameters, {:.2} %. A layer with d inputs and k outputs has d · k weights and gets r · (d + k) more.", grouped(trained), grouped(all), 100.0 * trained as f64 / all as f64)
                }}</p>
            </Predict>
            <p>
                "LoRA leaves a weight as it is and adds the product of two thin matrices. "
                <code>"A"</code>" starts at random and "<code>"B"</code>" at zero, so training starts from the model as it was. The idea rests on a conjecture: that what fine-tuning has to change is of low rank. "
                <Cite of=Source::LORA place="section 4.1"/>
            </p>
            <Formula math="<mi>y</mi><mo>=</mo><mi>W</mi><mi>x</mi><mo>+</mo><mfrac><mi>α</mi><mi>r</mi></mfrac><mi>B</mi><mi>A</mi><mi>x</mi><mo>,</mo><mspace width='1em'/><mi>B</mi><mo>∈</mo><msup><mi>ℝ</mi><mrow><mi>k</mi><mo>×</mo><mi>r</mi></mrow></msup><mo>,</mo><mspace width='0.5em'/><mi>A</mi><mo>∈</mo><msup><mi>ℝ</mi><mrow><mi>r</mi><mo>×</mo><mi>d</mi></mrow></msup>"/>
            <section class="card" aria-label="Rank and reconstruction">
                <div class="fields">
                    <Slider label="Rank of the adapter" value=rank scale=Scale::Even { from: 1.0, to: 32.0, step: 1.0 }/>
                    <Slider label="Own rank of the update" value=own scale=Scale::Even { from: 1.0, to: 32.0, step: 1.0 }/>
                    <Slider label="Noise in all directions" value=noise scale=Scale::Even { from: 0.0, to: 1.0, step: 0.05 } format=|v| format!("{:.0} %", 100.0 * v)/>
                </div>
                <div class="heatmaps">
                    <Heatmap label="The update" side=SIDE values=Signal::derive(move || decomposed.with(|all| pixels(&all.matrix))) most=most/>
                    <Heatmap label=Signal::derive(move || format!("Nearest of rank {}", used())) side=SIDE values=Signal::derive(nearest) most=most/>
                    <Heatmap label="Left over" side=SIDE values=Signal::derive(rest) most=most/>
                </div>
                <Figures of=Signal::derive(figures)/>
                <Chart
                    label="What is left over of the update, in percent, over the rank of the adapter"
                    x=Signal::derive(|| Axis::even("rank", 0.0, 32.0, 4, |v| v.to_string()))
                    y=Signal::derive(|| Axis::even("left over", 0.0, 100.0, 4, |v| format!("{v} %")))
                    series=Signal::derive(series)
                />
                <p class="help">"A matrix of 32 × 32, made for the purpose: a product of that rank and noise. Its singular value decomposition is computed here at each change of it; no adapter of that rank can come nearer than the first so many singular values. Training need not find it, but cannot beat it."</p>
                <OnGpu what=Signal::derive(what) sample/>
            </section>
            <section class="card" aria-label="Trained share">
                <div class="fields"><Model value=model/></div>
                <Targets value=targets/>
                <p>
                    "The QLoRA paper found the rank to matter less than where adapters are: on all linear layers they reach what full fine-tuning reaches, on the attention alone they did not. "
                    <Cite of=Source::QLORA place="section 4"/>
                    " Two variants change how the product is used: rsLoRA divides α by √r, so that a larger rank does not shrink the update; DoRA trains the length of each weight vector apart from its direction. "
                    <Cite of=Source::RSLORA/> ", " <Cite of=Source::DORA/>
                </p>
            </section>
            <Task
                goals=Signal::derive(move || goals(own.get(), error.get(), counted.get()))
                solved="A rank as high as the update's own is enough, and more only fits noise. Fewer adapted layers pay for it."
            >
                "Reconstruct an update well, and train next to nothing."
            </Task>
        </Lesson>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_matrix_is_as_far_as_its_singular_values_say() {
        let all = Decomposed::of(update(8, 0.2));
        for rank in [0, 1, 8, 20, 32] {
            let far = (&all.matrix - all.nearest(rank)).norm() / all.matrix.norm();
            assert!((far - all.error(rank)).abs() < 1e-9, "{rank}: {far} {}", all.error(rank));
        }
        assert!((1..=32).all(|rank| all.error(rank) <= all.error(rank - 1)));
    }

    #[test]
    fn the_gpu_gets_the_adapter_row_by_row() {
        let all = Decomposed::of(update(8, 0.2));
        let Some((a, b, 5)) = all.sample(5).adapter else { panic!("an adapter of rank 5") };
        let at = |i: usize, j: usize| (0..5).map(|k| f64::from(b[5 * i + k]) * f64::from(a[SIDE * k + j])).sum::<f64>();
        let nearest = all.nearest(5);
        for (i, j) in [(0, 0), (3, 17), (31, 30)] {
            assert!((at(i, j) - nearest[(i, j)]).abs() < 1e-6, "{i} {j}");
        }
    }

    #[test]
    fn without_noise_the_own_rank_is_enough() {
        let all = Decomposed::of(update(8, 0.0));
        assert!(all.error(8) < 1e-9 && all.error(7) > 1e-2);
    }

    #[test]
    fn the_share_is_half_a_percent() {
        let (trained, all) = trained("llama-3.1-8b", "q,k,v,o,gate,up,down", 16);
        assert_eq!(trained, 41_943_040);
        assert!((0.005..0.0055).contains(&(trained as f64 / all as f64)));
    }

    #[test]
    fn the_task_is_open_at_first_and_can_be_solved() {
        let solved = |rank: u64, own: usize, noise, targets| {
            let error = Decomposed::of(update(own, noise)).error(rank as usize);
            goals(own as f64, error, trained("llama-3.1-8b", targets, rank)).iter().all(|(_, met)| *met)
        };
        assert!(!solved(4, 8, 0.2, "q,k,v,o,gate,up,down"));
        assert!(!solved(8, 8, 0.05, "q,k,v,o,gate,up,down"));
        assert!(solved(8, 8, 0.05, "q,v"));
    }
}
