//! NEFTune (arXiv:2310.05914): noise on the embeddings while training, which makes instruction tuning overfit less.

use burn::tensor::TensorData;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::lora::Dropout;

/// The noise's place among the random numbers of a micro-batch; a layer's dropout has the layer's own.
const PLACE: u64 = u64::MAX;

/// Noise for the embeddings of examples of these lengths, `[tokens, width]`: uniform between `±alpha / sqrt(length * width)`
/// for each example, a function of seed, step and micro-batch.
///
/// The length is the example's own, as in the paper; transformers takes that of the padded batch.
pub fn noise(lengths: &[usize], width: usize, alpha: f64, key: &Dropout) -> TensorData {
    let mut seed = [0u8; 32];
    for (part, value) in seed.chunks_mut(8).zip([key.seed, key.step, key.micro, PLACE]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    let mut random = ChaCha8Rng::from_seed(seed);
    let tokens: usize = lengths.iter().sum();
    let mut values = Vec::with_capacity(tokens * width);
    for length in lengths {
        let magnitude = (alpha / ((length * width) as f64).sqrt()) as f32;
        // 24 bits, evenly from -1 to 1.
        let unit = || ((random.next_u32() >> 8) as f32 + 0.5) * 2f32.powi(-23) - 1.0;
        values.extend(std::iter::repeat_with(unit).take(length * width).map(|x| x * magnitude));
    }
    TensorData::new(values, [tokens, width])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_the_magnitude_of_the_paper_and_is_a_function_of_its_key() {
        let key = Dropout { seed: 1, step: 2, micro: 3 };
        let of = |key: &Dropout| noise(&[3, 400], 64, 5.0, key).iter::<f32>().collect::<Vec<_>>();
        let values = of(&key);
        assert_eq!(values.len(), 403 * 64);
        for (values, length) in [(&values[..3 * 64], 3.0f32), (&values[3 * 64..], 400.0)] {
            let magnitude = 5.0 / (length * 64.0).sqrt();
            let largest = values.iter().fold(0f32, |max, v| max.max(v.abs()));
            assert!(largest <= magnitude && largest > 0.9 * magnitude, "{largest}, {magnitude}");
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            // Five standard deviations of the mean of a uniform distribution.
            assert!(mean.abs() < 5.0 * magnitude / (3.0 * values.len() as f32).sqrt(), "{mean}");
            let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
            assert!((square / (magnitude * magnitude / 3.0) - 1.0).abs() < 0.2, "uniform has a variance of a third");
        }
        assert_eq!(values, of(&key));
        for other in
            [Dropout { seed: 9, ..key.clone() }, Dropout { step: 9, ..key.clone() }, Dropout { micro: 9, ..key }]
        {
            assert_ne!(values, of(&other));
        }
    }
}
