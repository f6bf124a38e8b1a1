//! What becomes of an update that is merged into its base: kept in 16 bits, or quantized again to four.

use half::bf16;
use halfbyte_nf4::quantize;

use crate::lessons::parts::normal;

/// Rows and columns of the weight.
const SIDE: usize = 64;
/// Rank of the update.
const RANK: usize = 4;

/// How far a merged weight is from what was trained, over the length of the update: 1 is an update that is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Lost {
    /// Rounded to bf16.
    pub(super) half: f64,
    /// Quantized to NF4 again.
    pub(super) four: f64,
}

fn length(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// In NF4 and back.
fn through_nf4(weight: &[f32]) -> Vec<f32> {
    // Finite weights of a fixed shape are always accepted.
    quantize(weight, [SIDE, SIDE], 64, true).map_or_else(|_| weight.to_vec(), |data| data.dequantize())
}

/// The fate of an update whose length is this share of the weight's.
pub(super) fn lost(share: f64) -> Lost {
    let numbers = |seed, count| normal(seed, count).into_iter().map(|value| value as f32);
    let base = through_nf4(&numbers(21, SIDE * SIDE).map(|w| 0.02 * w).collect::<Vec<_>>());
    let (b, a): (Vec<f32>, Vec<f32>) = (numbers(22, SIDE * RANK).collect(), numbers(23, RANK * SIDE).collect());
    let entry = |i: usize| (0..RANK).map(|k| b[i / SIDE * RANK + k] * a[k * SIDE + i % SIDE]).sum::<f32>();
    let raw: Vec<f32> = (0..SIDE * SIDE).map(entry).collect();
    let scale = (share * length(base.iter().copied()) / length(raw.iter().copied())) as f32;
    let update: Vec<f32> = raw.iter().map(|value| value * scale).collect();
    let trained: Vec<f32> = base.iter().zip(&update).map(|(base, update)| base + update).collect();
    let size = length(update.iter().copied());
    let far = |merged: &[f32]| length(merged.iter().zip(&trained).map(|(a, b)| a - b)) / size;
    let half: Vec<f32> = trained.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
    Lost { half: far(&half), four: far(&through_nf4(&trained)) }
}

#[cfg(test)]
mod tests {
    use super::lost;

    #[test]
    fn a_small_update_does_not_survive_four_bits() {
        let small = lost(0.01);
        assert!(small.four > 0.9, "{small:?}");
        assert!(small.half < 0.25, "{small:?}");
        let large = lost(0.3);
        assert!(large.four < 0.5 && large.half < 0.01, "{large:?}");
    }
}
