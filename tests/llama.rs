//! Tiny random models of every family on the CPU against transformers + PEFT + bitsandbytes.

use std::path::{Path, PathBuf};

use halfbyte::backends::Cpu;
use halfbyte::data::{Batch, Dataset};
use halfbyte::files::{load_adapter, quantize_folder, save_adapter};
use halfbyte::generate::{Sampling, generate};
use halfbyte::lora::{attach, trainable_line};
use halfbyte::model::{Parameter, Transformer, load};
use halfbyte::text::Tokenizer;
use halfbyte::train::{Recipe, Recompute, Run, Trainer, backpropagate, load_recipe, save_checkpoint, whole_graph};
use halfbyte_tests::reference::{
    MODELS, NF4, TRAINED, batch, expected, golden_batch, gradients_match, logits_match, model, tokens, values,
    with_adapter,
};
use halfbyte_tests::{Expected, assert_close, golden, relative_error};
use pollster::block_on;

#[test]
fn logits_match_on_the_cpu() {
    logits_match::<Cpu>(&Default::default());
}

#[test]
fn gradients_match_on_the_cpu() {
    gradients_match::<Cpu>(&Default::default());
}

#[test]
fn layer_wise_gradients_equal_those_of_the_whole_graph() {
    for name in MODELS {
        let model = with_adapter::<Cpu>(name, &Default::default());
        let batch = golden_batch(&expected(name));
        let weight = 1.0 / batch.targets.len() as f64;
        let whole = whole_graph(&model, &batch, weight);
        for recompute in [Recompute::Layers, Recompute::None] {
            let step = backpropagate(&model, &batch, weight, 5, recompute, None);
            assert_close(name, &values(step.loss_sum), &values(whole.loss_sum.clone()), 1e-5);
            assert_eq!(step.gradients.len(), whole.gradients.len());
            for (path, gradient) in step.gradients {
                let of_whole = values(whole.gradients[&path].clone());
                assert_close(&path, &values(gradient), &of_whole, 1e-5);
            }
        }
    }
}

#[test]
fn the_codes_are_those_of_bitsandbytes() {
    for name in TRAINED {
        let expected = expected(name);
        let file = halfbyte::files::Checkpoint::open(golden(name)).expect(name);
        let codes: Vec<&str> = expected.names().into_iter().filter_map(|n| n.strip_prefix("codes.")).collect();
        assert_eq!(codes.len(), 14, "{name}: seven linear layers in each of two layers");
        for path in codes {
            let shape = file.tensor(path).expect(path).shape;
            let shape = [shape[0], shape[1]];
            let data = halfbyte::nf4::quantize(&file.floats(path, &shape).expect(path), shape, 64, true).expect(path);
            assert_eq!(data.packed, expected.bytes(&format!("codes.{path}")), "{name} {path}");
            let halfbyte::nf4::Absmax::Double { codes, nested, offset } = data.absmax else { panic!("double") };
            assert_eq!(codes, expected.bytes(&format!("absmax.{path}")), "{name} {path}");
            assert_eq!(nested, expected.floats(&format!("nested_absmax.{path}")), "{name} {path}");
            assert_eq!(vec![offset], expected.floats(&format!("offset.{path}")), "{name} {path}");
        }
    }
}

#[test]
fn greedy_generation_is_the_same_token_by_token() {
    for name in MODELS {
        let expected = expected(name);
        let model = with_adapter::<Cpu>(name, &Default::default());
        let prompt = tokens(&expected.integers("generate_prompt"));
        let sampling = Sampling { max_new_tokens: 16, ..Default::default() };
        let mut streamed = Vec::new();
        let run = generate(&model, &prompt, &sampling, &[], |token| {
            streamed.push(token);
            std::ops::ControlFlow::Continue(())
        });
        let (made, _) = block_on(run).expect(name);
        assert_eq!(made, tokens(&expected.integers("generate_ids")), "{name}");
        assert_eq!(made, streamed);
    }
}

#[test]
fn a_broken_adapter_makes_no_text() {
    let model = with_adapter::<Cpu>(MODELS[0], &Default::default());
    let broken = model.map(&mut |path: &str, parameter: &Parameter<Cpu>| match path.ends_with("lora_B.weight") {
        true => Parameter { value: parameter.value.clone() * f32::NAN, trainable: parameter.trainable },
        false => parameter.clone(),
    });
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, ..Default::default() };
        let made = block_on(generate(&broken, &[1, 2], &sampling, &[], |_| std::ops::ControlFlow::Continue(())));
        assert!(made.expect_err("no number").to_string().contains("NaN"));
    }
}

#[test]
fn the_trainable_line_counts_as_peft_does() {
    for name in MODELS {
        let counted = expected(name).integers("trainable");
        let mut model = with_adapter::<Cpu>(name, &Default::default());
        let (trained, all) = model.parameter_counts();
        assert_eq!((trained as i64, all as i64), (counted[0], counted[1]), "{name}");
        assert!(trainable_line((trained, all)).starts_with("trainable params: "));
    }
    assert_eq!(
        trainable_line((20_971_520, 8_051_232_768)),
        "trainable params: 20,971,520 || all params: 8,051,232,768 || trainable%: 0.2605"
    );
}

#[test]
fn a_saved_adapter_is_what_peft_would_have_saved() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in MODELS {
        let mut model = model::<Cpu>(name, NF4, &Default::default());
        let source = golden(name).join("adapter");
        let config = load_adapter(&mut model, &source, true).expect(name);
        let target: PathBuf = folder.path().join(name);
        block_on(save_adapter(&mut model, &config.lora(), "base", &target)).expect(name);
        let (ours, theirs) = (tensors(&target), tensors(&source));
        assert_eq!(ours, theirs, "{name}");
        let read = |folder: &PathBuf| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).expect(name)).expect(name)
        };
        let (ours, theirs) = (read(&target), read(&source));
        for key in ["r", "lora_alpha", "peft_type", "task_type", "use_rslora", "bias", "inference_mode"] {
            assert_eq!(ours[key], theirs[key], "{name} {key}");
        }
        let keys: Vec<&String> = ours.as_object().expect("an object").keys().collect();
        assert!(keys.is_sorted());
    }
}

fn tensors(folder: &std::path::Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let file = Expected::open(&folder.join("adapter_model.safetensors"));
    file.names().iter().map(|n| (n.to_string(), file.shape(n), file.floats(n))).collect()
}

#[test]
fn the_curve_follows_the_reference_for_twenty_steps() {
    for name in TRAINED {
        let expected = expected(name);
        let (ids, labels) = (expected.integers("curve_input_ids"), expected.integers("curve_labels"));
        let batches: Vec<Vec<Batch>> = ids
            .chunks(96)
            .zip(labels.chunks(96))
            .map(|(ids, labels)| ids.chunks(48).zip(labels.chunks(48)).map(|(i, l)| batch(i, l, 24)).collect())
            .collect();
        let model = with_adapter::<Cpu>(name, &Default::default());
        let config = halfbyte::train::TrainerConfig {
            max_grad_norm: 1.0,
            adamw: halfbyte::optim::AdamWConfig { weight_decay: 0.01, ..Default::default() },
            ..Default::default()
        };
        let schedule =
            halfbyte::train::Schedule { kind: Default::default(), peak: 5e-3, warmup: 2, total: 20, floor: 0.0 };
        let mut state = halfbyte::train::Optimization::new(model, config, 0);
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for (step, batches) in batches.iter().enumerate() {
            let rate = schedule.rate(step);
            let expected_rate = f64::from(expected.floats("curve_lr")[step]);
            assert!((rate - expected_rate).abs() < 1e-9, "{name}: rate of step {step}: {rate}, {expected_rate}");
            let (loss, norm) = block_on(state.step(batches, rate)).expect(name);
            losses.push(loss as f32);
            norms.push(norm as f32);
        }
        for (step, (found, loss)) in losses.iter().zip(expected.floats("curve_loss")).enumerate() {
            assert!((found / loss - 1.0).abs() < 1e-3, "{name}: loss of step {step}: {found}, expected {loss}");
        }
        let error = relative_error(&norms, &expected.floats("curve_grad_norm"));
        assert!(error < 1e-3, "{name}: gradient norms are off by {error:.1e}");
    }
}

/// The shipped model quantized to a folder, and an adapter trained on it. What is written to `out/check` is compared with
/// PEFT and bitsandbytes by `cargo xtask golden`.
#[test]
fn what_is_written_is_what_was_computed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (base, out) = (root.join("models/wordnet-4m"), root.join("out/check"));
    let (tokenizer, device) = (Tokenizer::from_folder(&base).expect("a tokenizer"), Default::default());
    let mut recipe: Recipe = load_recipe(&root.join("recipes/kinds.toml"), &[]).expect("a recipe");
    recipe.training.max_steps = 10;
    recipe.model = base.display().to_string();
    recipe.lora.use_rslora = true;
    let ids = tokenizer.encode("Question: What is this: a person who bakes bread?\nAnswer:", true).expect("tokens");
    let logits = |model: &Transformer<Cpu>| values(model.logits(&ids, &[ids.len()]));
    let open = |folder: &Path| load::<Cpu>(folder, NF4, &device, &mut |_| {}).expect("a model");
    if out.exists() {
        std::fs::remove_dir_all(&out).expect("what an earlier run left");
    }
    quantize_folder(&base, &out.join("model"), (64, true), &[], &mut |_| {}).expect("a quantized folder");
    let (mut model, of_base) = (open(&base), logits(&open(&out.join("model"))));
    assert_eq!(logits(&model), of_base);

    attach(&mut model, &recipe.lora, recipe.seed).expect("an adapter");
    assert_eq!(logits(&model), of_base, "a new adapter changes nothing");
    let data = Dataset::load(&root.join(&recipe.data.train), &tokenizer, 128, recipe.data.train_on).expect("data");
    let held_out = Dataset { examples: data.examples[..8].to_vec(), ..Dataset::default() };
    let run = Run::new(&recipe, Path::new(&recipe.model), &data, Some(&held_out)).expect("a run");
    let mut trainer = Trainer::new(model, data, recipe.training, recipe.seed).expect("a trainer");
    let mut losses = Vec::new();
    while let Some(metrics) = block_on(trainer.step()).expect("a finite step") {
        losses.push(metrics.loss);
    }
    assert!(losses[9] < losses[0], "{losses:?}");
    let folder = out.join("adapter");
    block_on(save_adapter(trainer.model_mut(), &recipe.lora, "models/wordnet-4m", &folder)).expect("an adapter");
    block_on(trainer.evaluate(&held_out)).expect("an evaluation");
    block_on(save_checkpoint(&mut trainer, &run, &out)).expect("a checkpoint");
    let adapted = logits(trainer.model());
    let mut again = open(&base);
    load_adapter(&mut again, &folder, false).expect("an adapter");
    assert_eq!(logits(&again), adapted);
    assert!(relative_error(&adapted, &of_base) > 0.01);
    let json = serde_json::json!({ "ids": ids, "base": of_base, "adapted": adapted });
    halfbyte::files::write_atomic(out.join("logits.json"), json.to_string().as_bytes()).expect("a file");
}
