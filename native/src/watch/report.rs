//! `report.html`: one file that a browser shows without anything else, made at the end of a run.

use anyhow::Result;
use halfbyte_memory::{Plan, bytes};
use minijinja::{Environment, context};
use serde_json::json;

use super::Sample;
use super::chart::{Curves, svg};
use super::manifest::Manifest;
use crate::plan::PHASES;

/// What the page is made of.
pub(super) struct Report<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) recipe: &'a str,
    pub(super) trainable: &'a str,
    pub(super) plan: Option<&'a Plan>,
    pub(super) curves: &'a Curves,
    pub(super) held_out: Option<(f64, f64)>,
    pub(super) samples: &'a [Sample],
}

/// The page. All text is escaped: an answer of the model may look like markup.
pub(super) fn page(report: &Report<'_>) -> Result<String> {
    let mut environment = Environment::new();
    environment.add_template("report.html", include_str!("report.html"))?;
    let curves = report.curves;
    let charts = [
        svg("loss", &curves.loss, &curves.held_out)?,
        svg("gradient norm", &curves.grad_norm, &[])?,
        svg("learning rate", &curves.learning_rate, &[])?,
    ];
    let samples: Vec<_> =
        report.samples.iter().map(|s| json!({"question": s.question, "before": s.before, "after": s.after})).collect();
    let when = |phase| PHASES.iter().find(|(known, _)| *known == phase).map_or("", |(_, title)| title);
    let memory = report.plan.map(|plan| {
        let lines = plan.lines.iter().map(|line| {
            json!({"bytes": bytes(line.bytes), "name": line.name, "when": when(line.phase), "formula": line.formula})
        });
        json!({"peak": bytes(plan.peak()), "lines": lines.collect::<Vec<_>>()})
    });
    let run = &report.manifest.written;
    let size = |hashed: &super::hashes::Hashed| json!({"size": bytes(hashed.bytes), "file": hashed});
    let files: Vec<_> = run.base.files.iter().chain(&run.data).map(size).collect();
    let text = environment.get_template("report.html")?.render(context! {
        run => run,
        recipe => report.recipe,
        trainable => report.trainable,
        charts => charts,
        samples => samples,
        memory => memory,
        files => files,
        held_out => report.held_out.map(|(before, after)| [before, after]),
    })?;
    Ok(text)
}
