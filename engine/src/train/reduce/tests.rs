//! Sums over ranks: what is sent when, and what comes of it.

use std::sync::Mutex;
use std::time::Duration;

use super::super::backprop::{Flight, Recompute, Settings};
use super::super::pipeline::pipeline;
use super::super::sums::{Sums, Total};
use super::*;
use crate::backends::Cpu;
use crate::data::{Batch, Example};
use crate::lora::{LoraConfig, attach};
use crate::model::{BaseWeights, DeviceMap, ModelConfig, synthetic};

const LAYERS: usize = 3;

fn model() -> Transformer<Cpu> {
    let json = br#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "rms_norm_eps": 1e-5}"#;
    let config = ModelConfig::parse("config.json", json).expect("a model");
    let base = BaseWeights::Nf4 { block_size: 64, double_quant: true };
    let place = DeviceMap::Whole(Default::default());
    let mut model = synthetic::<Cpu>(config, base, 3, &place, &mut |_| {}).expect("a model");
    let modules_to_save = vec!["lm_head".to_string()];
    let lora = LoraConfig { r: 4, modules_to_save, ..LoraConfig::default() };
    attach(&mut model, &lora, 7).expect("an adapter");
    model
}

/// The first of two ranks, the other of which always has the same, and which tells how many values are added up.
struct Twins(Mutex<Sender<usize>>);

impl Collective for Twins {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        2
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        values.iter_mut().for_each(|value| *value *= 2.0);
        let _ = self.0.lock().expect("a sender").send(values.len());
        Ok(())
    }

    fn agree(&self, _: &str, _: [u8; 32]) -> Result<()> {
        Ok(())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

fn twins() -> (Arc<dyn Collective>, impl Fn() -> usize) {
    let (counts, counted) = channel();
    let next = move || counted.recv_timeout(Duration::from_secs(60)).expect("a part is added up");
    (Arc::new(Twins(Mutex::new(counts))), next)
}

fn values(tensor: &Tensor<Cpu, 2>) -> Vec<f32> {
    tensor.to_data().to_vec().expect("f32")
}

#[test]
fn a_layer_is_added_up_before_the_layers_below_it_are_passed() {
    let (model, (ranks, next)) = (model(), twins());
    let mut of_layers: BTreeMap<usize, Vec<(String, [usize; 2])>> = BTreeMap::new();
    model.visit(|path, parameter| {
        if let Some((layer, _)) = in_layer(path).filter(|_| parameter.trainable) {
            of_layers.entry(layer).or_default().push((path.into(), parameter.value.dims()));
        }
    });
    assert_eq!(of_layers.len(), LAYERS);
    let missing = of_layers[&1][0].0.clone();
    let mut reduction = Reduction::new(ranks.clone(), &model, 2, 1).expect("a thread");
    let mut gradients = Gradients::new();
    let mut squares = 0.0;
    for micro_batch in 0..2 {
        for (layer, places) in of_layers.iter().rev() {
            for (path, shape) in places.iter().filter(|(path, _)| *path != missing) {
                let value = Tensor::full(*shape, *layer as f32 + 1.0, &model.device());
                gradients.insert(path.clone(), value);
                squares += micro_batch as f64 * (shape[0] * shape[1]) as f64 * (2.0 * (*layer as f64 + 1.0)).powi(2);
            }
            reduction.passed(*layer, &mut gradients);
            let here = gradients.keys().filter(|path| in_layer(path).is_some_and(|(of, _)| of == *layer)).count();
            if micro_batch == 0 {
                assert!(here > 0, "layer {layer} was sent before all micro-batches had passed it");
            } else {
                assert_eq!(here, 0, "layer {layer}");
                let count: usize = places.iter().map(|(_, shape)| shape[0] * shape[1] + 1).sum();
                assert_eq!(next(), count, "layer {layer}");
            }
        }
    }
    let loss = Tensor::from_data([1.5f32], &model.device());
    let reduced = reduction.finish(&model, gradients, Some(loss)).expect("sums");
    assert_eq!((reduced.loss, reduced.norm), (3.0, squares.sqrt()));
    // Neither has one of the head.
    let places = of_layers.values().flatten().filter(|(path, _)| *path != missing);
    assert_eq!(reduced.gradients.len(), places.clone().count());
    for (path, [rows, columns]) in places {
        let (layer, _) = in_layer(path).expect("a layer");
        assert_eq!(values(&reduced.gradients[path]), vec![2.0 * (layer as f32 + 1.0); rows * columns], "{path}");
    }
    assert_eq!(Arc::strong_count(&ranks), 1, "a thread is left");
}

#[test]
fn a_rank_without_micro_batches_adds_nothing_to_the_same_parts() {
    let (model, (ranks, next)) = (model(), twins());
    let mut trained = 0;
    model.visit(|_, parameter| {
        trained += usize::from(parameter.trainable) * (parameter.value.shape().num_elements() + 1)
    });
    let sums = Sums::over(Some(&ranks), &model, 0).expect("a thread");
    let Total { gradients, .. } = sums.finish(&model, None, 1.0).expect("sums");
    // The layers are small enough to go together; then come the head and the loss.
    assert_eq!(next() + next(), trained + 2);
    assert!(gradients.is_empty());
}

#[test]
fn a_backward_pass_sends_what_it_leaves_behind() {
    let (model, (ranks, next)) = (model(), twins());
    let examples = [[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]]
        .map(|tokens| Example { tokens: tokens.to_vec(), trained: vec![true; tokens.len()] });
    let batches = examples.each_ref().map(|example| Batch::collate([example]));
    let weight = 0.125;
    for recompute in [Recompute::Layers, Recompute::LayersFromHost, Recompute::None] {
        let settings = Settings { weight, chunk: 4, recompute };
        let backward = |sums: &mut Sums<Cpu>| {
            let flights = batches.iter().map(|b| Flight::new(&model, model.embed(&b.tokens), b, settings, None));
            pipeline(flights.collect(), sums).reduce(|a, b| a + b)
        };
        let mut alone = Sums::alone();
        let loss = backward(&mut alone);
        let alone = alone.finish(&model, loss, weight).expect("sums");
        let mut sums = Sums::over(Some(&ranks), &model, batches.len()).expect("a thread");
        let loss = backward(&mut sums);
        let of_layers = alone.gradients.iter().filter(|(path, _)| in_layer(path).is_some());
        let count: usize = of_layers.map(|(_, gradient)| gradient.shape().num_elements() + 1).sum();
        assert_eq!(next(), count, "before the sums are asked for");
        let both = sums.finish(&model, loss, weight).expect("sums");
        next();
        assert!(both.gradients.keys().eq(alone.gradients.keys()) && both.gradients.contains_key("lm_head.weight"));
        for (path, gradient) in &both.gradients {
            let twice: Vec<f32> = values(&alone.gradients[path]).iter().map(|value| 2.0 * value).collect();
            assert_eq!(values(gradient), twice, "{path}");
        }
        for (both, alone) in [(both.loss, alone.loss), (both.norm, alone.norm)] {
            let [both, alone] = [both, alone].map(|value| value.into_scalar());
            assert!((both / (2.0 * alone) - 1.0).abs() < 1e-6, "{both}, alone {alone}");
        }
    }
}
