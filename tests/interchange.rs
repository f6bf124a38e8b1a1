//! Adapters, merged models, exports and 4-bit checkpoints: what others wrote is read, and what is written is what they read.

use std::path::{Path, PathBuf};

use halfbyte::backends::Cpu;
use halfbyte::files::{AdapterFile, adapter_config, load_adapter, save_adapter};
use halfbyte::lora::{LoraConfig, Targets, attach};
use halfbyte::model::Transformer;
use halfbyte::train::{Recompute, backpropagate, whole_graph};
use halfbyte_tests::reference::{NF4, expected, golden_batch, model, tokens, values};
use halfbyte_tests::{Expected, assert_close, golden};
use pollster::block_on;

/// The adapters that PEFT wrote.
const CASES: [&str; 5] = ["dora", "dora-biased", "patterns", "saved-tied", "saved-norms"];

fn folder(case: &str) -> PathBuf {
    golden("interchange").join(case)
}

fn base(case: &str) -> String {
    let config = adapter_config(folder(case)).expect(case);
    config.base_model_name_or_path.expect("the base's name")
}

/// The base in 4 bits with the adapter that PEFT wrote.
fn adapted(case: &str) -> Transformer<Cpu> {
    let mut model = model::<Cpu>(&base(case), NF4, &Default::default());
    load_adapter(&mut model, folder(case), true).expect(case);
    model
}

fn reference(case: &str) -> Expected {
    Expected::open(&folder(case).join("expect.safetensors"))
}

/// The last three positions' logits of every sequence of the fixture.
fn logits(model: &Transformer<Cpu>, base: &str) -> Vec<f32> {
    let ids = tokens(&expected(base).integers("input_ids"));
    let all = values(model.logits(&ids, &[24; 3]));
    let row = all.len() / 72;
    all.chunks(24 * row).flat_map(|sequence| sequence[21 * row..].to_vec()).collect()
}

#[test]
fn loss_logits_and_every_gradient_are_those_of_peft() {
    for case in CASES {
        let (model, base, reference) = (adapted(case), base(case), reference(case));
        assert_close(&format!("{case} logits"), &logits(&model, &base), &reference.floats("logits"), 1e-4);
        let batch = golden_batch(&expected(&base));
        let weight = 1.0 / batch.targets.len() as f64;
        let keys: Vec<&str> = reference.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
        let steps = [Recompute::Layers, Recompute::None].map(|r| backpropagate(&model, &batch, weight, 7, r, None));
        for step in steps.into_iter().chain([whole_graph(&model, &batch, weight)]) {
            let (loss, of_peft) = (f64::from(values(step.loss_sum)[0]) * weight, reference.floats("loss")[0]);
            assert!((loss / f64::from(of_peft) - 1.0).abs() < 1e-4, "{case}: loss {loss}, expected {of_peft}");
            let found: Vec<String> = step.gradients.keys().map(|k| format!("grad.base_model.model.{k}")).collect();
            assert_eq!(found, keys, "{case}");
            for (path, gradient) in step.gradients {
                let key = format!("grad.base_model.model.{path}");
                assert_close(&format!("{case} {key}"), &values(gradient), &reference.floats(&key), 1e-4);
            }
        }
    }
}

#[test]
fn an_adapter_is_written_as_peft_writes_it() {
    let out = tempfile::tempdir().expect("a temporary folder");
    for case in CASES {
        let config = adapter_config(folder(case)).expect(case);
        let target = out.path().join(case);
        block_on(save_adapter(&mut adapted(case), &config.lora(), &base(case), &target)).expect(case);
        let all = |folder: &Path| {
            let file = Expected::open(&folder.join("adapter_model.safetensors"));
            let tensors = file.names().into_iter().map(|n| (n.to_string(), file.shape(n), file.floats(n)));
            tensors.collect::<Vec<_>>()
        };
        assert_eq!(all(&target), all(&folder(case)), "{case}");
        assert_eq!(adapter_config(&target).expect(case), config, "{case}");
    }
}

/// The layers that PEFT adapted, and the shapes that it gave them, for each configuration.
#[test]
fn attaching_adapts_what_peft_adapts() {
    for case in CASES {
        let config = adapter_config(folder(case)).expect(case).lora();
        // PEFT takes names that exclude_modules left nothing of; here each has to be in the model.
        let mut fresh = model::<Cpu>(&base(case), NF4, &Default::default());
        let config = match case {
            "saved-tied" => LoraConfig {
                target_modules: Targets::Names(["q_proj", "v_proj", "o_proj"].map(Into::into).into()),
                ..config
            },
            _ => config,
        };
        attach(&mut fresh, &config, 1).expect(case);
        let shapes = |model: &Transformer<Cpu>| {
            let mut shapes = Vec::new();
            model.visit(|path, parameter| {
                if parameter.trainable {
                    shapes.push((path.to_string(), parameter.value.dims()));
                }
            });
            shapes
        };
        assert_eq!(shapes(&fresh), shapes(&adapted(case)), "{case}");
        // A new adapter changes nothing: DoRA's lengths are those of the rows that they replace.
        let plain = logits(&model::<Cpu>(&base(case), NF4, &Default::default()), &base(case));
        assert_close(case, &logits(&fresh, &base(case)), &plain, 1e-6);
    }
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut LoraConfig)| {
        let mut config = LoraConfig { target_modules: Targets::Names(vec!["q_proj".into()]), ..Default::default() };
        change(&mut config);
        let mut model = model::<Cpu>("llama-tied", NF4, &Default::default());
        let error = attach(&mut model, &config, 0).expect_err("a mistake").to_string();
        assert_eq!(model.parameter_counts().0, 0, "the model is unchanged after: {error}");
        assert!(model.head.tied);
        error
    };
    assert!(refused(&|c| c.modules_to_save = vec!["down_proj".into()]).contains("`down_proj` is held in 4 bits"));
    assert!(refused(&|c| c.modules_to_save = vec!["score".into()]).contains("`score` is no module"));
    assert!(refused(&|c| c.rank_pattern = [("q_proj".into(), 0)].into()).contains("rank_pattern.q_proj"));
    assert!(refused(&|c| c.rank_pattern = [("(".into(), 1)].into()).contains("no regular expression"));
    assert!(refused(&|c| c.r = usize::MAX).contains("lora.r"));
    assert!(refused(&|c| c.layers_to_transform = vec![9]).contains("layers_to_transform = [9]"));
    assert!(refused(&|c| c.layers_pattern = vec!["layers".into()]).contains("layers_pattern"));
    assert!(refused(&|c| c.alpha_pattern = [("q_proj".into(), f64::NAN)].into()).contains("alpha_pattern.q_proj"));
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let mut tied = model::<Cpu>("llama-tied", NF4, &Default::default());
    let error = load_adapter(&mut tied, folder("dora-biased"), false).expect_err("another model").to_string();
    assert!(error.contains("adapter_model.safetensors") && error.contains("shape"), "{error}");
    assert!(AdapterFile::open(folder("dora")).expect("an adapter").layers().len() == 6);
}
