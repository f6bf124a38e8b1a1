//! The picture of the loss falling.

use std::path::Path;

use anyhow::{Result, anyhow};
use halfbyte::files::write_atomic;
use plotters::prelude::*;

/// Draws the training loss per step, and the held-out losses (step, loss), as SVG.
pub(crate) fn draw(path: &Path, losses: &[f64], held_out: &[(usize, f64)]) -> Result<()> {
    let highest = losses.iter().copied().chain(held_out.iter().map(|p| p.1)).fold(0.1, f64::max);
    let failed = |e: &dyn std::fmt::Display| anyhow!("cannot draw {}: {e}", path.display());
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (720, 360)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d(0..losses.len(), 0.0..highest * 1.05)
        .map_err(|e| failed(&e))?;
    let mesh = &mut chart.configure_mesh();
    mesh.x_desc("step").y_desc("loss").light_line_style(WHITE).draw().map_err(|e| failed(&e))?;
    let points = losses.iter().enumerate().map(|(i, loss)| (i + 1, *loss));
    let train = chart.draw_series(LineSeries::new(points, &BLUE)).map_err(|e| failed(&e))?;
    train.label("training").legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE));
    let dots = held_out.iter().map(|(step, loss)| Circle::new((*step, *loss), 5, RED.filled()));
    let held = chart.draw_series(dots).map_err(|e| failed(&e))?;
    held.label("held out").legend(|(x, y)| Circle::new((x + 8, y), 4, RED.filled()));
    let labels = &mut chart.configure_series_labels();
    labels.background_style(WHITE).border_style(BLACK).draw().map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))?;
    drop((chart, root));
    Ok(write_atomic(path, svg.as_bytes())?)
}
