//! The curves of a run and their pictures.

use std::path::Path;

use anyhow::{Result, anyhow};
use halfbyte::files::write_atomic;
use halfbyte::train::Metrics;
use plotters::prelude::*;
use serde_json::Value;

/// The most points of a line; more of them are averaged, as they would share a pixel.
const POINTS: usize = 1440;

/// What a run measured, by step.
#[derive(Default)]
pub(super) struct Curves {
    pub(super) loss: Vec<(usize, f64)>,
    pub(super) grad_norm: Vec<(usize, f64)>,
    pub(super) learning_rate: Vec<(usize, f64)>,
    pub(super) held_out: Vec<(usize, f64)>,
}

impl Curves {
    /// Takes up what an earlier process recorded.
    pub(super) fn from_metrics(lines: &[Value]) -> Self {
        let mut curves = Self::default();
        for line in lines {
            let Some(step) = line["step"].as_u64().and_then(|step| usize::try_from(step).ok()) else { continue };
            for (key, curve) in [
                ("loss", &mut curves.loss),
                ("grad_norm", &mut curves.grad_norm),
                ("learning_rate", &mut curves.learning_rate),
                ("eval_loss", &mut curves.held_out),
            ] {
                curve.extend(line[key].as_f64().map(|value| (step, value)));
            }
        }
        curves
    }

    pub(super) fn push(&mut self, metrics: &Metrics) {
        self.loss.push((metrics.step, metrics.loss));
        self.grad_norm.push((metrics.step, metrics.grad_norm));
        self.learning_rate.push((metrics.step, metrics.learning_rate));
    }
}

/// Writes the picture of the loss.
pub(super) fn write(path: &Path, curves: &Curves) -> Result<()> {
    Ok(write_atomic(path, svg("loss", &curves.loss, &curves.held_out)?.as_bytes())?)
}

/// A line over the steps as SVG, with dots for what was measured on held-out data.
pub(super) fn svg(name: &str, line: &[(usize, f64)], held_out: &[(usize, f64)]) -> Result<String> {
    let highest = line.iter().chain(held_out).map(|point| point.1).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let highest = if highest > 0.0 { highest * 1.05 } else { 1.0 };
    let last = line.iter().chain(held_out).map(|point| point.0).max().unwrap_or(1);
    let failed = |e: &dyn std::fmt::Display| anyhow!("cannot draw the {name}: {e}");
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (720, 360)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0..last, 0.0..highest)
        .map_err(|e| failed(&e))?;
    let mesh = &mut chart.configure_mesh();
    let small = |value: &f64| if highest < 0.01 { format!("{value:.1e}") } else { format!("{value:.2}") };
    mesh.x_desc("step").y_desc(name).y_label_formatter(&small).light_line_style(WHITE);
    mesh.draw().map_err(|e| failed(&e))?;
    let train = chart.draw_series(LineSeries::new(thinned(line), &BLUE)).map_err(|e| failed(&e))?;
    train.label("training").legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE));
    if !held_out.is_empty() {
        let dots = held_out.iter().map(|(step, loss)| Circle::new((*step, *loss), 5, RED.filled()));
        let held = chart.draw_series(dots).map_err(|e| failed(&e))?;
        held.label("held out").legend(|(x, y)| Circle::new((x + 8, y), 4, RED.filled()));
        let labels = &mut chart.configure_series_labels();
        labels.background_style(WHITE).border_style(BLACK).draw().map_err(|e| failed(&e))?;
    }
    root.present().map_err(|e| failed(&e))?;
    drop((chart, root));
    Ok(svg)
}

/// At most [`POINTS`] points: the mean of each stretch of a longer line.
pub(super) fn thinned(line: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let stretch = line.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(usize, f64)]| part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64;
    line.chunks(stretch).map(|part| (part[part.len() - 1].0, mean(part))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_keeps_its_shape_and_its_end() {
        let line: Vec<(usize, f64)> = (1..=100_000).map(|step| (step, 1.0 / step as f64)).collect();
        let thin = thinned(&line);
        assert!(thin.len() <= POINTS && thin.last().unwrap().0 == 100_000);
        assert!(thin.windows(2).all(|pair| pair[0].1 > pair[1].1));
        assert_eq!(thinned(&line[..3]), line[..3]);
        assert!(svg("loss", &line, &[(0, 2.0)]).unwrap().len() < 100_000);
        // A run without a step, or with a rate of 1e-5, is drawn too.
        assert!(svg("loss", &[], &[]).unwrap().contains("</svg>"));
        assert!(svg("learning rate", &[(1, 1e-5)], &[]).unwrap().contains("e-5"));
    }

    #[test]
    fn recorded_metrics_are_taken_up() {
        let lines = [
            serde_json::json!({"step": 0, "eval_loss": 4.0}),
            serde_json::json!({"step": 1, "loss": 3.0, "grad_norm": 2.0, "learning_rate": 1.0}),
        ];
        let curves = Curves::from_metrics(&lines);
        assert_eq!((curves.loss[..].to_vec(), curves.held_out), (vec![(1, 3.0)], vec![(0, 4.0)]));
    }
}
