//! `halfbyte export`: an adapter as the programs that serve it read it.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use halfbyte::files::{Consumer, adapter_config, export_adapter};

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
    /// Folder of the adapter
    adapter: PathBuf,
    /// Folder to write
    output: PathBuf,
    /// Who is to serve it
    #[arg(long = "for", value_enum)]
    consumer: For,
    /// Folder of the base model, where the adapter does not name it
    #[arg(long)]
    base: Option<PathBuf>,
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
    let notes = export_adapter(&adapter, &output, kind, base.as_deref())?;
    for note in notes {
        println!("{note}");
    }
    let out = output.display();
    let recorded = adapter_config(&adapter)?.base_model_name_or_path.unwrap_or_else(|| "MODEL".into());
    let model = base.map_or(recorded, |base| base.display().to_string());
    match kind {
        Consumer::Vllm => {
            // vLLM sizes its buffers by the largest rank that it is told of, out of a list.
            let rank = adapter_config(&output)?.lora().r;
            let most = [16, 32, 64, 128, 256, 320, 512].into_iter().find(|most| *most >= rank).unwrap_or(rank);
            println!("{out}: vllm serve {model} --enable-lora --max-lora-rank {most} --lora-modules tuned={out}");
        }
        Consumer::Sglang => {
            println!("{out}: python -m sglang.launch_server --model-path {model} --lora-paths tuned={out}");
        }
        Consumer::LlamaCpp => println!("{out}: llama-server -m BASE.gguf --lora {out}/adapter.gguf"),
        Consumer::Ollama => println!("{out}: ollama create tuned -f {out}/Modelfile"),
    }
    Ok(())
}
