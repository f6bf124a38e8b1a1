//! Choosing the next token from logits, in the order of transformers' logits processors: repetition penalty,
//! temperature, top-k, top-p.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; larger flattens the distribution.
    pub temperature: f64,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens up to this much probability; 1 keeps all.
    pub top_p: f64,
    /// Divides the positive logits of tokens already there and multiplies the negative ones (CTRL, arXiv:1909.05858).
    pub repetition_penalty: f64,
    /// Tokens after which generation ends.
    pub max_new_tokens: usize,
    /// Seed of the choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, max_new_tokens: 256, seed: 0 }
    }
}

/// A sampler in the middle of a text.
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of a text.
    ///
    /// # Errors
    /// When a setting is out of range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        let wrong = |what: &str| Err(Error::Invalid(format!("sampling: {what}")));
        if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
            return wrong("temperature must be 0 or more");
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return wrong("top_p must lie above 0 and at most 1");
        }
        if !(sampling.repetition_penalty.is_finite() && sampling.repetition_penalty > 0.0) {
            return wrong("repetition_penalty must be positive");
        }
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling, random })
    }

    /// The next token after `context`; `logits` holds one value per token of the vocabulary and is used as scratch.
    pub fn pick(&mut self, logits: &mut [f32], context: &[u32]) -> u32 {
        self.penalise(logits, context);
        if self.sampling.temperature == 0.0 {
            return argmax(logits);
        }
        let mut candidates: Vec<(u32, f64)> =
            (0..).zip(logits.iter()).map(|(i, l)| (i, f64::from(*l) / self.sampling.temperature)).collect();
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.sampling.top_k > 0 {
            candidates.truncate(self.sampling.top_k);
        }
        let top = candidates[0].1;
        for candidate in &mut candidates {
            candidate.1 = (candidate.1 - top).exp();
        }
        if self.sampling.top_p < 1.0 {
            let enough = self.sampling.top_p * candidates.iter().map(|c| c.1).sum::<f64>();
            let mut sum = 0.0;
            // A token is kept while those before it fall short of the mass, so the likeliest one always is.
            let kept = candidates.iter().take_while(|candidate| {
                let before = sum;
                sum += candidate.1;
                before < enough
            });
            let kept = kept.count();
            candidates.truncate(kept.max(1));
        }
        let mut left = self.random.random::<f64>() * candidates.iter().map(|c| c.1).sum::<f64>();
        for (token, probability) in &candidates {
            left -= probability;
            if left < 0.0 {
                return *token;
            }
        }
        candidates[0].0
    }

    fn penalise(&self, logits: &mut [f32], context: &[u32]) {
        let penalty = self.sampling.repetition_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        let mut seen = context.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            let logit = &mut logits[token as usize];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// The first of the largest.
fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn picks(sampling: Sampling, logits: [f32; 4], context: &[u32]) -> [usize; 4] {
        let mut counts = [0; 4];
        let mut sampler = Sampler::new(sampling).unwrap();
        for _ in 0..4000 {
            counts[sampler.pick(&mut logits.clone(), context) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(picks(Sampling::default(), [0.0, 2.0, 2.0, 1.0], &[]), [0, 4000, 0, 0]);
    }

    #[test]
    fn temperature_follows_the_softmax() {
        // exp(0), exp(1), exp(2), exp(-9): shares of about 9, 24.5, 66.5 and 0.001 percent.
        let counts = picks(Sampling { temperature: 1.0, ..Default::default() }, [0.0, 1.0, 2.0, -9.0], &[]);
        assert!((300..420).contains(&counts[0]) && (900..1060).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.0, 1.0, 2.0, -9.0];
        let counts = picks(Sampling { temperature: 1.0, top_k: 2, ..Default::default() }, logits, &[]);
        assert!(counts[0] == 0 && counts[3] == 0 && counts[1] > 0);
        let counts = picks(Sampling { temperature: 1.0, top_p: 0.6, ..Default::default() }, logits, &[]);
        assert_eq!(counts, [0, 0, 4000, 0]);
        let counts = picks(Sampling { temperature: 1.0, top_p: 0.7, ..Default::default() }, logits, &[]);
        assert!(counts[0] == 0 && counts[1] > 0 && counts[2] > 0);
    }

    #[test]
    fn the_penalty_turns_to_tokens_not_yet_there() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Default::default() };
        assert_eq!(picks(sampling, [-1.0, 2.0, 1.5, -3.0], &[1, 1]), [0, 0, 4000, 0]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(Sampler::new(Sampling { top_p: 0.0, ..Default::default() }).is_err());
        assert!(Sampler::new(Sampling { temperature: f64::NAN, ..Default::default() }).is_err());
    }
}
