//! What there is to run on, what a run needs of it, and a model in several stages.

use std::fs;
use std::path::Path;

use super::{MODEL, folder, name, refuses, training, works};

#[test]
fn stages_on_one_device_train_the_same_adapter() {
    let folder = folder();
    let adapter = |output: &str, more: &[&str]| {
        let output = folder.path().join(output);
        let steps = ["--max-steps", "3", "--set", "training.gradient_accumulation_steps=3"];
        let said = works(&training(name(&output), &[&steps, more].concat()));
        (said, fs::read(output.join("adapter/adapter_model.safetensors")).expect("an adapter"))
    };
    let (_, alone) = adapter("alone", &[]);
    let (said, staged) = adapter("staged", &["--devices", "0,0"]);
    assert!(said.contains("layers by device: 0 to 1, 2 to 3"), "{said}");
    assert_eq!(alone, staged);
    let ask = ["generate", MODEL, "--adapter", name(&folder.path().join("staged/adapter")), "--device", "cpu"]
        .map(String::from);
    let answer = |more: &[&str]| {
        let ask: Vec<&str> = ask.iter().map(String::as_str).collect();
        works(&[&ask, &["-p", "What is a trout?", "--max-new-tokens", "8"][..], more].concat())
    };
    assert_eq!(answer(&[]), answer(&["--devices", "0,0"]));
    let output = folder.path().join("refused");
    for (more, cure) in [
        (&["--devices", "0,1"][..], "this machine has 1 such device(s)"),
        (&["--devices", "both"], "write all, or numbers such as 0,1"),
        (&["--devices", "0,0", "--processes", "2"], "leave devices out"),
    ] {
        assert!(refuses(&training(name(&output), more)).contains(cure), "{more:?}");
    }
}

#[test]
fn plans_and_devices_are_listed() {
    let plan = works(&["memory", "llama-3.1-8b"]);
    assert!(plan.contains("QLoRA") && plan.contains("8,030,261,248"), "{plan}");
    assert!(works(&["memory", MODEL]).contains("4,000,000"));
    assert!(refuses(&["memory", "llama-9-900b"]).contains("llama-3.1-8b"));
    let json: serde_json::Value =
        serde_json::from_str(&works(&["memory", "llama-2-7b", "--json", "--memory", "24GB"])).expect("JSON");
    assert_eq!(json["plans"][2]["method"], "qlora");
    assert_eq!(json["plans"][2]["fits"], true);
    assert_eq!(json["plans"][0]["fits"], false);
    assert!(refuses(&["memory", "llama-2-7b", "--memory", "much"]).contains("24GiB"));
    for (flag, value) in [("--memory", "0"), ("--rank", "0"), ("--length", "0"), ("--batch", "0")] {
        assert!(refuses(&["memory", "llama-2-7b", flag, value]).contains(flag), "{flag}");
    }
    assert!(works(&["devices"]).lines().any(|line| line.starts_with("cpu")));
}

#[test]
fn layers_are_planned_over_devices() {
    let plan = |devices: &str| {
        let plan =
            ["train", "recipes/kinds.toml", "--model", "llama-3.1-70b", "--device", "cuda", "--devices", devices];
        let plan = [&plan[..], &["--plan", "--json", "--set", "training.recompute=layers"]].concat();
        serde_json::from_str::<serde_json::Value>(&works(&plan)).expect("JSON")
    };
    let (one, two) = (plan("first"), plan("0,1"));
    let needed = |plan: &serde_json::Value| plan["needed"].as_u64().expect("a number");
    assert!(needed(&two) < needed(&one) * 3 / 5 && needed(&two) > needed(&one) * 2 / 5, "{one} {two}");
    let layers = |plan: &serde_json::Value| {
        let devices = plan["devices"].as_array().expect("devices").iter();
        devices.map(|device| device["layers"].as_u64().expect("a number")).collect::<Vec<_>>()
    };
    assert_eq!(layers(&one), [80]);
    assert_eq!(layers(&two).iter().sum::<u64>(), 80);
}

#[test]
fn a_recipe_is_planned_without_its_weights() {
    let folder = folder();
    let config = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(MODEL).join("config.json"))
        .expect("a configuration");
    fs::write(folder.path().join("config.json"), config).expect("a file");
    let recipe = ["train", "recipes/kinds.toml", "--plan", "--device", "cpu", "--model", name(folder.path())];
    let with = |more: &[&str]| works(&[&recipe[..], more].concat());
    let plan = with(&["--memory", "1GiB"]);
    assert!(plan.contains("training, in the layers") && plan.contains("fits 1.00 GiB"), "{plan}");
    // What does not fit is cut into smaller micro-batches of as many examples in all, and those fit.
    let small: serde_json::Value = serde_json::from_str(&with(&["--memory", "64MiB", "--json"])).expect("JSON");
    assert_eq!(small["fits"], false, "{small}");
    let proposal = &small["proposals"][0];
    let number = |key: &str| proposal[key].as_u64().expect("a number");
    assert!(number("bytes") <= 64 << 20 && number("batch") < 16, "{small}");
    assert!(number("batch") * number("accumulation") >= 16, "{small}");
    // Records are counted, however their file holds them.
    let tokens = |file: &str, text: &str| {
        let path = folder.path().join(file);
        fs::write(&path, text).expect("a file");
        let plan: serde_json::Value = serde_json::from_str(&with(&["--train", name(&path), "--json"])).expect("JSON");
        plan["tokens"].as_f64().expect("a number")
    };
    let list = tokens("list.json", r#"[{"text": "a"}, {"text": "b"}, {"text": "c"}]"#);
    assert!(list > 0.0 && list == tokens("lines.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n{\"text\": \"c\"}\n"));
    // A table of one's own, with a price.
    let table = folder.path().join("gpus.toml");
    fs::write(&table, "utilisation = 0.5\n[[gpu]]\nname = 'Mine'\ngib = 8\ntflops_f32 = 1\nprice_per_hour = 2.0\n")
        .expect("a file");
    let priced = with(&["--gpus", name(&table)]);
    assert!(priced.contains("fits Mine (8 GiB), about") && priced.contains("prices:"), "{priced}");
    fs::write(&table, "utilisation = 0.5\n[[gpu]]\nname = 'Mine'\ngibs = 8\n").expect("a file");
    let mut refused = recipe.to_vec();
    refused.extend(["--gpus", name(&table)]);
    assert!(refuses(&refused).contains("gibs"));
    assert!(refuses(&["train", "recipes/kinds.toml", "--memory", "1GiB"]).contains("--plan"));
    for (flag, value, key) in [
        ("--rank", "0", "lora.r"),
        ("--batch-size", "0", "training.batch_size"),
        ("--set", "data.max_length=0", "data.max_length"),
        ("--memory", "0", "--memory"),
    ] {
        assert!(refuses(&["train", "recipes/kinds.toml", "--plan", flag, value]).contains(key), "{flag} {value}");
    }
}
