//! A report of a device: what it is, which kernels are right on it and how fast they are; as JSON and as Markdown.

use std::fmt::Write;

use halfbyte_protocol::{DeviceReport, Kernel, Measurement};
use serde::{Deserialize, Serialize};

/// Failures of a kernel that a report names; one that is wrong everywhere says no more with more.
const NAMED: usize = 5;

/// What was found on a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The version that found it.
    pub(crate) halfbyte: String,
    pub(crate) device: DeviceReport,
    pub(crate) kernels: Vec<Tested>,
    /// On the device.
    pub(crate) gpu: Vec<Measurement>,
    /// The same on the CPU, in the same browser.
    pub(crate) cpu: Vec<Measurement>,
}

/// A kernel's comparisons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tested {
    pub(crate) kernel: String,
    pub(crate) count: usize,
    pub(crate) passed: usize,
    /// None where a result was not a number.
    pub(crate) worst: Option<f64>,
    pub(crate) tolerance: f64,
    /// The first comparisons that failed.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// A report of a device on which nothing was done yet.
    pub(crate) fn new(device: DeviceReport) -> Self {
        Self { halfbyte: env!("CARGO_PKG_VERSION").into(), device, ..Self::default() }
    }

    /// Takes a comparison in.
    pub(crate) fn add(&mut self, case: Kernel) {
        let place = self.kernels.iter().position(|tested| tested.kernel == case.kernel).unwrap_or_else(|| {
            self.kernels.push(Tested { kernel: case.kernel.clone(), worst: Some(0.0), ..Tested::default() });
            self.kernels.len() - 1
        });
        let tested = &mut self.kernels[place];
        tested.count += 1;
        tested.passed += usize::from(case.passed);
        tested.tolerance = case.tolerance;
        tested.worst = tested.worst.zip(case.error).map(|(worst, error)| worst.max(error));
        if !case.passed && tested.failures.len() < NAMED {
            tested.failures.push(format!("{}: {}", case.shapes, words(case.error)));
        }
    }

    /// The device's name, for people.
    pub(crate) fn name(&self) -> String {
        let DeviceReport { name, software, .. } = &self.device;
        if *software { format!("{name} (software)") } else { name.clone() }
    }

    /// The same on the CPU as a measurement on the device.
    pub(crate) fn on_cpu(&self, gpu: &Measurement) -> Option<&Measurement> {
        let same = |cpu: &&Measurement| (&cpu.kernel, cpu.shape, cpu.rows) == (&gpu.kernel, gpu.shape, gpu.rows);
        self.cpu.iter().find(same)
    }

    /// For an issue.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n", self.name());
        let DeviceReport { vendor, architecture, description, browser, why, features, .. } = &self.device;
        // Writing into a string does not fail.
        let _ = writeln!(text, "Halfbyte {}; {vendor} {architecture} {description}; {why}; {browser}", self.halfbyte);
        let _ = writeln!(text, "\nFeatures: {}\n", features.join(", "));
        if !self.kernels.is_empty() {
            text += "| kernel | passed | worst error | allowed |\n|---|---|---|---|\n";
        }
        for Tested { kernel, count, passed, worst, tolerance, failures } in &self.kernels {
            let _ = writeln!(text, "| {kernel} | {passed}/{count} | {} | {tolerance:.0e} |", words(*worst));
            failures.iter().for_each(|failure| {
                let _ = writeln!(text, "| failed: {failure} | | | |");
            });
        }
        if !self.gpu.is_empty() {
            text += "\n| kernel | weight | rows | ms | GB/s | GFLOP/s | CPU, ms |\n|---|---|---|---|---|---|---|\n";
        }
        for m in &self.gpu {
            let cpu = self.on_cpu(m).map_or(String::new(), |cpu| format!("{:.3}", 1e3 * cpu.seconds));
            let Measurement { kernel, shape, rows, seconds, bandwidth, arithmetic } = m;
            let ms = 1e3 * seconds;
            let _ = writeln!(
                text,
                "| {kernel} | {shape:?} | {rows} | {ms:.3} | {bandwidth:.1} | {arithmetic:.1} | {cpu} |"
            );
        }
        text
    }
}

/// An error in words.
pub(crate) fn words(error: Option<f64>) -> String {
    error.map_or("not a number".into(), |error| format!("{error:.1e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(shapes: &str, error: Option<f64>) -> Kernel {
        let passed = error.is_some_and(|error| error <= 1e-5);
        Kernel { kernel: "matmul".into(), shapes: shapes.into(), error, tolerance: 1e-5, passed }
    }

    #[test]
    fn a_kernel_is_as_good_as_its_worst_comparison() {
        let mut report = Report::new(DeviceReport { name: "a GPU".into(), ..DeviceReport::default() });
        report.add(case("[1, 1]", Some(1e-7)));
        report.add(case("[2, 2]", Some(3e-6)));
        assert_eq!((report.kernels[0].count, report.kernels[0].passed, report.kernels[0].worst), (2, 2, Some(3e-6)));
        report.add(case("[3, 3]", None));
        report.add(case("[4, 4]", Some(1e-7)));
        let tested = &report.kernels[0];
        assert_eq!((tested.count, tested.passed, tested.worst), (4, 3, None));
        assert_eq!(tested.failures, ["[3, 3]: not a number"]);
        let text = report.markdown();
        assert!(text.contains("| matmul | 3/4 | not a number | 1e-5 |") && text.contains("[3, 3]"), "{text}");
        let json = serde_json::to_string(&report).expect("JSON");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("a report"), report);
    }
}
