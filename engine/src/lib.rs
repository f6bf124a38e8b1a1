//! Halfbyte: a QLoRA engine. A language model frozen in 4-bit NormalFloat, LoRA adapters trained on top, on any of
//! Burn's backends; it knows no screen and no shell.
//!
//! A run, from a model folder and a data file to an adapter that PEFT loads:
//!
//! ```no_run
//! use std::path::Path;
//!
//! use halfbyte::backends::Cpu;
//! use halfbyte::data::{Dataset, TrainOn};
//! use halfbyte::files::save_adapter;
//! use halfbyte::lora::{LoraConfig, attach};
//! use halfbyte::model::{BaseWeights, load};
//! use halfbyte::text::Tokenizer;
//! use halfbyte::train::{Trainer, TrainerConfig};
//! use pollster::block_on;
//!
//! # fn main() -> halfbyte::Result<()> {
//! let (folder, device, seed) = (Path::new("models/wordnet-4m"), Default::default(), 42);
//! let nf4 = BaseWeights::Nf4 { block_size: 64, double_quant: true };
//! let mut model = load::<Cpu>(folder, nf4, &device, &mut |loading| println!("{}", loading.path))?;
//! let lora = LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::default() };
//! attach(&mut model, &lora, seed)?;
//!
//! let tokenizer = Tokenizer::from_folder(folder)?;
//! let data = Dataset::load(Path::new("recipes/kinds/train.jsonl"), &tokenizer, 512, TrainOn::Completion)?;
//! let mut trainer = Trainer::new(model, data, TrainerConfig::default(), seed)?;
//! while let Some(metrics) = block_on(trainer.step())? {
//!     println!("{}: {:.4}", metrics.step, metrics.loss);
//! }
//! block_on(save_adapter(trainer.model_mut(), &lora, "models/wordnet-4m", "adapter"))?;
//! # Ok(())
//! # }
//! ```
//!
//! Whatever waits for a device is async, because a browser's thread may not block; natively any executor will do.

pub mod backends;
pub mod data;
mod error;
pub mod failure;
pub mod files;
pub mod generate;
pub mod lab;
pub mod lora;
pub mod model;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod text;
pub mod train;

pub use error::{Error, Result, Trouble};
pub use halfbyte_nf4 as nf4;
