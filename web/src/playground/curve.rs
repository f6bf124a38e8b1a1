//! The loss, step by step, as a curve that grows.
//!
//! Drawn here: a path and a few words, which a charting crate would bring at many times the size.

use halfbyte_protocol::Evaluation;
use leptos::prelude::*;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 30.0;
/// Points of the curve at most: more than a screen has room for.
const POINTS: usize = 600;
/// How much of the smooth curve a step leaves as it was.
const SMOOTH: f64 = 0.9;

/// Where values lie in the figure.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Frame {
    steps: f64,
    most: f64,
}

impl Frame {
    fn of(losses: &[f64], evaluations: &[Evaluation], steps: usize) -> Self {
        let values = losses.iter().copied().chain(evaluations.iter().map(|e| e.loss)).filter(|v| v.is_finite());
        let most = values.fold(0.0, f64::max);
        // Up to the next whole number, so that the axis does not jump at every step.
        Self { steps: steps.max(losses.len()).max(1) as f64, most: most.ceil().max(1.0) }
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * step / self.steps
    }

    fn y(&self, loss: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * loss / self.most
    }

    /// A path through the values of the steps, with gaps where one is not a number.
    fn path(&self, values: &[f64]) -> String {
        let every = values.len().div_ceil(POINTS).max(1);
        let (mut path, mut down) = (String::new(), false);
        let last = values.len().saturating_sub(1);
        for (i, value) in values.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last) {
            if !value.is_finite() {
                down = false;
                continue;
            }
            let command = if down { 'L' } else { 'M' };
            path += &format!("{command}{:.1} {:.1}", self.x(i as f64 + 1.0), self.y(*value));
            down = true;
        }
        path
    }
}

/// The exponential mean of the values so far, without the pull of its beginning at zero.
fn smooth(values: &[f64]) -> Vec<f64> {
    let (mut mean, mut weight) = (0.0, 0.0);
    let next = |value: &f64| {
        mean = SMOOTH * mean + (1.0 - SMOOTH) * value;
        weight = SMOOTH * weight + (1.0 - SMOOTH);
        mean / weight
    };
    values.iter().map(next).collect()
}

/// The curve of a run of `steps` steps.
#[component]
pub(crate) fn Curve(
    /// The loss of each step.
    losses: RwSignal<Vec<f64>>,
    /// On held-out data.
    evaluations: RwSignal<Vec<Evaluation>>,
    /// Steps of the whole run.
    #[prop(into)]
    steps: Signal<usize>,
) -> impl IntoView {
    let frame = Memo::new(move |_| {
        losses.with(|losses| evaluations.with(|evaluations| Frame::of(losses, evaluations, steps.get())))
    });
    let noisy = move || losses.with(|losses| frame.get().path(losses));
    let calm = move || losses.with(|losses| frame.get().path(&smooth(losses)));
    let rows = move || {
        let frame = frame.get();
        let row = |part: usize| {
            let loss = frame.most * part as f64 / 4.0;
            let y = frame.y(loss);
            view! {
                <line class="curve-grid" x1=LEFT x2=WIDTH - RIGHT y1=y y2=y/>
                <text class="curve-label end" x=LEFT - 8.0 y=y + 4.0>{format!("{loss:.2}")}</text>
            }
        };
        (0..=4).map(row).collect_view()
    };
    let dots = move || {
        let frame = frame.get();
        let dot =
            |e: &Evaluation| view! { <circle class="curve-dot" cx=frame.x(e.step as f64) cy=frame.y(e.loss) r="4"/> };
        evaluations.with(|all| all.iter().map(dot).collect_view())
    };
    let words = move || {
        losses.with(|losses| match (losses.first(), losses.last()) {
            (Some(first), Some(last)) => {
                format!("The loss of {} steps, from {first:.2} to {last:.2}", losses.len())
            }
            _ => "The loss; no step is made yet".into(),
        })
    };
    view! {
        <figure class="curve">
            <svg viewBox=format!("0 0 {WIDTH} {HEIGHT}") role="img" aria-label=words>
                {rows}
                <path class="curve-noisy" d=noisy/>
                <path class="curve-calm" d=calm/>
                {dots}
                <text class="curve-label" x=LEFT y=HEIGHT - 8.0>"step 0"</text>
                <text class="curve-label end" x=WIDTH - RIGHT y=HEIGHT - 8.0>{move || frame.get().steps}</text>
            </svg>
            <figcaption class="help">"Loss per step and its running mean; dots are the loss on held-out data."</figcaption>
        </figure>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_gaps_where_there_is_no_number_and_ends_at_the_last_value() {
        let frame = Frame::of(&[2.0, f64::NAN, 1.0], &[], 10);
        assert_eq!(frame, Frame { steps: 10.0, most: 2.0 });
        let path = frame.path(&[2.0, f64::NAN, 1.0]);
        assert_eq!(path.matches('M').count(), 2);
        let many: Vec<f64> = (0..10_000).map(f64::from).collect();
        let frame = Frame::of(&many, &[], 10_000);
        let path = frame.path(&many);
        assert!(path.matches('L').count() <= POINTS + 1);
        assert!(path.ends_with(&format!("{:.1} {:.1}", frame.x(10_000.0), frame.y(9_999.0))));
    }

    #[test]
    fn smoothing_keeps_what_is_constant() {
        assert!(smooth(&[3.0; 5]).iter().all(|v| (v - 3.0).abs() < 1e-12));
    }
}
