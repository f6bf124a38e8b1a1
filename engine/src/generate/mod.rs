//! Generating text: sampling from logits, and the loop over a key/value cache.

mod sampling;
mod talker;

pub use sampling::{Sampler, Sampling};
pub use talker::Talker;

use std::ops::ControlFlow;

use crate::files::read;
use crate::model::{Cache, Transformer};
use crate::ops::{Ops, Sequences};
use crate::{Error, Result};

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model produced one of the stop tokens.
    Stop,
    /// The limit on new tokens was reached.
    Length,
    /// The caller asked.
    Cancelled,
}

/// Continues `prompt` token by token; `on_token` sees each new token (not the stop token) and may end it.
///
/// ```no_run
/// # use std::ops::ControlFlow;
/// # use halfbyte::{backends::Cpu, generate::{Sampling, generate}, model::Transformer, text::{Message, Tokenizer}};
/// # async fn answer(model: &Transformer<Cpu>, tokenizer: &Tokenizer) -> halfbyte::Result<String> {
/// let text = tokenizer.render_chat(&[Message::new("user", "What is a trout?")], true)?;
/// let prompt = tokenizer.encode(&text, false)?;
/// let sampling = Sampling { max_new_tokens: 64, ..Sampling::default() };
/// let (tokens, _) = generate(model, &prompt, &sampling, tokenizer.stop_ids(), |_| ControlFlow::Continue(())).await?;
/// tokenizer.decode(&tokens, true)
/// # }
/// ```
///
/// # Errors
/// On an empty prompt, a token outside the vocabulary, logits that are no numbers, or a device that cannot be read.
pub async fn generate<B: Ops>(
    model: &Transformer<B>,
    prompt: &[u32],
    sampling: &Sampling,
    stop: &[u32],
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<(Vec<u32>, Finish)> {
    if prompt.is_empty() {
        return Err(Error::Invalid("the prompt is empty".into()));
    }
    model.config.check_tokens(prompt)?;
    let mut sampler = Sampler::new(sampling.clone())?;
    let mut cache: Cache<B> = Vec::new();
    let mut tokens = prompt.to_vec();
    let mut seen = 0;
    while tokens.len() - prompt.len() < sampling.max_new_tokens {
        if model.outgrows_cache(seen, tokens.len()) {
            (cache, seen) = (Vec::new(), 0);
        }
        let fresh = &tokens[seen..];
        let passes = model.passes(&Sequences::after(seen, fresh.len()));
        let hidden = model.hidden(fresh, &passes, Some(&mut cache));
        let last = hidden.narrow(0, fresh.len() - 1, 1);
        let mut logits = read(model.head.forward(last)).await?;
        if !logits.iter().all(|logit| logit.is_finite()) {
            let reason = "the model's logits are NaN or infinite: a weight or an adapter is, or activations overflow";
            return Err(Error::Invalid(reason.into()));
        }
        seen = tokens.len();
        let token = sampler.pick(&mut logits, &tokens);
        if stop.contains(&token) {
            return Ok((tokens.split_off(prompt.len()), Finish::Stop));
        }
        tokens.push(token);
        if on_token(token).is_break() {
            return Ok((tokens.split_off(prompt.len()), Finish::Cancelled));
        }
    }
    Ok((tokens.split_off(prompt.len()), Finish::Length))
}
