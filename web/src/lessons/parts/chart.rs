//! Lines, areas and bars over two axes. The drawing stretches; its words are text of the page and stay readable on a phone.

use leptos::prelude::*;

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    /// What it measures.
    pub(crate) label: String,
    /// Where it begins.
    pub(crate) from: f64,
    /// Where it ends.
    pub(crate) to: f64,
    /// Places that are written.
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis with `count` even steps, each written by `format`.
    pub(crate) fn even(label: &str, from: f64, to: f64, count: u32, format: impl Fn(f64) -> String) -> Self {
        let at = |i| from + (to - from) * f64::from(i) / f64::from(count.max(1));
        Self { label: label.into(), from, to, ticks: (0..=count).map(|i| (at(i), format(at(i)))).collect() }
    }

    /// How far along a value is, in percent.
    fn place(&self, value: f64) -> f64 {
        let span = self.to - self.from;
        if span > 0.0 { 100.0 * ((value - self.from) / span).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// A line from point to point.
    Line,
    /// A dashed line, for limits.
    Limit,
    /// What is below a line.
    Area,
    /// Bars of this width, in units of the axis.
    Bars(f64),
    /// A thin line from the axis up to each point.
    Stems,
}

/// Points that belong together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    /// What they are.
    pub(crate) name: String,
    /// Colour: one of `--tone-0` to `--tone-11`.
    pub(crate) tone: u8,
    /// How they are drawn.
    pub(crate) shape: Shape,
    /// The points, from left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Series {
    /// A series.
    pub(crate) fn new(name: &str, tone: u8, shape: Shape, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), tone, shape, points }
    }

    /// The outline in a square of 100, the origin at its upper left.
    fn outline(&self, x: &Axis, y: &Axis) -> String {
        let up = |value: f64| 100.0 - y.place(value);
        let point = |(i, (a, b)): (usize, &(f64, f64))| {
            format!("{}{:.3} {:.3}", if i == 0 { "M" } else { "L" }, x.place(*a), up(*b))
        };
        let line = || self.points.iter().enumerate().map(point).collect::<String>();
        match self.shape {
            Shape::Line | Shape::Limit => line(),
            Shape::Area => match (self.points.first(), self.points.last()) {
                (Some(first), Some(last)) => {
                    format!("{}L{:.3} 100L{:.3} 100Z", line(), x.place(last.0), x.place(first.0))
                }
                _ => String::new(),
            },
            Shape::Bars(width) => {
                let bar = |(a, b): &(f64, f64)| {
                    let (left, right) = (x.place(a - width / 2.0), x.place(a + width / 2.0));
                    format!("M{left:.3} 100V{:.3}H{right:.3}V100Z", up(*b))
                };
                self.points.iter().map(bar).collect()
            }
            Shape::Stems => self.points.iter().map(|(a, b)| format!("M{:.3} 100V{:.3}", x.place(*a), up(*b))).collect(),
        }
    }
}

/// A chart.
#[component]
pub(crate) fn Chart(
    /// What it shows, for who does not see it.
    #[prop(into)]
    label: Signal<String>,
    /// From left to right.
    #[prop(into)]
    x: Signal<Axis>,
    /// From below to above.
    #[prop(into)]
    y: Signal<Axis>,
    /// What is drawn, the last on top.
    #[prop(into)]
    series: Signal<Vec<Series>>,
) -> impl IntoView {
    let paths = move || {
        let path = |series: Series| {
            let tone = format!("var(--tone-{})", series.tone);
            let filled = matches!(series.shape, Shape::Area | Shape::Bars(_));
            let class = if series.shape == Shape::Limit { "limit" } else { "" };
            let (fill, stroke) = if filled { (tone, "none".to_owned()) } else { ("none".to_owned(), tone) };
            view! { <path class=class d=series.outline(&x.get(), &y.get()) fill=fill stroke=stroke vector-effect="non-scaling-stroke"></path> }
        };
        series.get().into_iter().map(path).collect_view()
    };
    let x_ticks = move || {
        let axis = x.get();
        let tick = |(at, words): (f64, String)| {
            view! { <span class="tick" style:left=format!("{:.2}%", axis.place(at))>{words}</span> }
        };
        axis.ticks.clone().into_iter().map(tick).collect_view()
    };
    let y_ticks = move || {
        let axis = y.get();
        let tick = |(at, words): (f64, String)| {
            view! { <span class="tick" style:bottom=format!("{:.2}%", axis.place(at))>{words}</span> }
        };
        axis.ticks.clone().into_iter().map(tick).collect_view()
    };
    let legend = move || {
        let row = |series: Series| {
            view! {
                <li>
                    <span class=format!("dot tone-{}", series.tone) aria-hidden="true"></span>
                    <span>{series.name}</span>
                </li>
            }
        };
        series.get().into_iter().filter(|series| !series.name.is_empty()).map(row).collect_view()
    };
    view! {
        <figure class="chart">
            <div class="chart-frame" role="img" aria-label=label>
                <span class="axis-y">{move || y.get().label}</span>
                <div class="ticks-y">{y_ticks}</div>
                <div class="drawing">
                    <svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{paths}</svg>
                </div>
                <div class="ticks-x">{x_ticks}</div>
                <span class="axis-x">{move || x.get().label}</span>
            </div>
            <ul class="legend">{legend}</ul>
        </figure>
    }
}

#[cfg(test)]
mod tests {
    use super::{Axis, Series, Shape};

    #[test]
    fn outlines_lie_where_the_axes_say() {
        let (x, y) =
            (Axis::even("x", 0.0, 10.0, 5, |v| v.to_string()), Axis::even("y", 0.0, 4.0, 1, |v| v.to_string()));
        assert_eq!(
            x.ticks.iter().map(|(_, words)| words.as_str()).collect::<Vec<_>>(),
            ["0", "2", "4", "6", "8", "10"]
        );
        let outline = |shape| Series::new("", 0, shape, vec![(0.0, 0.0), (5.0, 4.0)]).outline(&x, &y);
        assert_eq!(outline(Shape::Line), "M0.000 100.000L50.000 0.000");
        assert_eq!(outline(Shape::Area), "M0.000 100.000L50.000 0.000L50.000 100L0.000 100Z");
        assert_eq!(outline(Shape::Bars(2.0)), "M0.000 100V100.000H10.000V100ZM40.000 100V0.000H60.000V100Z");
        assert_eq!(outline(Shape::Stems), "M0.000 100V100.000M50.000 100V0.000");
    }

    #[test]
    fn an_axis_without_extent_divides_by_nothing() {
        assert_eq!(Axis::even("", 1.0, 1.0, 1, |v| v.to_string()).place(3.0), 0.0);
    }
}
