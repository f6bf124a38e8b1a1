//! Questions put to a model, answered one after another while the page looks on.

use halfbyte::generate::{Sampling, Talker};
use halfbyte::model::Transformer;
use halfbyte::ops::Ops;
use halfbyte::text::{Message, Tokenizer};
use halfbyte_protocol::{Answer, Event};
use web_time::Instant;

use crate::error::Result;
use crate::port;
use crate::rest::rest;

/// Answers questions; text is continued where the model knows no chat.
pub(crate) async fn answers<B: Ops>(
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    sampling: Sampling,
    prompts: &[String],
) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    let talker = Talker { model, tokenizer, sampling };
    for (place, prompt) in prompts.iter().enumerate() {
        let (begun, mut pieces) = (Instant::now(), 0);
        let show = |piece: &str| {
            pieces += 1;
            if !piece.is_empty() {
                port::post(&Event::Piece { prompt: place, text: piece.into() });
            }
        };
        let text = match tokenizer.chat_template() {
            Some(_) => talker.answer(&[Message::new("user", prompt)], show).await?,
            None => talker.continue_text(prompt, true, show).await?,
        };
        let speed = f64::from(pieces) / begun.elapsed().as_secs_f64().max(1e-6);
        answers.push(Answer { prompt: prompt.clone(), text: text.trim().to_string(), speed });
        rest().await;
    }
    Ok(answers)
}
