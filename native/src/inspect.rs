//! `halfbyte inspect`: what a folder holds.

use anyhow::{Result, bail};
use halfbyte::files::{Checkpoint, adapter_config};
use halfbyte::model::ModelConfig;
use halfbyte::text::Tokenizer;
use halfbyte_memory::{bytes, grouped};

use crate::source::Source;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of a model or of an adapter, or org/name[@revision] on the Hugging Face hub, whose weights are not downloaded
    folder: String,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let source = Source::open(&arguments.folder)?;
    let folder = source.folder();
    let file = if folder.join("adapter_config.json").exists() {
        adapter(&source)?
    } else if folder.join("config.json").exists() {
        model(&source)?
    } else {
        bail!("{}: holds neither config.json (a model) nor adapter_config.json (an adapter)", folder.display());
    };
    if let (true, Some(file)) = (arguments.tensors, file) {
        for name in file.names() {
            let tensor = file.tensor(name)?;
            println!("{name}  {:?} {:?}", tensor.dtype, tensor.shape);
        }
    }
    Ok(())
}

fn size(file: &Checkpoint) -> Result<String> {
    let sizes = file.names().into_iter().map(|name| Ok(file.tensor(name)?.bytes.len() as u64));
    Ok(format!("{} tensors, {}", file.names().len(), bytes(sizes.sum::<halfbyte::Result<u64>>()?)))
}

fn adapter(source: &Source) -> Result<Option<Checkpoint>> {
    let config = adapter_config(source.folder())?;
    // An adapter is small: it is downloaded.
    let file = Checkpoint::open_file(source.weights()?.join("adapter_model.safetensors"))?;
    let lora = config.lora();
    println!("LoRA adapter for {}", config.base_model_name_or_path.as_deref().unwrap_or("an unnamed base"));
    println!(
        "  r {}, lora_alpha {}, scaling {:.4}, rsLoRA {}",
        lora.r,
        lora.lora_alpha,
        lora.scaling(),
        lora.use_rslora
    );
    println!("  target_modules {}", serde_json::to_string(&lora.target_modules)?);
    println!("  {}", size(&file)?);
    Ok(Some(file))
}

fn model(source: &Source) -> Result<Option<Checkpoint>> {
    let folder = source.folder();
    let path = folder.join("config.json");
    let json = std::fs::read(&path)?;
    let config = ModelConfig::parse(&path, &json)?;
    let file = source.is_whole().then(|| Checkpoint::open(folder)).transpose()?;
    println!("Llama model, {} parameters", grouped(config.parameters()));
    println!("  {} layers, hidden {}, intermediate {}", config.layers, config.hidden_size, config.intermediate_size);
    println!("  {} query heads, {} key heads, head_dim {}", config.heads, config.kv_heads, config.head_dim);
    let scaling = if config.rope.llama3.is_some() { ", llama3 scaling" } else { "" };
    println!(
        "  vocabulary {}, head {}, rope_theta {}{scaling}",
        config.vocab_size,
        if config.tied { "tied" } else { "untied" },
        config.rope.theta
    );
    if let Some(file) = &file {
        let quantized = file.names().iter().any(|name| name.ends_with("bitsandbytes__nf4"));
        println!("  {}{}", size(file)?, if quantized { ", NF4" } else { "" });
    } else {
        println!("  on the hub at commit {}; its weights are not on this machine", source.commit().unwrap_or_default());
    }
    match Tokenizer::from_folder(folder) {
        Ok(tokenizer) => {
            let template = if tokenizer.chat_template().is_some() { "with" } else { "without" };
            println!(
                "  tokenizer of {} tokens, {template} chat template, stops at {:?}",
                tokenizer.vocab_size(),
                tokenizer.stop_ids()
            );
        }
        Err(error) => println!("  no tokenizer: {error}"),
    }
    Ok(file)
}
