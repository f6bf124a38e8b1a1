//! Decoding token by token, as a terminal shows it.

use super::Tokenizer;
use crate::Result;

/// Turns tokens into text as they come. A character whose bytes are spread over tokens is held back until it is whole.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Where the tokens begin that the last piece was decoded from: the context in which the next is decoded.
    start: usize,
    /// Tokens whose text was handed out.
    shown: usize,
    skip_special: bool,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder at the beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: vec![], start: 0, shown: 0, skip_special: true }
    }

    /// One that also shows special tokens.
    pub fn with_special(tokenizer: &'a Tokenizer) -> Self {
        Self { skip_special: false, ..Self::new(tokenizer) }
    }

    /// The text that `id` completes, if any.
    ///
    /// # Errors
    /// When the tokenizer cannot decode it.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[self.start..self.shown], self.skip_special)?;
        let now = self.tokenizer.decode(&self.ids[self.start..], self.skip_special)?;
        if now.len() <= before.len() || now.ends_with('\u{fffd}') {
            return Ok(None);
        }
        let piece = now.get(before.len()..).map(str::to_string);
        self.start = self.shown;
        self.shown = self.ids.len();
        Ok(piece)
    }

    /// What was held back, at the end of the text.
    ///
    /// # Errors
    /// When the tokenizer cannot decode it.
    pub fn finish(self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.start..self.shown], self.skip_special)?;
        let now = self.tokenizer.decode(&self.ids[self.start..], self.skip_special)?;
        Ok(now.get(before.len()..).unwrap_or_default().to_string())
    }
}
