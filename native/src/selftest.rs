//! `halfbyte selftest`: whether this device computes what it should.

use std::path::PathBuf;

use anyhow::{Result, bail};
use halfbyte::files::write_atomic;
use halfbyte::lab::conformance;
use halfbyte::ops::Ops;
use pollster::block_on;
use serde_json::json;

use crate::console::out;
use crate::device::{self, Choice, Found, Job};
use crate::progress::spinner;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Device to test
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Seed of the values; without it a fresh one
    #[arg(long)]
    seed: Option<u64>,
    /// File for the whole report
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    device::run(arguments.device, SelfTest(arguments))
}

struct SelfTest(Arguments);

impl Job for SelfTest {
    type Output = ();

    fn run<B: Ops>(self, found: Found<B>) -> Result<()> {
        let Found { device, name, mark, .. } = found;
        // What waits for the test has to be chosen in it; whether it is later on is the mark's to say.
        #[cfg(feature = "cuda")]
        if mark.is_some() {
            halfbyte::backends::trust_cuda_kernels();
        }
        let fresh = || std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
        let seed = self.0.seed.unwrap_or_else(fresh);
        out!("{name}; seed {seed}")?;
        let bar = spinner("testing");
        let report = block_on(conformance::<B>(&device, seed, async |case| {
            bar.set_message(format!("{} {}", case.kernel, case.shapes));
        }))?;
        bar.finish_and_clear();
        out!("{:<36} {:>12} {:>12}", "kernel", "passed", "worst error")?;
        for (kernel, count, passed, worst) in report.by_kernel() {
            out!("{kernel:<36} {:>12} {worst:>12.1e}", format!("{passed}/{count}"))?;
        }
        for case in report.failures() {
            out!(
                "FAILED {} on {}: error {:.1e}, allowed {:.0e}",
                case.kernel,
                case.shapes,
                case.error,
                case.tolerance
            )?;
        }
        if let Some(path) = self.0.json {
            let report = json!({"device": name, "seed": seed, "cases": report.cases});
            write_atomic(path, serde_json::to_string_pretty(&report)?.as_bytes())?;
        }
        let failures = report.failures().count();
        if let Some(mark) = mark {
            mark.set(failures == 0)?;
            if failures == 0 {
                out!("passed: from now on the kernels that decode weights on their way are chosen on {name}")?;
            }
        }
        match failures {
            0 => Ok(()),
            failures => bail!("{failures} of {} comparisons failed on {name}", report.cases.len()),
        }
    }
}
