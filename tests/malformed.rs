//! Malformed adapters, indices and quantization states: an error that names the file, never a panic, never much memory.

use std::path::Path;

use halfbyte::files::{AdapterConfig, AdapterFile, Checkpoint, stored_weight};
use halfbyte_tests::golden;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Runs of each property: bounded so that all of them take seconds.
fn bounded() -> ProptestConfig {
    ProptestConfig { cases: 300, max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() }
}

fn fixture(path: &str) -> Vec<u8> {
    std::fs::read(golden("interchange").join(path)).expect(path)
}

/// Any JSON value, some of them numbers at the ends of their types.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|v| json!(v)),
        "[a-z.*(\\[+?^$|]{0,12}".prop_map(Value::from),
        Just(json!("nf4")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec(("[a-z_.]{0,8}", inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// `object` with the value of one of its keys replaced.
fn with(object: &[u8], at: usize, value: Value) -> Vec<u8> {
    let mut object: serde_json::Map<String, Value> = serde_json::from_slice(object).expect("an object");
    let key = object.keys().nth(at % object.len()).cloned().expect("a key");
    object.insert(key, value);
    serde_json::to_vec(&object).expect("JSON")
}

/// A safetensors file with this text for its header, and nothing else changed.
fn reheaded(file: &[u8], change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let mut header = serde_json::from_slice(&file[8..8 + length]).expect("a header");
    change(&mut header);
    let header = serde_json::to_vec(&header).expect("JSON");
    [&(header.len() as u64).to_le_bytes()[..], &header, &file[8 + length..]].concat()
}

/// Reads an adapter and everything in it; an error must name a file.
fn read_adapter(config: &[u8], weights: Vec<u8>) {
    let read = || {
        let config = AdapterConfig::parse("a/adapter_config.json", config)?;
        let file = AdapterFile::new(config, Checkpoint::from_bytes("a/adapter_model.safetensors", weights)?)?;
        for layer in file.layers() {
            file.matrices(&layer, None)?;
            file.matrices(&layer, Some([96, 96]))?;
        }
        for path in file.saved() {
            file.saved_values(&path, &[128, 96])?;
        }
        Ok::<_, halfbyte::Error>(())
    };
    if let Err(error) = read() {
        assert!(error.to_string().starts_with("a/adapter_"), "{error}");
    }
}

/// Reads every 4-bit weight of a file.
fn read_stored(bytes: Vec<u8>) {
    let Ok(file) = Checkpoint::from_bytes("b.safetensors", bytes) else { return };
    for name in file.names() {
        match stored_weight(&file, name) {
            Ok(Some(data)) => assert!(data.dequantize().len() == data.shape[0] * data.shape[1]),
            Ok(None) => {}
            Err(error) => assert!(error.to_string().starts_with("b.safetensors"), "{error}"),
        }
    }
}

proptest! {
    #![proptest_config(bounded())]

    #[test]
    fn adapter_configurations(at in any::<usize>(), value in value(), case in 0..3usize) {
        let case = ["dora", "patterns", "saved-norms"][case];
        let config = with(&fixture(&format!("{case}/adapter_config.json")), at, value);
        read_adapter(&config, fixture(&format!("{case}/adapter_model.safetensors")));
    }

    #[test]
    fn adapter_bytes(at in any::<usize>(), bytes in vec(any::<u8>(), 1..9), cut in any::<bool>()) {
        for (file, other) in [("adapter_config.json", "adapter_model.safetensors"), ("adapter_model.safetensors", "adapter_config.json")] {
            let mut broken = fixture(&format!("dora/{file}"));
            // Most of a safetensors file is values, of which any are valid; what matters is in its head.
            let at = at % broken.len().min(2000);
            if cut {
                broken.truncate(at);
            } else {
                let end = (at + bytes.len()).min(broken.len());
                broken[at..end].copy_from_slice(&bytes[..end - at]);
            }
            let whole = fixture(&format!("dora/{other}"));
            match file {
                "adapter_config.json" => read_adapter(&broken, whole),
                _ => read_adapter(&whole, broken),
            }
        }
    }

    #[test]
    fn safetensors_headers(tensor in any::<usize>(), key in 0..3usize, value in value()) {
        let change = |header: &mut serde_json::Map<String, Value>| {
            let name = header.keys().nth(tensor % header.len()).cloned().expect("a tensor");
            match header[&name].as_object_mut() {
                Some(info) => info.insert(["dtype", "shape", "data_offsets"][key].into(), value),
                None => header.insert(name, value),
            };
        };
        read_adapter(&fixture("dora/adapter_config.json"), reheaded(&fixture("dora/adapter_model.safetensors"), change));
    }

    #[test]
    fn indices(weight_map in value(), keys in vec(("[a-z./\\\\]{0,12}", "[a-z./\\\\]{0,12}"), 0..4), raw in any::<bool>()) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pairs: serde_json::Map<String, Value> = keys.into_iter().map(|(k, v)| (k, json!(v))).collect();
        let index = if raw { json!({"weight_map": weight_map}) } else { json!({"weight_map": pairs}) };
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("a file");
        if let Err(error) = Checkpoint::open(folder.path()) {
            assert!(error.to_string().contains(folder.path().to_str().expect("a name")), "{error}");
        }
    }

    #[test]
    fn quantization_states(tensor in any::<usize>(), at in any::<usize>(), value in value()) {
        // The state is bytes among others: its new text must have the length that the header says.
        let file = fixture("stored.safetensors");
        let whole = Checkpoint::from_bytes("b", file.clone()).expect("a fixture");
        let states: Vec<&str> = whole.names().into_iter().filter(|n| n.ends_with("bitsandbytes__nf4")).collect();
        let old = whole.tensor(states[tensor % states.len()]).expect("a state").bytes.to_vec();
        let mut new = with(&old, at, value);
        let place = file.windows(old.len()).position(|window| window == old).expect("the state's place");
        new.resize(old.len(), b' ');
        let mut broken = file;
        broken[place..place + new.len()].copy_from_slice(&new);
        read_stored(broken);
    }

    #[test]
    fn quantized_headers(tensor in any::<usize>(), key in 0..3usize, value in value()) {
        read_stored(reheaded(&fixture("stored.safetensors"), |header| {
            let name = header.keys().nth(tensor % header.len()).cloned().expect("a tensor");
            if let Some(info) = header[&name].as_object_mut() {
                info.insert(["dtype", "shape", "data_offsets"][key].into(), value);
            }
        }));
    }
}

/// Numbers that would ask for all memory there is.
#[test]
fn sizes_that_are_lies_are_refused_before_anything_is_allocated() {
    let config = |r: u64| {
        let config = json!({"peft_type": "LORA", "r": r, "lora_alpha": 8, "target_modules": ["q_proj"]});
        AdapterConfig::parse(Path::new("a"), config.to_string().as_bytes())
    };
    assert!(config(8).is_ok());
    for r in [0, 1 << 20, u64::MAX] {
        assert!(config(r).expect_err("no rank").to_string().contains("lora.r"), "{r}");
    }
    let file = fixture("stored.safetensors");
    let name = b"\"shape\": [20, 96]";
    let place = file.windows(name.len()).position(|window| window == name).expect("a shape");
    let mut broken = file;
    broken[place..place + name.len()].copy_from_slice(b"\"shape\":[4e9,4e9]");
    read_stored(broken.clone());
    broken[place..place + name.len()].copy_from_slice(b"\"shape\":[3,99999]");
    read_stored(broken);
}

#[test]
fn adapters_that_mean_more_than_their_matrices_are_refused() {
    let json: Value = serde_json::from_slice(&fixture("dora/adapter_config.json")).expect("JSON");
    let parse = |key: &str, value: Value| {
        let mut json = json.clone();
        json[key] = value;
        AdapterConfig::parse("adapter_config.json", json.to_string().as_bytes())
    };
    for value in [json!(true), json!(false), json!("gaussian"), json!("orthogonal"), json!(null)] {
        parse("init_lora_weights", value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"));
    }
    let refused = [
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("alora_invocation_tokens", json!([1, 2])),
        ("use_qalora", json!(true)),
        ("arrow_config", json!({"top_k": 3})),
    ];
    for (key, value) in refused {
        let error = parse(key, value).expect_err(key).to_string();
        assert!(error.contains(key) && error.contains("not supported"), "{error}");
    }
}
