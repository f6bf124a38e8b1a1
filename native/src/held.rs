//! How a command holds a base model: as it is told, else as the adapter was trained on it, else in 4 bits.

use std::path::Path;

use anyhow::Result;
use halfbyte::files::adapter_base;
use halfbyte::model::BaseWeights;
use halfbyte::nf4::{BLOCK_SIZE, check_block_size};

/// Flags that say how the base is held where its weights are not in 4 bits on the disk.
#[derive(clap::Args)]
pub(crate) struct HeldArguments {
    /// Hold the base model in full precision; without these flags it is held as the adapter was trained on it, else in NF4
    #[arg(long, conflicts_with_all = ["block_size", "no_double_quant"])]
    full_precision: bool,
    /// Elements of NF4 that share a scale, 64 where nothing else is said
    #[arg(long, value_parser = parse_block_size)]
    block_size: Option<usize>,
    /// Leave the scales of NF4 in f32
    #[arg(long)]
    no_double_quant: bool,
}

/// A block size of NF4.
pub(crate) fn parse_block_size(text: &str) -> Result<usize> {
    let size = text.parse()?;
    Ok(check_block_size(size).map(|()| size)?)
}

impl HeldArguments {
    /// How to hold the base, given the folder of the adapter that goes on it.
    pub(crate) fn resolve(&self, adapter: Option<&Path>) -> Result<BaseWeights> {
        if self.full_precision {
            return Ok(BaseWeights::Full);
        }
        let told = self.block_size.is_some() || self.no_double_quant;
        let recorded = adapter.filter(|_| !told).map(adapter_base).transpose()?.flatten();
        Ok(recorded.unwrap_or(BaseWeights::Nf4 {
            block_size: self.block_size.unwrap_or(BLOCK_SIZE),
            double_quant: !self.no_double_quant,
        }))
    }
}
