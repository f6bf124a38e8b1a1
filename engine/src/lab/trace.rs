//! Comparing two models on a text: what each layer makes of it, and how far apart they are.

use crate::Result;
use crate::files::read;
use crate::model::{Transformer, moved};
use crate::ops::{Ops, Sequences};

/// The residual stream after each decoder layer, `[tokens, hidden]` each, and last the logits `[tokens, vocab]`, on the
/// host.
///
/// # Errors
/// On a token that the model does not know, or when the device cannot be read.
pub async fn trace<B: Ops>(model: &Transformer<B>, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
    model.config.check_tokens(tokens)?;
    let passes = model.passes(&Sequences::new(&[tokens.len()]));
    let mut x = model.embed(tokens);
    let mut trace = Vec::new();
    for (stage, pass) in model.stages.iter().zip(&passes) {
        x = moved(x, &stage.device);
        for layer in &model.layers[stage.layers.clone()] {
            x = layer.forward(x, pass, None);
            trace.push(read(x.clone()).await?);
        }
    }
    trace.push(read(model.head.forward(x)).await?);
    Ok(trace)
}

/// `‖found - expected‖ / ‖expected‖` as a comparison with formulas judges it: infinite where lengths differ or a value is no number.
pub fn judged_error(found: &[f32], expected: &[f64]) -> f64 {
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let norm: f64 = expected.iter().map(|b| b * b).sum();
    match (found.len() == expected.len(), (difference / norm.max(f64::MIN_POSITIVE)).sqrt()) {
        (true, error) if error.is_finite() => error,
        _ => f64::INFINITY,
    }
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
