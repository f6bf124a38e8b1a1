//! Activations held in 16 bits between the products of a layer: what comes of them is what comes of f32, to the rounding of the type.

use std::collections::BTreeMap;

use burn::tensor::FloatDType;
use halfbyte::backends::Cpu;
use halfbyte::data::Batch;
use halfbyte::lora::{Dropout, LoraConfig, attach};
use halfbyte::model::Transformer;
use halfbyte::ops::{Ops, Sequences};
use halfbyte::train::{Recompute, backpropagate};

use crate::assert_close;
use crate::reference::{NF4, expected, golden_batch, model, values, with_adapter};

/// With all that a family's layers have of their own: windows, caps and norms around blocks; norms of heads; biases; projections in one
/// matrix and angles of a part of a head.
const MODELS: [&str; 5] = ["llama-untied", "gemma2", "qwen3", "qwen2", "phi3"];

/// The types that a device has, and what is rounded to them may be off by.
fn types<B: Ops>(device: &B::Device) -> impl Iterator<Item = (FloatDType, f64)> {
    let all = [(FloatDType::BF16, 2e-2), (FloatDType::F16, 3e-3)];
    all.into_iter().filter(|(held, _)| B::supports_dtype(device, (*held).into()))
}

/// A model that drops elements and trains the lengths of rows, its branches open.
fn with_everything<B: Ops>(name: &str, device: &B::Device) -> Transformer<B> {
    let mut model = model::<B>(name, NF4, device);
    attach(&mut model, &LoraConfig { r: 4, lora_dropout: 0.3, use_dora: true, ..Default::default() }, 1).expect("DoRA");
    model.map(|path, parameter| {
        let mut parameter = parameter.clone();
        if path.ends_with("lora_B.weight") {
            parameter.value = parameter.value.ones_like() * 0.02;
        }
        parameter
    })
}

/// What a step finds, of a model in f32 on the CPU too, which the reference's numbers are compared with elsewhere.
struct Found {
    logits: Vec<f32>,
    loss: Vec<f32>,
    gradients: BTreeMap<String, Vec<f32>>,
}

impl Found {
    fn of<B: Ops>(model: &Transformer<B>, batch: &Batch, recompute: Recompute) -> Self {
        let key = Dropout { seed: 3, step: 1, micro: 1 };
        let step = backpropagate(model, batch, 0.1, 16, recompute, Some(key));
        Self {
            logits: values(model.logits(&batch.tokens, &batch.lengths)),
            loss: values(step.loss_sum),
            gradients: step.gradients.into_iter().map(|(path, gradient)| (path, values(gradient))).collect(),
        }
    }

    fn assert_close(&self, what: &str, expected: &Self, tolerance: f64) {
        assert_close(what, &self.logits, &expected.logits, tolerance);
        assert_close(what, &self.loss, &expected.loss, tolerance);
        assert_eq!(self.gradients.len(), expected.gradients.len(), "{what}");
        for (path, gradient) in &self.gradients {
            assert_close(&format!("{what}: {path}"), gradient, &expected.gradients[path], 3.0 * tolerance);
        }
    }
}

/// Logits, loss and all gradients, of layers that are computed again and of graphs that are kept.
pub fn of_16_bits_are_nearly_the_same<B: Ops>(device: &B::Device) {
    let cpu = Default::default();
    for ((held, rounding), name) in types::<B>(device).flat_map(|held| MODELS.map(|name| (held, name))) {
        let batch = golden_batch(&expected(name));
        let models = [
            ("its adapter", with_adapter::<B>(name, device), with_adapter::<Cpu>(name, &cpu)),
            ("DoRA and dropout", with_everything::<B>(name, device), with_everything::<Cpu>(name, &cpu)),
        ];
        for (adapter, mut model, reference) in models {
            let expected = Found::of(&reference, &batch, Recompute::Layers);
            let exact = Found::of(&model, &batch, Recompute::Layers);
            exact.assert_close(&format!("{name} with {adapter}"), &expected, 1e-4);
            model.activations = held;
            for recompute in [Recompute::Layers, Recompute::None] {
                let what = format!("{name} with {adapter} in {held:?}, {recompute:?}");
                let found = Found::of(&model, &batch, recompute);
                found.assert_close(&what, &expected, rounding);
                // Not by chance the same: something was rounded.
                assert_ne!(found.logits, exact.logits, "{what}");
            }
        }
    }
}

/// A cache that many tokens have filled in 16 bits serves those that follow one by one, in f32.
pub fn of_16_bits_go_on_in_a_cache<B: Ops>(device: &B::Device) {
    for ((held, rounding), name) in
        types::<B>(device).flat_map(|held| ["llama-untied", "gemma2"].map(|name| (held, name)))
    {
        let mut model = with_adapter::<B>(name, device);
        let tokens = golden_batch(&expected(name)).tokens[..24].to_vec();
        let whole = values(model.logits(&tokens, &[24]));
        model.activations = held;
        let (mut cache, mut found) = (Vec::new(), Vec::new());
        for new in [0..20, 20..21, 21..24] {
            let passes = model.passes(&Sequences::after(new.start, new.len()));
            found.extend(values(model.head.forward(model.hidden(&tokens[new], &passes, Some(&mut cache)))));
        }
        assert_close(&format!("{name} in {held:?}, through its cache"), &found, &whole, rounding);
    }
}
