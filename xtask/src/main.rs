//! What people run to work on Halfbyte: `cargo xtask test`, `cargo xtask web` and what makes committed data.

mod command;
mod corpus;
mod document;
mod english;
mod files;
mod golden;
mod hash;
mod kinds;
mod model_folder;
mod setup;
mod test;
mod tokenizer;
mod web;
mod wordnet;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use wordnet::WordNet;

/// Where Debian and Ubuntu put WordNet's data files.
const WORDNET: &str = "/usr/share/wordnet";

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks for people who work on Halfbyte")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every check, in order, and stop at the first failure
    Test {
        /// Leave out documentation, wasm, the web site and licences
        #[arg(long)]
        quick: bool,
    },
    /// Build the web site to web/dist, as it is published
    Web {
        /// Then serve it, in a folder of this machine's port 8080
        #[arg(long)]
        serve: bool,
    },
    /// Build the web site and test it in a headless Chromium
    WebTest,
    /// Run the tests of a CUDA GPU, or any command, on a CUDA driver that is this machine: slow, and needs no GPU
    Emulated {
        /// What to run instead of the tests
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Make the test fixtures anew with the Python reference
    Golden,
    /// Write the pretraining corpus to out/wordnet and the tokenizer to models/wordnet-4m
    Corpus {
        /// Folder of WordNet 3.0's data.noun, data.verb, data.adj and data.adv
        #[arg(long, default_value = WORDNET)]
        wordnet: PathBuf,
    },
    /// Write the fine-tuning data of recipes/kinds
    Kinds {
        /// Folder of WordNet 3.0's data.noun, data.verb, data.adj and data.adv
        #[arg(long, default_value = WORDNET)]
        wordnet: PathBuf,
    },
}

fn main() -> Result<()> {
    // Asked at run time: checkouts that share a target folder share this program, and each means itself.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`")?;
    let root = Path::new(&package).parent().context("xtask has left its workspace")?;
    match Arguments::parse().task {
        Task::Test { quick } => test::run(root, quick),
        Task::Web { serve } => {
            web::build(root)?;
            if serve {
                println!("\nserving {}", web::serve(web::dist(root), 8080)?);
                std::thread::park();
            }
            Ok(())
        }
        Task::WebTest => match web::check(root)? {
            test::Outcome::Passed => Ok(()),
            test::Outcome::Skipped(reason) => bail!("{reason}"),
        },
        Task::Emulated { command } => test::emulated::run(root, &command),
        Task::Golden => golden::make(root),
        Task::Corpus { wordnet } => {
            corpus::make(&WordNet::read(&wordnet)?, &root.join("out/wordnet"), &root.join("models/wordnet-4m"))
        }
        Task::Kinds { wordnet } => kinds::make(&WordNet::read(&wordnet)?, &root.join("recipes/kinds")),
    }
}
