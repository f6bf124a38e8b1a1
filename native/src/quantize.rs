//! `halfbyte quantize`: a model folder in 4 bits.

use std::path::PathBuf;

use anyhow::Result;
use halfbyte::files::{must_be_new, quantize_folder, quantize_shards};
use halfbyte::nf4::BLOCK_SIZE;

use crate::console::out;
use crate::held::parse_block_size;
use crate::progress::spinner;
use crate::source::Source;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the model, or org/name[@revision] on the Hugging Face hub: its shards are downloaded, quantized and removed
    /// one after the other
    model: String,
    /// Folder to write
    output: PathBuf,
    /// Elements that share a scale
    #[arg(long, default_value_t = BLOCK_SIZE, value_parser = parse_block_size)]
    block_size: usize,
    /// Leave the scales in f32
    #[arg(long)]
    no_double_quant: bool,
    /// Linear layers that stay as they are, by name or path, for example model.layers.0.mlp.down_proj
    #[arg(long, value_delimiter = ',')]
    skip: Vec<String>,
    /// Keep the shards that are downloaded
    #[arg(long)]
    keep: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let (output, skip) = (&arguments.output, &arguments.skip);
    let kind = (arguments.block_size, !arguments.no_double_quant);
    // Before anything is downloaded for it.
    must_be_new(output)?;
    let source = Source::open(&arguments.model)?;
    let streamed = source
        .shards(arguments.keep, |shards| quantize_shards(source.folder(), shards, output, kind, skip, &mut |_| ()))?;
    if streamed.is_none() {
        let bar = spinner("quantizing");
        let folder = source.folder();
        let result = quantize_folder(folder, output, kind, skip, &mut |name| bar.set_message(name.to_string()));
        bar.finish_and_clear();
        result?;
    }
    out!("{}: NF4, loadable by transformers with bitsandbytes and by halfbyte", output.display())
}
