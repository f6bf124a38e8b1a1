//! `cargo bench`: what `halfbyte bench` measures, on every kind of device that is present, one after the other.
//!
//! The command is the measurement, so this has none of its own: without arguments it chooses shapes that a CPU is through
//! with in minutes. `cargo bench -- --model llama-3.1-70b --rows 1,512` measures other ones; the figures of each device go
//! into `target/bench/DEVICE.json`.

use std::path::Path;
use std::process::{Command, ExitCode};

const HALFBYTE: &str = env!("CARGO_BIN_EXE_halfbyte");
/// What is measured when nothing is asked for: decoding, the last rows that decode together, training.
const DEFAULT: [&str; 4] = ["--model", "qwen2.5-0.5b", "--rows", "1,16,128"];

fn main() -> ExitCode {
    // Cargo says `--bench` to everything that it runs as one.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let asked = if asked.is_empty() { DEFAULT.map(String::from).to_vec() } else { asked };
    // Beside the folder that Cargo keeps for the files of tests and benches.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    let measured = present().and_then(|devices| {
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        devices.iter().try_for_each(|device| measure(device, &asked, &folder.join(format!("{device}.json"))))
    });
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The kinds of device that can be used, as `--device` names them; says which can't be.
fn present() -> Result<Vec<String>, String> {
    let listed = Command::new(HALFBYTE).arg("devices").output().map_err(|error| format!("{HALFBYTE}: {error}"))?;
    if !listed.status.success() {
        return Err(format!("`halfbyte devices`: {}", String::from_utf8_lossy(&listed.stderr)));
    }
    let mut kinds: Vec<String> = Vec::new();
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let (kind, about) = line.split_once(' ').unwrap_or((line, ""));
        if about.trim_start().starts_with("unavailable") {
            println!("{line}\n");
        } else if kinds.iter().all(|known| known != kind) {
            // The first adapter of wgpu stands for all: the command chooses the best one.
            kinds.push(kind.to_string());
        }
    }
    Ok(kinds)
}

/// Prints a device's table and writes its figures.
fn measure(device: &str, asked: &[String], json: &Path) -> Result<(), String> {
    let mut bench = Command::new(HALFBYTE);
    bench.args(["bench", "--device", device, "--json"]).arg(json).args(asked);
    match bench.status() {
        Ok(status) if status.success() => {
            println!("figures: {}\n", json.display());
            Ok(())
        }
        Ok(status) => Err(format!("device `{device}`: `halfbyte bench` ended with {status}")),
        Err(error) => Err(format!("{HALFBYTE}: {error}")),
    }
}
