//! `halfbyte quantize`: a model folder in 4 bits.

use std::path::PathBuf;

use anyhow::Result;
use halfbyte::files::quantize_folder;
use halfbyte::nf4::BLOCK_SIZE;

use crate::progress::spinner;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the model
    model: PathBuf,
    /// Folder to write
    output: PathBuf,
    /// Elements that share a scale
    #[arg(long, default_value_t = BLOCK_SIZE)]
    block_size: usize,
    /// Leave the scales in f32
    #[arg(long)]
    no_double_quant: bool,
    /// Linear layers that stay as they are, by name or path, for example model.layers.0.mlp.down_proj
    #[arg(long, value_delimiter = ',')]
    skip: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let bar = spinner("quantizing");
    let kind = (arguments.block_size, !arguments.no_double_quant);
    let Arguments { model, output, skip, .. } = &arguments;
    let result = quantize_folder(model, output, kind, skip, &mut |name| bar.set_message(name.to_string()));
    bar.finish_and_clear();
    result?;
    println!("{}: NF4, loadable by transformers with bitsandbytes and by halfbyte", arguments.output.display());
    Ok(())
}
