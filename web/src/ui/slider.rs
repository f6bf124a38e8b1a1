//! A number by dragging, with its label and its value in words.

use leptos::prelude::*;

use super::unique;

/// The values that a slider goes through.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// Even steps.
    Even {
        /// The smallest value.
        from: f64,
        /// The largest value.
        to: f64,
        /// The distance of two values.
        step: f64,
    },
    /// These, in rising order; there must be one.
    Stops(Vec<f64>),
}

impl Scale {
    /// The range of the control's own numbers: the least, the most, the step.
    fn range(&self) -> (f64, f64, f64) {
        match self {
            Self::Even { from, to, step } => (*from, *to, *step),
            Self::Stops(stops) => (0.0, stops.len().saturating_sub(1) as f64, 1.0),
        }
    }

    /// The control's number for a value: for stops the nearest one's place.
    fn place(&self, value: f64) -> f64 {
        match self {
            Self::Even { .. } => value,
            Self::Stops(stops) => {
                let distance = |place: &usize| (stops[*place] - value).abs();
                (0..stops.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0) as f64
            }
        }
    }

    /// The value at the control's number.
    fn value(&self, place: f64) -> f64 {
        match self {
            Self::Even { .. } => place,
            Self::Stops(stops) => stops.get(place as usize).or(stops.last()).copied().unwrap_or(0.0),
        }
    }
}

/// A number between two ends.
#[component]
pub fn Slider(
    /// What it is.
    #[prop(into)]
    label: String,
    /// The number.
    value: RwSignal<f64>,
    /// What it can be.
    scale: Scale,
    /// How it is written; with its unit.
    #[prop(default = plain)]
    format: fn(f64) -> String,
) -> impl IntoView {
    let id = unique("slider");
    let (least, most, step) = scale.range();
    let place = {
        let scale = scale.clone();
        move || scale.place(value.get())
    };
    // The part of the track before the thumb, which the style sheet colours.
    let filled = {
        let place = place.clone();
        move || format!("{:.2}%", 100.0 * (place() - least) / (most - least).max(f64::MIN_POSITIVE))
    };
    let words = move || format(value.get());
    view! {
        <div class="field slider">
            <label for=id.clone()>{label}</label>
            <output for=id.clone() aria-hidden="true">{words}</output>
            <input
                id=id
                type="range"
                min=least
                max=most
                step=step
                prop:value=place
                style:--filled=filled
                aria-valuetext=words
                on:input:target=move |event| {
                    if let Ok(place) = event.target().value().parse() {
                        value.set(scale.value(place));
                    }
                }
            />
        </div>
    }
}

fn plain(value: f64) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::Scale;

    #[test]
    fn stops_are_found_by_their_nearest() {
        let scale = Scale::Stops(vec![512.0, 1024.0, 4096.0]);
        assert_eq!(scale.range(), (0.0, 2.0, 1.0));
        for (value, place) in [(0.0, 0.0), (600.0, 0.0), (1024.0, 1.0), (9000.0, 2.0)] {
            assert_eq!(scale.place(value), place, "{value}");
        }
        assert_eq!([0.0, 1.0, 2.0, 3.0].map(|place| scale.value(place)), [512.0, 1024.0, 4096.0, 4096.0]);
    }
}
