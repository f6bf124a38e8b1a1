//! The `halfbyte` command: QLoRA fine-tuning on CUDA, wgpu or the CPU, without Python.

mod bench;
mod bench_training;
mod claim;
mod console;
#[cfg(feature = "cuda")]
mod cuda;
mod data;
mod device;
mod devices;
mod export;
mod generate;
mod held;
mod inspect;
mod interrupt;
mod limit;
mod memory;
mod merge;
mod parallel;
mod plan;
mod pretrain;
mod proc;
mod progress;
mod pulse;
mod quantize;
mod recipe_file;
mod selftest;
mod session;
mod setup;
mod shell;
mod source;
mod talk;
mod train;
mod trust;
mod verify_resume;
mod watch;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use console::note;

/// A training step on the CPU makes and drops results of many megabytes, which the system's allocator returns to the
/// kernel and faults in again each time; mimalloc keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "halfbyte", version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fine-tune a model by a recipe: the base in 4 bits, LoRA adapters on top
    Train(train::Arguments),
    /// Prove that a run of a recipe that is stopped and continued is exact on this machine
    VerifyResume(verify_resume::Arguments),
    /// Train a small model from scratch by a recipe: the weights become model.safetensors in the folder that its key `model` names,
    /// which must hold none yet
    Pretrain(pretrain::Arguments),
    /// Look at training data as the trainer sees it
    Data(data::Arguments),
    /// Answer one prompt, or chat
    Generate(generate::Arguments),
    /// Write a model folder in 4 bits, as transformers and bitsandbytes read it
    Quantize(quantize::Arguments),
    /// Work an adapter into its base and measure how far the result is from what was trained
    Merge(merge::Arguments),
    /// Write an adapter as vLLM, SGLang, llama.cpp or Ollama reads it
    Export(export::Arguments),
    /// Say what a model folder or an adapter is
    Inspect(inspect::Arguments),
    /// Plan the memory of full fine-tuning, LoRA and QLoRA
    Memory(memory::Arguments),
    /// List the devices that can be used
    Devices,
    /// Test a device's kernels against plain formulas
    Selftest(selftest::Arguments),
    /// Measure a device's kernels on the layers of a model
    Bench(bench::Arguments),
    /// Measure training steps of a model of any size, its weights made up
    BenchTraining(bench_training::Arguments),
}

impl Command {
    /// Whether it is a run, whose work is worth more than what it prints.
    fn is_run(&self) -> bool {
        match self {
            Command::Train(arguments) => !arguments.plans(),
            Command::Pretrain(_) => true,
            _ => false,
        }
    }
}

fn main() -> ExitCode {
    quiet_without_a_display();
    halfbyte::failure::listen();
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            note!("{error}");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(error) => {
            if let Some(parallel::Silent(code)) = error.downcast_ref() {
                return ExitCode::from(*code);
            }
            // A mistake is no crash: its chain of causes on one line, and never a stack trace.
            note!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> Result<()> {
    let parsed = Arguments::try_parse();
    // Output into a pipe that closes early (`| head`) ends the command quietly, as it ends other commands. A run goes on.
    if !parsed.as_ref().is_ok_and(|arguments| arguments.command.is_run()) {
        sigpipe::reset();
    }
    match parsed {
        Ok(Arguments { command }) => run(command),
        // A mistake, or what --help and --version print.
        Err(said) if said.use_stderr() => said.exit(),
        Err(said) => said.print().context(console::CANNOT_WRITE),
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Train(arguments) => train::run(arguments),
        Command::VerifyResume(arguments) => verify_resume::run(arguments),
        Command::Pretrain(arguments) => pretrain::run(arguments),
        Command::Data(arguments) => data::run(arguments),
        Command::Generate(arguments) => generate::run(arguments),
        Command::Quantize(arguments) => quantize::run(arguments),
        Command::Merge(arguments) => merge::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Memory(arguments) => memory::run(arguments),
        Command::Devices => devices::run(),
        Command::Selftest(arguments) => selftest::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::BenchTraining(arguments) => bench_training::run(arguments),
    }
}

/// Keeps Mesa's Vulkan layer that sorts GPUs by display from printing errors where there is no display.
fn quiet_without_a_display() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
