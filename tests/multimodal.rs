//! The text model of a multi-modal folder: read by either way of naming, trained, saved under the names that PEFT gives its
//! layers there, and merged with the other parts left as they are.

use std::fs;
use std::path::{Path, PathBuf};

use halfbyte::backends::Cpu;
use halfbyte::files::{
    Checkpoint, Consumer, MergeBase, MergeDtype, MergeOptions, adapter_config, export_adapter, load_adapter,
    merge_folder, quantize_folder, save_adapter,
};
use halfbyte::lora::{LoraConfig, attach};
use halfbyte::model::{BaseWeights, Transformer, load};
use halfbyte_tests::reference::{NF4, expected, tokens, values};
use halfbyte_tests::{assert_close, golden, root};
use pollster::block_on;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// How the text model's tensors are called: in the folders on the hub, and in those of newer classes of transformers.
const NAMES: [fn(&str) -> String; 2] = [
    |path| format!("language_model.{path}"),
    |path| path.strip_prefix("model.").map_or(path.to_string(), |rest| format!("model.language_model.{rest}")),
];

/// A part that is no text model, with a layer that is called as the text model's are.
const VISION: &str = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight";

/// Writes the golden Gemma 3 as the text model of a multi-modal one.
fn write(folder: &Path, name: fn(&str) -> String) {
    let text = fs::read(golden("gemma3/config.json")).expect("a file");
    let text: Value = serde_json::from_slice(&text).expect("JSON");
    let vision = json!({"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"});
    let whole = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text,
        "vision_config": vision, "mm_tokens_per_image": 4, "tie_word_embeddings": true, "torch_dtype": "float32",
    });
    fs::write(folder.join("config.json"), whole.to_string()).expect("the temporary folder can be written to");
    let file = Checkpoint::open(golden("gemma3")).expect("a model");
    let vision: Vec<u8> = (0..256u16).flat_map(|i| (f32::from(i) / 256.0).to_le_bytes()).collect();
    let tensors: Vec<_> = file.names().into_iter().map(|path| (path, file.tensor(path).expect("a tensor"))).collect();
    let of_text = tensors.iter().map(|(path, tensor)| {
        (name(path), TensorView::new(tensor.dtype, tensor.shape.to_vec(), &tensor.bytes).expect("a view"))
    });
    let vision = TensorView::new(safetensors::Dtype::F32, vec![16, 16], &vision).expect("a view");
    let all = of_text.chain([(VISION.to_string(), vision)]);
    safetensors::serialize_to_file(all, None, &folder.join("model.safetensors")).expect("a file");
}

fn logits(model: &Transformer<Cpu>) -> Vec<f32> {
    let ids = tokens(&expected("gemma3").integers("input_ids"));
    values(model.logits(&ids, &[24; 3]))
}

/// An adapter that changes something, one of its layers of another rank.
fn adapted(folder: &Path, base: BaseWeights) -> (Transformer<Cpu>, LoraConfig) {
    let mut model = load::<Cpu>(folder, base, &Default::default(), &mut |_| {}).expect("a text model");
    let config = LoraConfig {
        r: 4,
        rank_pattern: [("model.layers.1.mlp.up_proj".to_string(), 2)].into(),
        layers_to_transform: vec![1],
        ..LoraConfig::default()
    };
    attach(&mut model, &config, 3).expect("an adapter");
    for (_, linear) in model.linears_mut() {
        if let Some(lora) = &mut linear.lora {
            lora.b.value = lora.b.value.clone() + 0.02;
        }
    }
    (model, config)
}

#[test]
fn either_way_of_naming_is_read() {
    for name in NAMES {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write(folder.path(), name);
        let part =
            load::<Cpu>(folder.path(), BaseWeights::Full, &Default::default(), &mut |_| {}).expect("a text model");
        assert_close("the text part", &logits(&part), &expected("gemma3").floats("logits"), 1e-4);
        let error = quantize_folder(folder.path(), &folder.path().join("out"), (64, true), &[], &mut |_| {});
        assert!(error.expect_err("no 4-bit copy").to_string().contains("multi-modal"));
    }
}

#[test]
fn an_adapter_is_named_as_peft_names_it_and_merged_into_the_whole() {
    for name in NAMES {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [base, adapter, merged, vllm] = ["base", "adapter", "merged", "vllm"].map(|name| folder.path().join(name));
        fs::create_dir(&base).expect("a folder");
        write(&base, name);
        let (mut model, config) = adapted(&base, NF4);
        let trained = logits(&model);
        block_on(save_adapter(&mut model, &config, "base", &adapter)).expect("an adapter");
        export_adapter(&adapter, &vllm, Consumer::Vllm, None).expect("an export");
        for saved in [&adapter, &vllm] {
            let file = Checkpoint::open_file(saved.join("adapter_model.safetensors")).expect("a file");
            let of_text = |name: &&str| name.starts_with("base_model.model.model.language_model.layers.");
            assert!(file.names().iter().all(of_text), "{:?}", file.names());
            let json = fs::read_to_string(saved.join("adapter_config.json")).expect("a file");
            let json: Value = serde_json::from_str(&json).expect("JSON");
            let targets = json["target_modules"].as_str().expect("an expression");
            let beginning = r"model\.language_model\.";
            let layers = if saved == &adapter { r"layers\.(1)\." } else { "" };
            let expected = format!(r"{beginning}{layers}.*\.(down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)");
            assert_eq!(targets, expected);
            assert!(json["layers_to_transform"].is_null());
            let mut again = load::<Cpu>(&base, NF4, &Default::default(), &mut |_| {}).expect("a model");
            load_adapter(&mut again, saved, false).expect("an adapter");
            assert_close("read again", &logits(&again), &trained, 1e-6);
        }
        let ranks = adapter_config(&adapter).expect("an adapter").lora().rank_pattern;
        assert_eq!(ranks, config.rank_pattern);

        let options = MergeOptions { base: MergeBase::Dequantized, dtype: MergeDtype::F32, trained_on: NF4, shard: 0 };
        let drift = merge_folder(&base, &adapter, &merged, &options, &mut |_| {}).expect("a merged model");
        assert!(drift.len() == 7 * model.layers.len() && drift.iter().all(|d| d.error == 0.0));
        assert_eq!(drift.iter().filter(|d| d.adapted).count(), 7);
        let whole = load::<Cpu>(&merged, BaseWeights::Full, &Default::default(), &mut |_| {}).expect("a model");
        assert_close("merged", &logits(&whole), &trained, 1e-5);
        let [before, after] = [&base, &merged].map(|folder| Checkpoint::open(folder).expect("a model"));
        assert_eq!(before.names(), after.names());
        let vision = [&before, &after].map(|file| file.tensor(VISION).expect("the other part").bytes);
        assert_eq!(vision[0], vision[1]);
    }
}

/// Files for `tests/golden/check.py`, which has PEFT and transformers read them (`cargo xtask golden`).
#[test]
fn what_is_written_for_others() {
    let out: PathBuf = root().join("out/check-multimodal");
    if out.exists() {
        fs::remove_dir_all(&out).expect("what an earlier run left");
    }
    let [base, adapter, merged] = ["base", "adapter", "merged"].map(|name| out.join(name));
    fs::create_dir_all(&base).expect("a folder");
    write(&base, NAMES[0]);
    // In full precision: a quantized vision tower would be another model.
    let (mut model, config) = adapted(&base, BaseWeights::Full);
    block_on(save_adapter(&mut model, &config, "base", &adapter)).expect("an adapter");
    let trained_on = BaseWeights::Full;
    let options = MergeOptions { base: MergeBase::Dequantized, dtype: MergeDtype::F32, trained_on, shard: 0 };
    merge_folder(&base, &adapter, &merged, &options, &mut |_| {}).expect("a merged model");
    let text = json!({"logits": logits(&model)}).to_string();
    fs::write(out.join("logits.json"), text).expect("a file");
}
