//! Questions and answers with a model: rendering, generating, streaming.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Result;
use halfbyte::files::load_adapter;
use halfbyte::generate::{Sampling, generate};
use halfbyte::model::{BaseWeights, Transformer, load};
use halfbyte::ops::Ops;
use halfbyte::text::{Message, StreamDecoder, Tokenizer};
use pollster::block_on;

use crate::progress::spinner;

/// Loads a base model with a spinner that names each tensor.
pub(crate) fn load_base<B: Ops>(folder: &Path, base: BaseWeights, device: &B::Device) -> Result<Transformer<B>> {
    let bar = spinner(&format!("loading {}", folder.display()));
    let model = load(folder, base, device, &mut |path| bar.set_message(path.to_string()));
    bar.finish_and_clear();
    Ok(model?)
}

/// A model and its tokenizer.
pub(crate) struct Talker<'a, B: Ops> {
    /// The model, with its adapter if it has one.
    pub(crate) model: &'a Transformer<B>,
    /// The tokenizer of the base model.
    pub(crate) tokenizer: &'a Tokenizer,
    /// How tokens are chosen.
    pub(crate) sampling: Sampling,
}

impl<B: Ops> Talker<'_, B> {
    /// Continues `text`; `show` sees each piece as it comes.
    pub(crate) fn continue_text(&self, text: &str, add_special: bool, mut show: impl FnMut(&str)) -> Result<String> {
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
        let generated = generate(self.model, &prompt, &self.sampling, self.tokenizer.stop_ids(), on_token);
        block_on(generated)?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        let rest = decoder.finish()?;
        show(&rest);
        answer.push_str(&rest);
        Ok(answer)
    }

    /// Answers a conversation.
    pub(crate) fn answer(&self, messages: &[Message], mut show: impl FnMut(&str)) -> Result<String> {
        let text = self.tokenizer.render_chat(messages, true)?;
        let mut begun = false;
        // A template may end in the middle of a word's blank, which the model then writes.
        self.continue_text(&text, false, |piece| {
            let piece = if begun { piece } else { piece.trim_start() };
            begun |= !piece.is_empty();
            show(piece);
        })
    }
}

/// Attaches an adapter for inference, and says so when it was made for another base.
pub(crate) fn attach_adapter<B: Ops>(model: &mut Transformer<B>, folder: &Path, base: &str) -> Result<()> {
    let config = load_adapter(model, folder, false)?;
    if let Some(trained_on) =
        config.base_model_name_or_path.filter(|name| name.trim_end_matches('/') != base.trim_end_matches('/'))
    {
        eprintln!("note: the adapter says that it was trained on `{trained_on}`, not `{base}`");
    }
    Ok(())
}
