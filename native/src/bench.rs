//! `halfbyte bench`: how fast this device's kernels are on the layers of a model.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use halfbyte::files::write_atomic;
use halfbyte::lab::{Ceilings, Measurement, ceilings, measure_attention, measure_products, measure_storage};
use halfbyte::ops::{ComputeDtype, Ops};
use halfbyte_memory::{names, preset};
use pollster::block_on;
use serde_json::json;

use crate::console::out;
use crate::device::{self, Choice, Found, Job};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A known model, whose layer shapes are measured
    #[arg(long, default_value = "llama-3.1-8b")]
    model: String,
    /// Rows of activations: a few for decoding, many for training
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,512")]
    rows: Vec<usize>,
    /// Device to measure
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// File for all figures
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let model = preset(&arguments.model).ok_or_else(|| {
        anyhow!("`{}` is no known model; known are: {}", arguments.model, names().collect::<Vec<_>>().join(", "))
    })?;
    let mut shapes: Vec<[usize; 2]> = model.linears().iter().map(|l| [l.out as usize, l.input as usize]).collect();
    shapes.sort_unstable();
    shapes.dedup();
    let heads = [model.heads, model.kv(), model.head()].map(|n| n as usize);
    device::run(arguments.device, Bench { arguments, shapes, heads })
}

struct Bench {
    arguments: Arguments,
    shapes: Vec<[usize; 2]>,
    /// Of queries, of keys, and their width.
    heads: [usize; 3],
}

impl Job for Bench {
    type Output = ();

    fn run<B: Ops>(self, found: Found<B>) -> Result<()> {
        let Found { device, name, .. } = found;
        let Bench { arguments, shapes, heads } = self;
        let most = arguments.rows.iter().copied().max().unwrap_or(1).max(1);
        // A device with tensor cores is measured by what they do.
        let compute = ComputeDtype::Bf16.check::<B>(&device).map_or(ComputeDtype::F32, |()| ComputeDtype::Bf16);
        let ceilings = block_on(ceilings::<B>(&device, shapes[0], most, compute))?;
        out!("{name}; {}", arguments.model)?;
        out!(
            "ceilings: copy {:.1} GB/s; dense product in {compute:?}, {most} rows, {:?}: {:.1} GFLOP/s",
            ceilings.copy,
            shapes[0],
            ceilings.dense
        )?;
        out!("| kernel | weight | rows | ms | GB/s | of copy | GFLOP/s | of dense |")?;
        out!("|---|---|---|---|---|---|---|---|")?;
        let mut all: Vec<Measurement> = Vec::new();
        let mut add = |measured: Vec<Measurement>| {
            measured.iter().try_for_each(|m| print(m, &ceilings))?;
            all.extend(measured);
            anyhow::Ok(())
        };
        for shape in shapes {
            add(block_on(measure_storage::<B>(&device, shape))?)?;
            for rows in &arguments.rows {
                add(block_on(measure_products::<B>(&device, shape, (*rows).max(1)))?)?;
            }
        }
        // Decoding attends to a cache, which is another measurement.
        for tokens in arguments.rows.iter().filter(|rows| **rows >= 64) {
            add(block_on(measure_attention::<B>(&device, heads, *tokens))?)?;
        }
        if let Some(path) = arguments.json {
            let report = json!({"device": name, "model": arguments.model, "ceilings": ceilings, "measurements": all});
            write_atomic(path, serde_json::to_string_pretty(&report)?.as_bytes())?;
        }
        Ok(())
    }
}

/// A line of the table.
fn print(m: &Measurement, ceilings: &Ceilings) -> Result<()> {
    let share = |part: f64, whole: f64| format!("{:.0} %", 100.0 * part / whole);
    out!(
        "| {} | {:?} | {} | {:.3} | {:.1} | {} | {:.1} | {} |",
        m.kernel,
        m.shape,
        m.rows,
        1e3 * m.seconds,
        m.bandwidth,
        share(m.bandwidth, ceilings.copy),
        m.arithmetic,
        share(m.arithmetic, ceilings.dense)
    )
}
