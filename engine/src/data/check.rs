//! Mistakes in data that would train a model wrongly without a word, found before a run begins.

use super::{Dataset, Example};
use crate::model::ModelConfig;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Share of cut records above which a run is warned.
const MANY_CUT: f64 = 0.1;

impl Dataset {
    /// Refuses a data set that teaches something else than it says, and warns of one that may.
    ///
    /// # Errors
    /// When no token is trained, no trained token ends a turn, or an example begins with the begin token twice.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<Vec<String>> {
        if self.trained_count() == 0 {
            return Err(Error::Invalid("no token is trained; look at data.train_on and data.max_length".into()));
        }
        let mut warnings = Vec::new();
        let (ended, stops) = (self.ended(tokenizer), stop_names(tokenizer)?);
        if stops.is_empty() {
            warnings.push(
                "the tokenizer names no end token, so none is trained and answers will not end; set eos_token in \
                 tokenizer_config.json"
                    .into(),
            );
        } else if ended == 0 && self.counts.cut >= self.examples.len() {
            let reason =
                "every example is cut before its end, so the model would learn never to stop; raise data.max_length";
            return Err(Error::Invalid(reason.into()));
        } else if ended == 0 {
            return Err(Error::Invalid(format!(
                "no end token ({stops}) is trained, so the model would learn never to stop; name the chat template's \
                 end-of-turn token in eos_token_id of generation_config.json, or let the template write the end token"
            )));
        }
        if let Some(bos) = tokenizer.bos_id() {
            let doubled = |e: &Example| e.tokens.len() > 1 && e.tokens[0] == bos && e.tokens[1] == bos;
            if let Some(i) = self.examples.iter().position(doubled) {
                let name = tokenizer.bos_token().unwrap_or_default();
                return Err(Error::Invalid(format!(
                    "example {} begins with {name} twice: the tokenizer adds it; remove it from the data's text",
                    i + 1
                )));
            }
        }
        let share = self.cut_share();
        if share > MANY_CUT {
            warnings.push(format!(
                "{} of {} records ({:.0} %) are cut at data.max_length and lose their end; raise it, or shorten them",
                self.counts.cut,
                self.counts.records(),
                100.0 * share
            ));
        }
        Ok(warnings)
    }

    /// What of the model does not fit the data, in sentences.
    ///
    /// # Errors
    /// When the model has no embedding for a token.
    pub fn check_model(&self, model: &ModelConfig, tokenizer: &Tokenizer) -> Result<Vec<String>> {
        let unknown = |(i, example): (usize, &Example)| {
            let token = example.tokens.iter().find(|token| **token as usize >= model.vocab_size)?;
            Some((i + 1, *token))
        };
        if let Some((example, token)) = self.examples.iter().enumerate().find_map(unknown) {
            let (text, rows) = (tokenizer.decode(&[token], false)?, model.vocab_size);
            return Err(Error::Invalid(format!(
                "example {example} has token {token}, `{text}`, and the model's embedding ends at {rows}: either the token was added to \
                 tokenizer.json alone, or the tokenizer belongs to another model"
            )));
        }
        let lengths = || self.examples.iter().map(|example| example.tokens.len());
        let (positions, longest) = (model.max_positions, lengths().max().unwrap_or(0));
        if longest <= positions {
            return Ok(vec![]);
        }
        let beyond = lengths().filter(|length| *length > positions).count();
        Ok(vec![format!(
            "{beyond} examples are longer than the {positions} positions that the model was made for (max_position_embeddings), the \
             longest {longest} tokens; lower data.max_length"
        )])
    }

    /// Examples of which a trained token ends a turn.
    pub fn ended(&self, tokenizer: &Tokenizer) -> usize {
        let stops = tokenizer.stop_ids();
        let ends =
            |e: &&Example| e.tokens.iter().zip(&e.trained).any(|(token, trained)| *trained && stops.contains(token));
        self.examples.iter().filter(ends).count()
    }

    /// Share of the records that were cut.
    pub fn cut_share(&self) -> f64 {
        self.counts.cut as f64 / self.counts.records().max(1) as f64
    }

    /// Tokens of the example that a share of the examples is not longer than, `share` from 0 to 1.
    pub fn length_percentiles<const N: usize>(&self, shares: [f64; N]) -> [usize; N] {
        let mut lengths: Vec<usize> = self.examples.iter().map(|e| e.tokens.len()).collect();
        lengths.sort_unstable();
        let last = lengths.len().saturating_sub(1);
        shares.map(|share| lengths.get((share * last as f64).round() as usize).copied().unwrap_or(0))
    }
}

fn stop_names(tokenizer: &Tokenizer) -> Result<String> {
    let names: Result<Vec<String>> = tokenizer.stop_ids().iter().map(|id| tokenizer.decode(&[*id], false)).collect();
    Ok(names?.join(", "))
}
