//! `halfbyte export`: an adapter as the programs that serve it read it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use halfbyte::files::{Consumer, adapter_config, export_adapter, must_be_new};

use crate::console::out;
use crate::shell::word;
use crate::source::Source;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum For {
    Vllm,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Ollama,
    Sglang,
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the adapter, or org/name[@revision] on the Hugging Face hub
    adapter: String,
    /// Folder to write
    output: PathBuf,
    /// Who is to serve it
    #[arg(long = "for", value_enum)]
    consumer: For,
    /// Folder of the base model, or its name on the hub, where the adapter does not name it
    #[arg(long)]
    base: Option<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let Arguments { adapter, output, consumer, base } = arguments;
    let kind = match consumer {
        For::Vllm => Consumer::Vllm,
        For::Sglang => Consumer::Sglang,
        For::LlamaCpp => Consumer::LlamaCpp,
        For::Ollama => Consumer::Ollama,
    };
    // Before anything is downloaded for it.
    must_be_new(&output)?;
    let source = Source::open(&adapter)?;
    let adapter = source.weights()?;
    let named = base.or(adapter_config(adapter)?.base_model_name_or_path);
    // llama.cpp's layout follows the base's configuration, and a Modelfile names its folder; the others name it as it is.
    let source = match (&named, kind) {
        (Some(name), Consumer::LlamaCpp | Consumer::Ollama) => {
            Some(Source::open(name).context("--base names the base model's folder")?)
        }
        _ => None,
    };
    let folder = match (&source, kind) {
        (Some(source), Consumer::Ollama) => Some(source.weights()?),
        (Some(source), _) => Some(source.folder()),
        (None, _) => named.as_ref().map(Path::new),
    };
    let notes = export_adapter(adapter, &output, kind, folder)?;
    for note in notes {
        out!("{note}")?;
    }
    let (out, model) = (word(output.display()), word(named.as_deref().unwrap_or("MODEL")));
    let within = |file: &str| word(output.join(file).display());
    let named = output.display();
    match kind {
        Consumer::Vllm => {
            // vLLM sizes its buffers by the largest rank that it is told of, out of a list.
            let rank = adapter_config(&output)?.lora().r;
            let most = [16, 32, 64, 128, 256, 320, 512].into_iter().find(|most| *most >= rank).unwrap_or(rank);
            out!("{named}: vllm serve {model} --enable-lora --max-lora-rank {most} --lora-modules tuned={out}")
        }
        Consumer::Sglang => {
            out!("{named}: python -m sglang.launch_server --model-path {model} --lora-paths tuned={out}")
        }
        Consumer::LlamaCpp => out!("{named}: llama-server -m BASE.gguf --lora {}", within("adapter.gguf")),
        Consumer::Ollama => out!("{named}: ollama create tuned -f {}", within("Modelfile")),
    }
}
