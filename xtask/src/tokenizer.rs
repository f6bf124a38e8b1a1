//! Trains the small model's tokenizer: byte-level BPE (GPT-2's scheme), each digit a token of its own.

use anyhow::{Context, Result, anyhow};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

/// Tokens in all: 2 marks, 256 bytes, the rest merges.
pub(crate) const VOCABULARY: usize = 4096;
/// Stands in front of every text; token 0.
pub(crate) const BEGIN: &str = "<|begin|>";
/// Ends every text and every answer; token 1.
pub(crate) const END: &str = "<|end|>";

/// Trains on `texts`. Digits are split because a vocabulary of this size has no room for years, and a date spelled digit
/// by digit is always spelled the same way.
pub(crate) fn train(texts: &[String]) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ])))
        .with_decoder(Some(ByteLevel::new(false, true, true)));
    let trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .special_tokens([BEGIN, END].map(|mark| AddedToken::from(mark, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.iter())
        .map_err(|error| anyhow!("cannot train the tokenizer: {error}"))?;

    let template = TemplateProcessing::builder()
        .try_single(format!("{BEGIN} $A"))
        .and_then(|builder| builder.try_pair(format!("{BEGIN} $A $B:1")))
        .map_err(|error| anyhow!("the template that puts {BEGIN} in front: {error}"))?
        .special_tokens(vec![(BEGIN, 0)])
        .build()
        .with_context(|| format!("the template that puts {BEGIN} in front"))?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

/// The number of tokens of `texts`, each with the mark in front and the mark behind.
pub(crate) fn count(tokenizer: &Tokenizer, texts: &[String]) -> Result<usize> {
    let inputs: Vec<&str> = texts.iter().map(String::as_str).collect();
    let encodings =
        tokenizer.encode_batch_fast(inputs, true).map_err(|error| anyhow!("cannot tokenize the corpus: {error}"))?;
    Ok(encodings.iter().map(|encoding| encoding.len() + 1).sum())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn marks_come_first_and_text_survives() {
        let texts = vec!["A poodle is a dog. It was bred in 1850.".to_owned(); 50];
        let tokenizer = train(&texts).unwrap();
        assert_eq!(tokenizer.token_to_id(BEGIN), Some(0));
        assert_eq!(tokenizer.token_to_id(END), Some(1));
        let encoding = tokenizer.encode("A dog of 1850, größer\n", true).unwrap();
        assert_eq!(encoding.get_ids()[0], 0);
        let digits = encoding.get_tokens().iter().filter(|token| ["1", "8", "5", "0"].contains(&token.as_str()));
        assert_eq!(digits.count(), 4);
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), "A dog of 1850, größer\n");
    }
}
