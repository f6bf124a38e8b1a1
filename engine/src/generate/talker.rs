//! Questions and answers with a model: rendering, generating, streaming.

use std::ops::ControlFlow;

use super::{Sampling, generate};
use crate::Result;
use crate::model::Transformer;
use crate::ops::Ops;
use crate::text::{Message, StreamDecoder, Tokenizer};

/// A model and its tokenizer.
pub struct Talker<'a, B: Ops> {
    /// The model, with its adapter if it has one.
    pub model: &'a Transformer<B>,
    /// The tokenizer of the base model.
    pub tokenizer: &'a Tokenizer,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

impl<B: Ops> Talker<'_, B> {
    /// Continues `text`; `show` sees each piece as it comes.
    ///
    /// # Errors
    /// Those of the tokenizer and of [`generate`].
    pub async fn continue_text(&self, text: &str, add_special: bool, mut show: impl FnMut(&str)) -> Result<String> {
        let prompt = self.tokenizer.encode(text, add_special)?;
        let mut decoder = StreamDecoder::new(self.tokenizer);
        let (mut answer, mut failure) = (String::new(), None);
        let on_token = |token| match decoder.push(token) {
            Ok(piece) => {
                let piece = piece.unwrap_or_default();
                show(&piece);
                answer.push_str(&piece);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        };
        generate(self.model, &prompt, &self.sampling, self.tokenizer.stop_ids(), on_token).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        let rest = decoder.finish()?;
        show(&rest);
        answer.push_str(&rest);
        Ok(answer)
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// As [`continue_text`](Self::continue_text), and when the template refuses the conversation.
    pub async fn answer(&self, messages: &[Message], mut show: impl FnMut(&str)) -> Result<String> {
        let text = self.tokenizer.render_chat(messages, true)?;
        let mut begun = false;
        // A template may end in the middle of a word's blank, which the model then writes.
        let show = |piece: &str| {
            let piece = if begun { piece } else { piece.trim_start() };
            begun |= !piece.is_empty();
            show(piece);
        };
        self.continue_text(&text, false, show).await
    }
}
