//! Plans made here by the library, which the site's calculator and widget must come to as well.

use std::path::Path;

use anyhow::{Context, Result};
use halfbyte_memory::{ComputeDtype, Method, Optimizer, Run, bytes, plan, preset};
use serde_json::{Value, json};

use crate::files;

/// A run as the calculator's address says it, as the widget's attributes do where it has them, and as it is.
fn cases() -> [(&'static str, Option<&'static str>, &'static str, Run); 4] {
    let run = Run::default();
    [
        ("model=llama-3.1-8b", Some(r#"model="llama-3.1-8b""#), "llama-3.1-8b", run.clone()),
        (
            "model=llama-3.1-70b&method=lora&rank=64&length=4096&batch=2&dtype=f32&optimizer=adamw8bit&recompute=false",
            Some(
                r#"model="llama-3.1-70b" method="lora" rank="64" length="4096" batch="2" dtype="f32" optimizer="AdamW8bit" recompute="false""#,
            ),
            "llama-3.1-70b",
            Run {
                method: Method::Lora,
                rank: 64,
                length: 4096,
                batch: 2,
                weight_bytes: 4,
                compute_dtype: ComputeDtype::F32,
                optimizer: Optimizer::AdamW8bit,
                recompute: false,
                ..run.clone()
            },
        ),
        (
            "model=gemma-2-9b&targets=q_proj,v_proj&accumulation=8",
            Some(r#"model="gemma-2-9b" targets="q_proj,v_proj" accumulation="8""#),
            "gemma-2-9b",
            Run { targets: vec!["q_proj".into(), "v_proj".into()], accumulation: 8, ..run.clone() },
        ),
        (
            "model=qwen2.5-7b&packed=768&paged=true&double_quant=false&dropout=true",
            None,
            "qwen2.5-7b",
            Run {
                sequences: vec![768, 768, 512],
                optimizer_budget: Some(0),
                double_quant: false,
                dropout: true,
                ..run
            },
        ),
    ]
}

/// Writes what the tests in the browser compare with.
pub(super) fn write(path: &Path) -> Result<()> {
    let of = |(query, widget, model, run): (_, Option<&str>, &str, Run)| -> Result<Value> {
        let shape = preset(model).with_context(|| format!("{model} is no longer known"))?;
        let plan = plan(&shape, &run);
        let lines: Vec<_> =
            plan.lines.iter().map(|line| [&line.name, &bytes(line.bytes), &line.formula].map(String::clone)).collect();
        Ok(json!({
            "query": query, "widget": widget, "needed": bytes(plan.peak()), "bytes": plan.peak(), "lines": lines,
        }))
    };
    files::write_json(path, &Value::Array(cases().into_iter().map(of).collect::<Result<_>>()?))
}
