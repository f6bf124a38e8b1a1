//! Training data: records, what of them is trained, batches and their order.

mod batch;
mod dataset;
mod example;
mod record;

pub use batch::{Batch, Batches, epoch_order, pack_stream};
pub use dataset::Dataset;
pub use example::{Example, TrainOn, tokenize};
pub use record::{Record, parse_jsonl, read_jsonl};
