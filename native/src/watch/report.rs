//! `report.html`: one file that a browser shows without anything else, made at the end of a run.

use std::path::Path;

use anyhow::Result;
use halfbyte::train::{Recipe, Recompute};
use halfbyte_memory::{Method, ModelShape, Phase, Plan, Run, bytes, plan};
use minijinja::{Environment, context};
use serde_json::json;

use super::Sample;
use super::chart::{Curves, svg};
use super::manifest::Manifest;

/// What the page is made of.
pub(super) struct Report<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) recipe: &'a str,
    pub(super) trainable: &'a str,
    pub(super) plan: Option<&'a Plan>,
    pub(super) curves: &'a Curves,
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
    let when = |phase| match phase {
        Phase::Always => "whole run",
        Phase::Layers => "in the layers",
        Phase::Loss => "at the loss",
    };
    let memory = report.plan.map(|plan| {
        let lines = plan.lines.iter().map(|line| {
            json!({"bytes": bytes(line.bytes), "name": line.name, "when": when(line.phase), "formula": line.formula})
        });
        json!({"peak": bytes(plan.peak()), "lines": lines.collect::<Vec<_>>()})
    });
    let run = &report.manifest.written;
    let size = |hashed: &super::hashes::Hashed| json!({"size": bytes(hashed.bytes), "file": hashed});
    let files: Vec<_> = run.base.files.iter().chain(&run.data).map(size).collect();
    let held_out = run.eval_loss.first().zip(run.eval_loss.last());
    let text = environment.get_template("report.html")?.render(context! {
        run => run,
        recipe => report.recipe,
        trainable => report.trainable,
        charts => charts,
        samples => samples,
        memory => memory,
        files => files,
        held_out => held_out.map(|(before, after)| [before.1, after.1]),
    })?;
    Ok(text)
}

/// The plan of a recipe's run on the model in `folder`, where its configuration can be planned for.
pub(super) fn plan_of(recipe: &Recipe, folder: &Path) -> Option<Plan> {
    let json = std::fs::read(folder.join("config.json")).ok()?;
    let shape: ModelShape = serde_json::from_slice(&json).ok()?;
    shape.check().ok()?;
    let quantization = &recipe.quantization;
    let targets = match &recipe.lora.target_modules {
        halfbyte::lora::Targets::Names(names) => names.clone(),
        // A regular expression cannot be planned for by names; all layers are the upper bound.
        halfbyte::lora::Targets::Pattern(_) => vec![],
    };
    let run = Run {
        method: if quantization.load_in_4bit { Method::Qlora } else { Method::Lora },
        rank: recipe.lora.r as u64,
        targets,
        batch: recipe.training.batch_size as u64,
        length: recipe.data.max_length as u64,
        recompute: recipe.training.recompute != Recompute::None,
        block_size: quantization.block_size as u64,
        double_quant: quantization.double_quant,
        loss_chunk: recipe.training.loss_chunk as u64,
        // This version computes in f32.
        weight_bytes: 4,
        activation_bytes: 4,
        ..Run::default()
    };
    Some(plan(&shape, &run))
}
