//! `halfbyte inspect`: what a folder holds.

use anyhow::{Result, bail};
use halfbyte::files::{AdapterFile, Checkpoint, adapter_config};
use halfbyte::model::ModelConfig;
use halfbyte::text::Tokenizer;
use halfbyte_memory::{bytes, grouped};

use crate::console::out;
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
            out!("{name}  {:?} {:?}", tensor.dtype, tensor.shape)?;
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
    let folder = source.weights()?;
    let file = Checkpoint::open_file(folder.join("adapter_model.safetensors"))?;
    // It also says so where the two files do not belong together.
    let layers = AdapterFile::open(folder)?.layers();
    let lora = config.lora();
    let kind = if lora.use_dora { "LoRA adapter with DoRA" } else { "LoRA adapter" };
    out!("{kind} for {}", config.base_model_name_or_path.as_deref().unwrap_or("an unnamed base"))?;
    out!("  r {}, lora_alpha {}, scaling {:.4}, rsLoRA {}", lora.r, lora.lora_alpha, lora.scaling(), lora.use_rslora)?;
    out!("  target_modules {}", serde_json::to_string(&lora.target_modules)?)?;
    for (key, patterns) in [
        ("rank_pattern", serde_json::to_string(&lora.rank_pattern)?),
        ("alpha_pattern", serde_json::to_string(&lora.alpha_pattern)?),
        ("layers_to_transform", serde_json::to_string(&lora.layers_to_transform)?),
        ("modules_to_save", serde_json::to_string(&lora.modules_to_save)?),
    ] {
        if !["{}", "[]"].contains(&patterns.as_str()) {
            out!("  {key} {patterns}")?;
        }
    }
    out!("  {} layers, {}", layers.len(), size(&file)?)?;
    Ok(Some(file))
}

fn model(source: &Source) -> Result<Option<Checkpoint>> {
    let folder = source.folder();
    let path = folder.join("config.json");
    let json = std::fs::read(&path)?;
    let config = ModelConfig::parse(&path, &json)?;
    let file = source.is_whole().then(|| Checkpoint::open(folder)).transpose()?;
    out!("{} model, {} parameters", config.family.name, grouped(config.parameters()))?;
    out!("  {} layers, hidden {}, intermediate {}", config.layers, config.hidden_size, config.intermediate_size)?;
    let heads = config.attention;
    out!("  {} query heads, {} key heads, head_dim {}", heads.heads, heads.kv_heads, heads.head_dim)?;
    out!("  vocabulary {}, head {}", config.vocab_size, if config.tied { "tied" } else { "untied" })?;
    for (i, kind) in config.kinds.iter().enumerate() {
        let count = config.layer_kinds.iter().filter(|of| **of == i).count();
        let seen = kind.window.map_or("all tokens".to_string(), |window| format!("{window} tokens"));
        let scaling = kind.rope.scaling.name().map_or(String::new(), |name| format!(", {name} scaling"));
        out!("  attention to {seen} in {count} layers, rope_theta {}{scaling}", kind.rope.theta)?;
    }
    if let Some(file) = &file {
        let in_4_bits = file.names().iter().filter(|name| name.ends_with("bitsandbytes__nf4")).count();
        let kept = (config.linears().len() * config.layers).saturating_sub(in_4_bits);
        let kept = if kept > 0 { format!(" but for {kept} linear layers") } else { String::new() };
        out!("  {}{}", size(file)?, if in_4_bits > 0 { format!(", NF4{kept}") } else { String::new() })?;
    } else {
        out!("  on the hub at commit {}; its weights are not on this machine", source.commit().unwrap_or_default())?;
    }
    match Tokenizer::from_folder(folder) {
        Ok(tokenizer) => {
            let template = if tokenizer.chat_template().is_some() { "with" } else { "without" };
            out!(
                "  tokenizer of {} tokens, {template} chat template, stops at {:?}",
                tokenizer.vocab_size(),
                tokenizer.stop_ids()
            )?;
        }
        Err(error) => out!("  no tokenizer: {error}")?,
    }
    Ok(file)
}
