//! Text: the tokenizer of a model folder, its chat template, and decoding as a stream.

mod chat;
mod stream;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
