//! What `config.json` files of real models say, what is refused, and what no fixture shows.

use std::collections::HashMap;

use halfbyte::backends::Cpu;
use halfbyte::model::{BaseWeights, ModelConfig, Scaling, random};
use halfbyte::train::{Recompute, backpropagate, whole_graph};
use halfbyte_tests::reference::{expected, golden_batch, model, tokens, values};
use halfbyte_tests::{assert_close, golden, relative_error};
use serde_json::{Value, json};

fn parse(json: &Value) -> halfbyte::Result<ModelConfig> {
    ModelConfig::parse("config.json", json.to_string().as_bytes())
}

/// The keys of a model's `config.json` that decide its shape, as its publisher wrote them, and its parameters as
/// transformers counts them.
fn published() -> Vec<(Value, u64)> {
    let phi_factors = vec![1.1; 48];
    vec![
        (
            json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
                "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                "attention_bias": false, "mlp_bias": false, "hidden_act": "silu", "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": false,
                "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            }),
            8_030_261_248,
        ),
        (
            json!({
                "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32768,
                "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
                "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
            }),
            7_248_023_552,
        ),
        (
            json!({
                "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
                "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 131072,
                "max_window_layers": 28, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 131072,
                "use_sliding_window": false, "tie_word_embeddings": false,
            }),
            7_615_616_512,
        ),
        (
            json!({
                "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096,
                "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "attention_bias": false, "hidden_act": "silu",
                "max_position_embeddings": 40960, "max_window_layers": 36, "rms_norm_eps": 1e-6, "rope_scaling": null,
                "rope_theta": 1000000, "sliding_window": null, "use_sliding_window": false,
                "tie_word_embeddings": false,
            }),
            8_190_735_360,
        ),
        (
            json!({
                "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "vocab_size": 256000,
                "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
                "num_key_value_heads": 8, "head_dim": 256, "attention_bias": false, "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
                "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
            }),
            9_241_705_984,
        ),
        (
            json!({
                "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 262144,
                "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
                "num_key_value_heads": 1, "head_dim": 256, "attention_bias": false, "attn_logit_softcapping": null,
                "final_logit_softcapping": null, "hidden_activation": "gelu_pytorch_tanh",
                "max_position_embeddings": 32768, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
                "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512,
                "sliding_window_pattern": 6,
            }),
            999_885_952,
        ),
        (
            json!({
                "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {},
                "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_window": 1024},
            }),
            3_880_263_168,
        ),
        (
            json!({
                "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072,
                "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 32, "attention_bias": false, "hidden_act": "silu",
                "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": false,
                "rope_scaling": {"long_factor": phi_factors.clone(), "short_factor": phi_factors, "type": "longrope"},
            }),
            3_821_079_552,
        ),
    ]
}

fn family(name: &str) -> Value {
    let mut all = published().into_iter().map(|(json, _)| json);
    all.find(|json| json["model_type"] == name).unwrap_or_else(|| panic!("a model of {name}"))
}

/// For each kind of layer: its window, its base, and how many layers are of that kind.
fn kinds(config: &ModelConfig) -> Vec<(Option<usize>, f64, usize)> {
    let count = |i| config.layer_kinds.iter().filter(|kind| **kind == i).count();
    config.kinds.iter().enumerate().map(|(i, kind)| (kind.window, kind.rope.theta, count(i))).collect()
}

#[test]
fn real_models_have_the_parameters_that_they_are_known_for() {
    for (json, count) in published() {
        let config = parse(&json).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.parameters(), count, "{}", config.family.name);
        assert_eq!(config.layer_kinds.len(), config.layers, "{}", config.family.name);
    }
}

#[test]
fn layers_of_real_models_see_what_they_should() {
    let of = |name| parse(&family(name)).expect(name);
    assert_eq!(kinds(&of("llama")), [(None, 500_000.0, 32)]);
    assert_eq!(kinds(&of("mistral")), [(None, 1e6, 32)]);
    assert_eq!(kinds(&of("qwen2")), [(None, 1e6, 28)]);
    assert_eq!(kinds(&of("gemma2")), [(Some(4096), 1e4, 21), (None, 1e4, 21)]);
    assert_eq!(of("gemma2").layer_kinds[..4], [0, 1, 0, 1]);
    assert_eq!(kinds(&of("gemma3_text")), [(Some(512), 1e4, 22), (None, 1e6, 4)]);
    let whole = of("gemma3");
    assert_eq!(kinds(&whole), [(Some(1024), 1e4, 29), (None, 1e6, 5)]);
    assert_eq!(whole.layer_kinds[..7], [0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(whole.kinds[1].rope.scaling, Scaling::Linear { factor: 8.0 });
    assert_eq!(whole.kinds[0].rope.scaling, Scaling::None, "layers with a window are not stretched");
    let phi = of("phi3");
    assert_eq!(kinds(&phi), [(Some(262_144), 1e4, 32)]);
    let Scaling::LongRope(long) = &phi.kinds[0].rope.scaling else { panic!("longrope") };
    assert!((long.attention_factor - 1.190_238_071_5).abs() < 1e-9, "{}", long.attention_factor);
}

#[test]
fn absent_keys_are_those_of_transformers_classes() {
    let without = |name: &str, keys: &[&str]| {
        let mut json = family(name);
        for key in keys {
            json.as_object_mut().and_then(|map| map.remove(*key)).expect(key);
        }
        parse(&json).unwrap_or_else(|e| panic!("{e}"))
    };
    assert_eq!(kinds(&without("mistral", &["sliding_window"]))[0].0, Some(4096), "absent is not null");
    assert!(without("gemma2", &["head_dim"]).tied);
    let gemma = without("gemma2", &["head_dim", "query_pre_attn_scalar", "attn_logit_softcapping"]);
    assert_eq!((gemma.attention.head_dim, gemma.attention.scale, gemma.attention.softcap), (256, 0.0625, Some(50.0)));
    assert_eq!(without("gemma2", &["final_logit_softcapping"]).final_logit_softcapping, Some(30.0));
    assert_eq!(without("gemma3_text", &["final_logit_softcapping"]).final_logit_softcapping, None);
    assert_eq!(without("qwen3", &["head_dim"]).attention.head_dim, 128);
    let by_type = without("qwen2", &["architectures"]);
    assert_eq!(by_type.family.name, "Qwen2");
}

/// transformers 5 writes rotary keys into one object, by kind of layer where kinds differ.
#[test]
fn both_spellings_of_the_rotary_keys_are_read() {
    let mut json = family("gemma3_text");
    let old = parse(&json).expect("a configuration");
    let map = json.as_object_mut().expect("an object");
    for key in ["rope_theta", "rope_local_base_freq", "rope_scaling"] {
        map.remove(key);
    }
    let parameters = json!({
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    });
    map.insert("rope_parameters".into(), parameters);
    assert_eq!(parse(&json).expect("a configuration"), old);

    let part = |inside: Value, beside: Value| {
        let mut json = family("llama");
        json["rope_parameters"] = inside;
        json["partial_rotary_factor"] = beside;
        parse(&json).expect("a configuration").kinds
    };
    let whole = part(json!({"rope_type": "default", "rope_theta": 500000.0}), json!(null));
    let inside =
        part(json!({"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5}), json!(null));
    let beside = part(json!({"rope_type": "default", "rope_theta": 500000.0}), json!(0.5));
    assert!(inside == beside && inside != whole);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused: [(&str, &str, Value, &[&str]); 15] = [
        (
            "llama",
            "architectures",
            json!(["MambaForCausalLM"]),
            &["MambaForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"],
        ),
        ("llama", "rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0}), &["dynamic", "yarn", "longrope"]),
        ("llama", "rope_scaling", json!({"rope_type": "linear", "factor": 0.0}), &["factor"]),
        ("llama", "rope_scaling", json!({"rope_type": "linear"}), &["factor", "missing"]),
        ("llama", "rope_theta", json!(-1.0), &["rope_theta"]),
        ("llama", "num_hidden_layers", json!(1u64 << 40), &["num_hidden_layers"]),
        ("llama", "partial_rotary_factor", json!(0.01), &["partial_rotary_factor"]),
        ("llama", "hidden_act", json!("relu"), &["hidden_act", "relu", "gelu_pytorch_tanh"]),
        ("mistral", "sliding_window", json!(0), &["sliding_window"]),
        ("gemma2", "layer_types", json!(["full_attention"]), &["layer_types", "42"]),
        ("gemma2", "layer_types", json!(vec!["chunked_attention"; 42]), &["chunked_attention"]),
        ("gemma2", "attn_logit_softcapping", json!(0.0), &["attn_logit_softcapping"]),
        ("gemma3_text", "sliding_window_pattern", json!(0), &["sliding_window_pattern"]),
        ("gemma3_text", "use_bidirectional_attention", json!(true), &["use_bidirectional_attention"]),
        (
            "phi3",
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
            &["short_factor", "48"],
        ),
    ];
    for (name, key, value, words) in refused {
        let mut json = family(name);
        json[key] = value;
        let error = parse(&json).expect_err(key).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{name} {key}: {error}");
    }
}

/// Short and long sequences have other angles; which ones a sequence has does not depend on what else is in the batch.
#[test]
fn a_batch_may_hold_sequences_on_both_sides_of_the_original_context() {
    let model = model::<Cpu>("phi3", BaseWeights::Full, &Default::default());
    let ids = tokens(&expected("phi3").integers("input_ids"));
    let lengths = [8, 24, 16, 17, 1];
    let together = values(model.logits(&ids[..66], &lengths));
    let mut rest = &ids[..66];
    let mut alone = Vec::new();
    for length in lengths {
        let (sequence, after) = rest.split_at(length);
        alone.extend(values(model.logits(sequence, &[length])));
        rest = after;
    }
    assert_close("sequences of phi3", &together, &alone, 1e-5);
    let cut = values(model.logits(&ids[..16], &[16]));
    let within = values(model.logits(&ids[..17], &[17]));
    assert!(relative_error(&within[..cut.len()], &cut) > 1e-3, "the seventeenth token changes the angles of all");
}

/// Token by token through the cache, past the window of every kind of layer: the logits of the whole text.
#[test]
fn a_cache_holds_what_windows_see() {
    for name in ["mistral", "qwen2", "gemma2", "gemma3"] {
        let model = model::<Cpu>(name, BaseWeights::Full, &Default::default());
        let ids = tokens(&expected(name).integers("input_ids"))[..24].to_vec();
        let whole = values(model.logits(&ids, &[24]));
        let (mut cache, mut seen, mut found) = (Vec::new(), 0, Vec::new());
        for fresh in [10, 1, 1, 5, 1, 2, 1, 1, 1, 1] {
            let pass = model.passes(&halfbyte::ops::Sequences::after(seen, fresh));
            let hidden = model.hidden(&ids[seen..seen + fresh], &pass, Some(&mut cache));
            found.extend(values(model.head.forward(hidden)));
            seen += fresh;
        }
        assert_close(&format!("{name} through its cache"), &found, &whole, 1e-5);
    }
}

/// Every parameter trained: layer by layer, the gradients are those of one graph over the whole model, those of scaled
/// embeddings and offset norms among them.
#[test]
fn full_gradients_equal_those_of_the_whole_graph() {
    for name in ["qwen3", "gemma2", "gemma3", "phi3"] {
        let path = golden(name).join("config.json");
        let config = ModelConfig::parse(&path, &std::fs::read(&path).expect(name)).expect(name);
        let model = random::<Cpu>(config, 5, &Default::default()).expect(name);
        let batch = golden_batch(&expected(name));
        let whole = whole_graph(&model, &batch, 0.1);
        let step = backpropagate(&model, &batch, 0.1, 16, Recompute::Layers, None);
        assert_eq!(step.gradients.len(), whole.gradients.len(), "{name}");
        for (path, gradient) in step.gradients {
            let of_whole = values(whole.gradients[&path].clone());
            assert_close(&format!("{name} {path}"), &values(gradient), &of_whole, 1e-4);
        }
    }
}

/// A full fine-tuning reads and writes every parameter under the name that the files have.
#[test]
fn every_tensor_of_a_file_is_a_parameter() {
    for name in ["mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"] {
        let file = halfbyte::files::Checkpoint::open(golden(name)).expect(name);
        let mut found = HashMap::new();
        model::<Cpu>(name, BaseWeights::Full, &Default::default()).visit(|path, parameter| {
            found.insert(path.to_string(), parameter.value.dims().iter().product::<usize>());
        });
        let stored = file
            .names()
            .into_iter()
            .map(|name| (name.to_string(), file.tensor(name).expect(name).shape.iter().product::<usize>()));
        assert_eq!(found, stored.collect::<HashMap<_, _>>(), "{name}");
    }
}
