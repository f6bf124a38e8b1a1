//! Adapters, merged models, exports and 4-bit checkpoints: what others wrote is read, and what is written is what they read.

use std::path::{Path, PathBuf};

use halfbyte::backends::Cpu;
use halfbyte::files::{
    AdapterFile, Checkpoint, Consumer, MergeBase, MergeDtype, MergeOptions, adapter_base, adapter_config,
    export_adapter, load_adapter, merge_folder, quantize_folder, save_adapter, stored_weight, write_atomic,
};
use halfbyte::lora::{LoraConfig, Targets, attach};
use halfbyte::model::{BaseWeights, Transformer, load};
use halfbyte::train::{Recompute, backpropagate, whole_graph};
use halfbyte_tests::reference::{NF4, expected, golden_batch, model, tokens, values};
use halfbyte_tests::{Expected, assert_close, golden, relative_error, root};
use pollster::block_on;
use serde_json::json;

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

/// What bitsandbytes wrote, in each storage type.
#[test]
fn stored_weights_decode_to_what_bitsandbytes_decodes() {
    let file = Checkpoint::open_file(folder("stored.safetensors")).expect("a fixture");
    let decoded = Expected::open(&folder("decoded.safetensors"));
    for kind in ["plain", "double"] {
        for storage in ["uint8", "bfloat16", "float16", "float32"] {
            let name = format!("nf4-{kind}-{storage}.weight");
            let data = stored_weight(&file, &name).expect(&name).expect("a weight in 4 bits");
            assert_eq!((data.shape, data.dequantize()), ([20, 96], decoded.floats(kind)), "{name}");
        }
        let error = stored_weight(&file, &format!("fp4-{kind}-uint8.weight")).expect_err("fp4").to_string();
        assert!(error.contains("fp4-") && error.contains("not supported"), "{error}");
    }
    assert!(stored_weight(&file, "no.weight").expect("no weight").is_none());
}

#[test]
fn skipped_modules_stay_as_they_are() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let skip = ["model.layers.0.mlp.down_proj", "k_proj"].map(String::from);
    let target = out.path().join("model");
    quantize_folder(&golden("llama-untied"), &target, (64, true), &skip, &mut |_| {}).expect("a quantized folder");
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(target.join("config.json")).expect("a file")).expect("JSON");
    let listed = &json["quantization_config"]["llm_int8_skip_modules"];
    assert_eq!(*listed, json!(["lm_head", skip[0], skip[1]]));
    let model = load::<Cpu>(&target, NF4, &Default::default(), &mut |_| {}).expect("a model");
    let mut dense = Vec::new();
    model.visit(|path, _| {
        if path.contains("_proj.weight") {
            dense.push(path.to_string());
        }
    });
    let expected =
        ["0.self_attn.k_proj", "0.mlp.down_proj", "1.self_attn.k_proj"].map(|p| format!("model.layers.{p}.weight"));
    assert_eq!(dense, expected);
    let none = out.path().join("none");
    let skip = ["q_projection".to_string()];
    let error = quantize_folder(&golden("llama-untied"), &none, (64, true), &skip, &mut |_| {}).expect_err("no module");
    assert!(error.to_string().contains("`q_projection` is no linear layer") && !none.exists(), "{error}");
}

fn merge(case: &str, output: &Path, base: MergeBase, dtype: MergeDtype) -> Vec<halfbyte::files::WeightDrift> {
    // Small enough that there are several shards.
    let options = MergeOptions { base, dtype, trained_on: NF4, shard: 100_000 };
    merge_folder(&golden(&self::base(case)), &folder(case), output, &options, &mut |_| {}).expect(case)
}

#[test]
fn a_merged_model_is_the_trained_one() {
    let out = tempfile::tempdir().expect("a temporary folder");
    for case in CASES {
        let (trained, base) = (logits(&adapted(case), &base(case)), base(case));
        for (dtype, bound) in [(MergeDtype::F32, 1e-5), (MergeDtype::F16, 2e-3), (MergeDtype::Bf16, 2e-2)] {
            let target = out.path().join(format!("{case}-{}", dtype.name()));
            let drift = merge(case, &target, MergeBase::Dequantized, dtype);
            assert_eq!(drift.len(), 14, "{case}: seven linear layers in each of two layers");
            let rounding = drift.iter().map(|d| d.error).fold(0.0, f64::max);
            assert!(rounding < bound && (rounding == 0.0) == (dtype == MergeDtype::F32), "{case}: {rounding}");
            let merged = load::<Cpu>(&target, BaseWeights::Full, &Default::default(), &mut |_| {}).expect(case);
            // A head or embedding that was trained on its own is not the other one any more.
            assert_eq!(merged.head.tied, base == "llama-tied" && case != "saved-tied", "{case}");
            assert!(target.join("model.safetensors.index.json").exists());
            assert_close(&format!("{case} {}", dtype.name()), &logits(&merged, &base), &trained, bound);
        }
        // Into the original weights: what the quantization changed is missing, and is what is reported.
        let target = out.path().join(format!("{case}-original"));
        let drift = merge(case, &target, MergeBase::Original, MergeDtype::F32);
        assert!(drift.iter().all(|d| d.error > 0.02 && d.error < 0.15), "{case}: {drift:?}");
        let merged = load::<Cpu>(&target, BaseWeights::Full, &Default::default(), &mut |_| {}).expect(case);
        let mut original = model::<Cpu>(&base, BaseWeights::Full, &Default::default());
        load_adapter(&mut original, folder(case), false).expect(case);
        assert_close(case, &logits(&merged, &base), &logits(&original, &base), 1e-5);
        assert!(relative_error(&logits(&merged, &base), &trained) > 1e-3, "{case}");
    }
}

/// A run with `load_in_4bit = false`: how the base was held is written beside the adapter, and a merge follows it.
#[test]
fn an_adapter_of_a_base_in_full_precision_is_merged_into_it() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let (base, config) = ("llama-untied", adapter_config(folder("patterns")).expect("an adapter"));
    for held in [BaseWeights::Full, NF4, BaseWeights::Nf4 { block_size: 128, double_quant: false }] {
        let mut model = model::<Cpu>(base, held, &Default::default());
        load_adapter(&mut model, folder("patterns"), false).expect("an adapter");
        let [adapter, target] = ["adapter", "merged"].map(|name| out.path().join(format!("{name}-{held:?}")));
        block_on(save_adapter(&mut model, &config.lora(), base, &adapter)).expect("an adapter");
        let trained_on = adapter_base(&adapter).expect("a file").expect("a record");
        assert_eq!(trained_on, held);
        let options = MergeOptions { base: MergeBase::Dequantized, dtype: MergeDtype::F32, trained_on, shard: 0 };
        let drift = merge_folder(&golden(base), &adapter, &target, &options, &mut |_| {}).expect("a merged model");
        assert!(drift.iter().all(|d| d.error == 0.0));
        let merged = load::<Cpu>(&target, BaseWeights::Full, &Default::default(), &mut |_| {}).expect("a model");
        assert_close(&format!("{held:?}"), &logits(&merged, base), &logits(&model, base), 1e-5);
    }
}

/// Whatever the recipe says of quantizing: weights that are stored in 4 bits stay as they are.
#[test]
fn an_adapter_on_stored_4_bit_weights_says_how_they_are_stored() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let (nf4, adapter) = (out.path().join("nf4"), out.path().join("adapter"));
    quantize_folder(&golden("llama-tied"), &nf4, (128, false), &[], &mut |_| {}).expect("a quantized folder");
    for asked in [NF4, BaseWeights::Full] {
        let mut model = load::<Cpu>(&nf4, asked, &Default::default(), &mut |_| {}).expect("a model");
        let lora = LoraConfig { target_modules: Targets::Names(vec!["q_proj".into()]), ..Default::default() };
        attach(&mut model, &lora, 0).expect("an adapter");
        block_on(save_adapter(&mut model, &lora, "nf4", &adapter)).expect("an adapter");
        let held = adapter_base(&adapter).expect("a file");
        assert_eq!(held, Some(BaseWeights::Nf4 { block_size: 128, double_quant: false }), "{asked:?}");
    }
}

#[test]
fn a_merge_without_what_was_trained_is_refused() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let (adapter, target) = (out.path().join("adapter"), out.path().join("merged"));
    std::fs::create_dir(&adapter).expect("a folder");
    let weights = "adapter_model.safetensors";
    std::fs::copy(folder("dora").join(weights), adapter.join(weights)).expect("a file");
    let json = std::fs::read(folder("dora").join("adapter_config.json")).expect("an adapter");
    let mut json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    json["modules_to_save"] = json!(["lm_head"]);
    std::fs::write(adapter.join("adapter_config.json"), json.to_string()).expect("a file");
    let options = MergeOptions { base: MergeBase::Dequantized, dtype: MergeDtype::F32, trained_on: NF4, shard: 0 };
    let merged = merge_folder(&golden("llama-tied"), &adapter, &target, &options, &mut |_| {});
    let error = merged.expect_err("no head").to_string();
    assert!(error.contains("lm_head.weight") && error.contains("modules_to_save") && !target.exists(), "{error}");
}

#[test]
fn a_merge_that_cannot_be_is_refused() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let (nf4, target) = (out.path().join("nf4"), out.path().join("merged"));
    quantize_folder(&golden("llama-tied"), &nf4, (64, true), &[], &mut |_| {}).expect("a quantized folder");
    let merge = |model: &Path, case: &str, base, dtype| {
        let options = MergeOptions { base, dtype, trained_on: NF4, shard: 0 };
        merge_folder(model, &folder(case), &target, &options, &mut |_| {})
    };
    let error = merge(&nf4, "dora", MergeBase::Original, MergeDtype::F32).expect_err("4 bits").to_string();
    assert!(error.contains("holds 4-bit weights") && !target.exists(), "{error}");
    let error = merge(&nf4, "dora-biased", MergeBase::Dequantized, MergeDtype::F32).expect_err("another model");
    assert!(error.to_string().contains("shape") && !target.exists(), "{error}");
    let drift = merge(&nf4, "dora", MergeBase::Dequantized, MergeDtype::F32).expect("a merged model");
    assert!(drift.iter().all(|d| d.error == 0.0));
    let merged = load::<Cpu>(&target, BaseWeights::Full, &Default::default(), &mut |_| {}).expect("a model");
    assert_close("from 4 bits", &logits(&merged, "llama-tied"), &logits(&adapted("dora"), "llama-tied"), 1e-5);
    let error = merge(&nf4, "dora", MergeBase::Dequantized, MergeDtype::F32).expect_err("taken").to_string();
    assert!(error.contains("is there already"), "{error}");
}

/// An adapter with every pattern but without what no server can do; PEFT computed its logits above.
#[test]
fn an_export_computes_what_the_adapter_does() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let trained = logits(&adapted("patterns"), "llama-untied");
    // vLLM reads use_rslora, so that it stays.
    for (consumer, changes) in [(Consumer::Vllm, 2), (Consumer::Sglang, 3)] {
        let target = out.path().join(format!("{consumer:?}"));
        let notes = export_adapter(&folder("patterns"), &target, consumer, None).expect("an export");
        assert_eq!(notes.len(), changes, "{notes:?}");
        let lora = adapter_config(&target).expect("an adapter").lora();
        assert!(lora.rank_pattern.is_empty() && lora.alpha_pattern.is_empty());
        assert_eq!(lora.use_rslora, consumer == Consumer::Vllm);
        assert!(lora.layers_to_transform.is_empty());
        let mut model = model::<Cpu>("llama-untied", NF4, &Default::default());
        load_adapter(&mut model, &target, false).expect("an adapter");
        assert_close("exported", &logits(&model, "llama-untied"), &trained, 1e-6);
    }
    // rsLoRA alone: vLLM reads it, the others get its scale in lora_alpha.
    let plain = golden("llama-untied/adapter");
    for (consumer, alpha, rslora) in [(Consumer::Vllm, 8.0, true), (Consumer::Sglang, 16.0, false)] {
        let target = out.path().join(format!("rslora-{consumer:?}"));
        export_adapter(&plain, &target, consumer, None).expect("an export");
        let lora = adapter_config(&target).expect("an adapter").lora();
        assert_eq!((lora.lora_alpha, lora.use_rslora, lora.r), (alpha, rslora, 4));
    }
    for case in ["dora", "saved-norms"] {
        let target = out.path().join(case);
        let error = export_adapter(&folder(case), &target, Consumer::Vllm, None).expect_err(case).to_string();
        assert!(error.contains("halfbyte merge") && !target.exists(), "{error}");
    }
    for consumer in [Consumer::Vllm, Consumer::Ollama] {
        let target = out.path().join("another");
        let error = export_adapter(&plain, &target, consumer, Some(&golden("phi3"))).expect_err("another model");
        assert!(error.to_string().contains("another model") && !target.exists(), "{error}");
    }
    // By llama.cpp's names, of layers that are stored as one too.
    for (family, names) in [
        ("phi3", ["phi3", "blk.1.attn_qkv.weight.lora_a", "blk.0.ffn_up.weight.lora_b"]),
        ("gemma3", ["gemma3", "blk.1.attn_q.weight.lora_a", "blk.0.ffn_gate.weight.lora_b"]),
    ] {
        let target = out.path().join(family);
        export_adapter(&golden(&format!("{family}/adapter")), &target, Consumer::LlamaCpp, Some(&golden(family)))
            .expect(family);
        let bytes = std::fs::read(target.join("adapter.gguf")).expect("a file");
        let holds = |name: &str| bytes.windows(name.len()).any(|part| part == name.as_bytes());
        assert!(names.iter().all(|name| holds(name)), "{family}");
    }
    let target = out.path().join("nowhere");
    let error = export_adapter(&plain, &target, Consumer::LlamaCpp, None).expect_err("no base").to_string();
    assert!(error.contains("config.json") && error.contains("--base"), "{error}");
}

/// Files for `tests/golden/check.py`, which has PEFT, transformers and gguf read them (`cargo xtask golden`).
#[test]
fn what_is_written_for_others() {
    let out = root().join("out/check-interchange");
    if out.exists() {
        std::fs::remove_dir_all(&out).expect("what an earlier run left");
    }
    let mut all = serde_json::Map::new();
    for case in CASES {
        let (mut model, config) = (adapted(case), adapter_config(folder(case)).expect(case));
        let base = base(case);
        all.insert(case.into(), json!({"base": base, "logits": logits(&model, &base)}));
        block_on(save_adapter(&mut model, &config.lora(), &base, out.join(case))).expect(case);
        merge(case, &out.join(format!("{case}-merged")), MergeBase::Dequantized, MergeDtype::Bf16);
    }
    // Skipped modules: transformers leaves them alone when it reads the folder back.
    let (skip, target) = (["down_proj".to_string()], out.join("skipped"));
    quantize_folder(&golden("llama-untied"), &target, (64, true), &skip, &mut |_| {}).expect("a folder");
    let model = load::<Cpu>(&target, NF4, &Default::default(), &mut |_| {}).expect("a model");
    all.insert("skipped".into(), json!({"logits": logits(&model, "llama-untied")}));
    let of_family = |family: &'static str| (golden(&format!("{family}/adapter")), family, family);
    let llama = [(folder("patterns"), "patterns"), (golden("llama-untied/adapter"), "rslora")];
    let llama = llama.map(|(adapter, name)| (adapter, name, "llama-untied"));
    for (adapter, name, base) in llama.into_iter().chain(["gemma2", "gemma3", "phi3", "qwen3"].map(of_family)) {
        let base = golden(base);
        export_adapter(&adapter, &out.join(format!("{name}-ollama")), Consumer::Ollama, Some(&base))
            .expect("a GGUF file");
        export_adapter(&adapter, &out.join(format!("{name}-sglang")), Consumer::Sglang, None).expect("a folder");
        let modelfile = std::fs::read_to_string(out.join(format!("{name}-ollama/Modelfile"))).expect("a file");
        assert!(modelfile.starts_with("FROM /") && modelfile.ends_with("ADAPTER ./adapter.gguf\n"), "{modelfile}");
    }
    let text = serde_json::Value::Object(all).to_string();
    write_atomic(out.join("logits.json"), text.as_bytes()).expect("a file");
}
