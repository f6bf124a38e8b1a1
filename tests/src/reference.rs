//! The comparisons with transformers + PEFT + bitsandbytes that every backend has to pass.

use halfbyte::data::Batch;
use halfbyte::files::load_adapter;
use halfbyte::model::{BaseWeights, Transformer, load};
use halfbyte::ops::Ops;
use halfbyte::optim::Gradients;
use halfbyte::train::{Recompute, backpropagate};

use crate::{Expected, assert_close, golden};

/// The tiny models, one or more of every family.
pub const MODELS: [&str; 8] = ["llama-tied", "llama-untied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];
/// Those of them with what no family changes: bitsandbytes' codes and a curve of training steps.
pub const TRAINED: [&str; 2] = ["llama-tied", "llama-untied"];
/// How the reference quantized them.
pub const NF4: BaseWeights = BaseWeights::Nf4 { block_size: 64, double_quant: true };

/// A tiny model without adapter.
pub fn model<B: Ops>(name: &str, base: BaseWeights, device: &B::Device) -> Transformer<B> {
    load(&golden(name), base, device, &mut |_| {}).expect(name)
}

/// A tiny model in NF4 with the adapter that PEFT wrote.
pub fn with_adapter<B: Ops>(name: &str, device: &B::Device) -> Transformer<B> {
    let mut model = model::<B>(name, NF4, device);
    load_adapter(&mut model, golden(name).join("adapter"), true).expect(name);
    model
}

/// What the reference computed with a model.
pub fn expected(name: &str) -> Expected {
    Expected::open(&golden(name).join("expect.safetensors"))
}

/// Token ids.
pub fn tokens(values: &[i64]) -> Vec<u32> {
    values.iter().map(|v| *v as u32).collect()
}

/// Rows of `length` tokens with PyTorch's labels, -100 where nothing is trained.
pub fn batch(ids: &[i64], labels: &[i64], length: usize) -> Batch {
    let targets = labels.iter().enumerate().filter(|(i, label)| i % length > 0 && **label != -100);
    Batch {
        lengths: vec![length; ids.len() / length],
        tokens: tokens(ids),
        targets: targets.map(|(i, label)| (i - 1, *label as u32)).collect(),
    }
}

/// The batch that logits, loss and gradients were computed on.
pub fn golden_batch(expected: &Expected) -> Batch {
    batch(&expected.integers("input_ids"), &expected.integers("labels"), 24)
}

/// A tensor on the host.
pub fn values<B: Ops, const D: usize>(tensor: burn::tensor::Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().expect("f32")
}

/// Logits of the plain, the quantized and the adapted model, to 1e-4.
pub fn logits_match<B: Ops>(device: &B::Device) {
    for name in MODELS {
        let expected = expected(name);
        let ids = tokens(&expected.integers("input_ids"));
        for (base, key) in [(BaseWeights::Full, "logits"), (NF4, "nf4_logits")] {
            let found = values(model::<B>(name, base, device).logits(&ids, &[24; 3]));
            assert_close(&format!("{name} {key}"), &found, &expected.floats(key), 1e-4);
        }
        let found = values(with_adapter::<B>(name, device).logits(&ids, &[24; 3]));
        assert_close(&format!("{name} lora_logits"), &found, &expected.floats("lora_logits"), 1e-4);
    }
}

/// The loss and every adapter gradient, to 1e-4, with and without recomputation.
pub fn gradients_match<B: Ops>(device: &B::Device) {
    for name in MODELS {
        let expected = expected(name);
        let model = with_adapter::<B>(name, device);
        let batch = golden_batch(&expected);
        let weight = 1.0 / batch.targets.len() as f64;
        for recompute in [Recompute::Layers, Recompute::LayersFromHost, Recompute::None] {
            let step = backpropagate(&model, &batch, weight, 7, recompute, None);
            let loss = f64::from(values(step.loss_sum)[0]) * weight;
            let expected_loss = f64::from(expected.floats("lora_loss")[0]);
            assert!((loss / expected_loss - 1.0).abs() < 1e-4, "{name}: loss {loss}, expected {expected_loss}");
            gradients_are(name, &expected, step.gradients);
        }
    }
}

/// Compares gradients with PEFT's.
fn gradients_are<B: Ops>(name: &str, expected: &Expected, gradients: Gradients<B>) {
    let keys: Vec<&str> = expected.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
    assert_eq!(keys.len(), gradients.len(), "{name}: as many gradients as PEFT has");
    for (path, gradient) in gradients {
        let key = format!("grad.base_model.model.{path}");
        assert_close(&format!("{name} {key}"), &values(gradient), &expected.floats(&key), 1e-4);
    }
}
