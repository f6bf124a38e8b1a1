//! Training data: files and their records, what of them is trained, batches and their order.

mod answers;
mod batch;
mod check;
mod config;
mod conversation;
mod dataset;
mod example;
mod folder;
#[cfg(not(target_arch = "wasm32"))]
mod parquet;
mod read;
mod record;
mod table;

pub use batch::{Batch, Batches, Grouping, epoch_order, pack_stream};
pub use config::{DataConfig, Splits};
pub use dataset::{Counts, Dataset};
pub use example::{Example, TrainOn, tokenize};
pub use folder::Files;
pub use read::{EXTENSIONS, Sink, parse_records, read_records};
pub use record::{Format, Record};
