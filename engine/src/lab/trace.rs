//! Comparing two models on a text: what each layer makes of it, and how far apart they are.

use crate::Result;
use crate::files::read;
use crate::model::Transformer;
use crate::ops::{Ops, Sequences};

/// The residual stream after each decoder layer, `[tokens, hidden]` each, and last the logits `[tokens, vocab]`, on the
/// host.
///
/// # Errors
/// On a token that the model does not know, or when the device cannot be read.
pub async fn trace<B: Ops>(model: &Transformer<B>, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
    model.config.check_tokens(tokens)?;
    let pass = model.pass(Sequences::new(&[tokens.len()]));
    let mut x = model.embed(tokens);
    let mut trace = Vec::new();
    for layer in &model.layers {
        x = layer.forward(x, &pass, None);
        trace.push(read(x.clone()).await?);
    }
    trace.push(read(model.head.forward(x)).await?);
    Ok(trace)
}

/// `‖found - expected‖ / ‖expected‖`, Euclidean norms, in f64.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (found, expected) in found.iter().zip(expected) {
        difference += (f64::from(*found) - f64::from(*expected)).powi(2);
        norm += f64::from(*expected).powi(2);
    }
    difference.sqrt() / norm.sqrt().max(1e-300)
}
