//! The command as a user runs it, on the CPU.

mod console;
mod devices;
mod output;
mod pretrain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

const MODEL: &str = "models/wordnet-4m";

/// The command, to be run at the root of the workspace.
fn halfbyte(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).args(arguments).stdin(Stdio::null());
    // No test here asks the hub; those that do are in hub.rs.
    command.env("HF_HUB_OFFLINE", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it prints when all goes well.
fn works(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = halfbyte(arguments).output().expect("the command starts");
    assert!(status.success(), "{arguments:?}: {}", text(&stderr));
    text(&stdout)
}

/// What it says when it refuses; never a panic.
fn refuses(arguments: &[&str]) -> String {
    let Output { status, stderr, .. } = halfbyte(arguments).output().expect("the command starts");
    let message = text(&stderr);
    assert!(
        !status.success() && message.contains("error: ") && !message.contains("panicked"),
        "{arguments:?}: {message}"
    );
    message
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn name(path: &Path) -> &str {
    path.to_str().expect("a temporary folder's name is UTF-8")
}

/// The shipped model but for its weights, in a folder that is made for it.
fn without_weights(model: &Path) {
    fs::create_dir(model).expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(MODEL);
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(root.join(file), model.join(file)).expect(file);
    }
}

/// `train` on a few examples for a few steps.
fn training<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let short = ["train", "recipes/kinds.toml", "--device", "cpu", "--output", output, "--set", "data.test=", "--set"];
    [&short[..], &["show.max_new_tokens=4", "--batch-size", "2"], more].concat()
}

#[test]
fn a_model_is_measured_that_has_no_weights() {
    let folder = folder();
    let json = folder.path().join("figures.json");
    let figures = ["--length", "32,48", "--steps", "2", "--device", "cpu", "--json", name(&json)];
    let table = works(&[&["bench-training", "--model", MODEL], &figures[..]].concat());
    assert!(table.contains("| 32 | 1 |") && table.contains("| 48 | 1 |"), "{table}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(json).expect("the figures")).expect("JSON");
    let measured = &report["measurements"][1];
    assert_eq!(measured["seconds"].as_array().map(Vec::len), Some(2));
    let (rate, seconds) = (measured["tokens_per_second"].as_f64(), &measured["seconds"]);
    let (first, second) = (seconds[0].as_f64().expect("a time"), seconds[1].as_f64().expect("a time"));
    assert!((rate.expect("a rate") * (first + second) / 2.0 - 48.0).abs() < 1e-3, "{report}");
    assert!(refuses(&["bench-training", "--model", MODEL, "--steps", "0"]).contains("at least 1"));
    let little = ["bench-training", "--model", MODEL, "--device", "cpu", "--memory-limit", "1MiB"];
    assert!(refuses(&little).contains("memory_limit is 1.00 MiB"));
}

#[test]
fn a_run_beyond_its_memory_limit_does_not_begin() {
    let folder = folder();
    let output = folder.path().join("run");
    let said = refuses(&training(name(&output), &["--max-steps", "1", "--memory-limit", "1MiB"]));
    assert!(said.contains("the run needs") && said.contains("memory_limit is 1.00 MiB"), "{said}");
    assert!(!output.exists());
    works(&training(name(&output), &["--max-steps", "1", "--memory-limit", "64GiB"]));
}

#[test]
fn a_run_leaves_an_adapter_its_metrics_and_a_chart_and_can_be_repeated() {
    let folder = folder();
    let outputs: Vec<PathBuf> = ["a", "b"].iter().map(|name| folder.path().join(name)).collect();
    for output in &outputs {
        let printed = works(&training(name(output), &["--max-steps", "4", "--set", "lora.lora_dropout=0.1"]));
        assert!(printed.contains("trainable params: ") && printed.contains("before: "), "{printed}");
    }
    let read = |output: &PathBuf, file: &str| fs::read(output.join(file)).expect(file);
    let [a, b] =
        ["adapter/adapter_model.safetensors", "loss.svg"].map(|f| (read(&outputs[0], f), read(&outputs[1], f)));
    assert_eq!(a.0, a.1, "the same seed gives the same adapter, bit by bit");
    assert_eq!(b.0, b.1);
    let metrics = text(&read(&outputs[0], "metrics.jsonl"));
    let steps: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(steps.iter().filter(|line| line["step"].is_u64()).count(), 4);
    assert!(steps[3]["learning_rate"].as_f64() < steps[1]["learning_rate"].as_f64(), "{metrics}");
    let page = text(&read(&outputs[0], "report.html"));
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(page.contains("base weights, NF4") && page.contains("max_steps = 4"));
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="), "nothing from elsewhere");
    // The recipe as it was run, flags included, runs again.
    let recipe = outputs[0].join("recipe.toml");
    let again = folder.path().join("c");
    works(&["train", name(&recipe), "--device", "cpu", "--output", name(&again)]);
    assert_eq!(read(&again, "adapter/adapter_model.safetensors"), a.0);
}

#[test]
fn a_killed_run_leaves_a_whole_adapter_or_none() {
    let folder = folder();
    let output = folder.path().join("run");
    let adapter = output.join("adapter");
    let mut whole = 0;
    for attempt in 0..24 {
        let mut child = halfbyte(&training(name(&output), &["--max-steps", "1"]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        let was_there = adapter.exists();
        std::thread::sleep(Duration::from_millis(40 * attempt));
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        // In the middle of a replacement on systems that can't exchange two folders the old one is hidden for a moment.
        assert!(adapter.exists() || !was_there || cfg!(not(target_os = "linux")), "the adapter of before is gone");
        if adapter.exists() {
            let shown = works(&["inspect", name(&adapter)]);
            assert!(shown.contains("LoRA"), "{shown}");
            whole += 1;
        }
    }
    works(&training(name(&output), &["--max-steps", "1"]));
    assert!(adapter.join("adapter_config.json").exists(), "after {whole} whole adapters");
    let left: Vec<_> = fs::read_dir(&output).expect("the output").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(
        left.len(),
        8,
        "adapter, metrics, recipe, run.json, report, curve, events, lock and no scraps: {left:?}"
    );
}

#[test]
fn a_step_that_is_not_finite_stops_with_the_last_good_adapter() {
    let folder = folder();
    let output = folder.path().join("run");
    let much = ["--max-steps", "20", "--learning-rate", "1e25", "--set", "training.warmup_ratio=0"];
    let message = refuses(&training(name(&output), &much));
    assert!(message.contains("the last good adapter is in") && message.contains("learning_rate"), "{message}");
    // The first step made the weights huge; the loss after it showed that, so the weights of before are saved.
    assert!(!output.join("adapter").exists(), "the name of a finished run's");
    let file = fs::read(output.join("adapter-stopped/adapter_model.safetensors")).expect("an adapter");
    let header = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let values: Vec<f32> =
        file[8 + header..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert!(values.len() > 100_000 && values.iter().all(|v| v.abs() < 1.0), "the last good adapter has usual weights");
    let run = fs::read_to_string(output.join("run.json")).expect("a manifest");
    assert!(run.contains(r#""status": "failed""#) && run.contains("not finite"), "{run}");
}

#[test]
fn a_report_shows_markup_as_text() {
    let folder = folder();
    let output = folder.path().join("run");
    works(&training(name(&output), &["--max-steps", "1", "--set", r#"show.questions=["<script>x</script> & <b>?"]"#]));
    let page = fs::read_to_string(output.join("report.html")).expect("a report");
    assert!(page.contains("&lt;script&gt;x&lt;") && !page.contains("<script>") && !page.contains("<b>"), "{page}");
}

#[test]
fn what_belongs_to_others_stays() {
    let folder = folder();
    for beside in ["nf4.partial", "nf4.previous", ".nf4"] {
        fs::create_dir(folder.path().join(beside)).expect("a folder");
    }
    // The head, which this model has none of its own of, is never quantized.
    works(&["quantize", MODEL, name(&folder.path().join("nf4")), "--skip", "lm_head"]);
    let config = fs::read_to_string(folder.path().join("nf4/config.json")).expect("a configuration");
    assert_eq!(config.matches("\"lm_head\"").count(), 1, "{config}");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 4);
}

#[test]
fn mistakes_are_answered_with_their_place_and_their_cure() {
    let message = refuses(&["train", "recipes/kinds.toml", "--set", "lora.rank=3"]);
    assert!(message.contains("recipes/kinds.toml: `lora.rank`: unknown key"), "{message}");
    let message = refuses(&["train", "recipes/kinds.toml", "--set", "training.learnin_rate=3"]);
    assert!(message.contains("did you mean `learning_rate`?"), "{message}");
    assert!(refuses(&["train", "nowhere.toml"]).contains("nowhere.toml"));
    let message = refuses(&["train", "recipes/kinds.toml", "--device", "cpu", "--model", "no/model"]);
    assert!(message.contains("no such folder here") && message.contains("HF_HUB_OFFLINE"), "{message}");
    assert!(refuses(&["train", "recipes/kinds.toml", "--set", "device=tpu"]).contains("known are auto, cuda, wgpu"));

    let message = refuses(&["train", "recipes/kinds.toml", "--set", "model="]);
    assert!(message.contains("recipes/kinds.toml: `model`: names no model"), "{message}");
    let message = refuses(&["train", "recipes/kinds.toml", "--set", "quantization.block_size=63"]);
    assert!(message.contains("recipes/kinds.toml: `quantization.block_size`: block size 63"), "{message}");
    assert!(refuses(&["quantize", MODEL, "nowhere", "--block-size", "63"]).contains("--block-size"));

    let folder = folder();
    let data = folder.path().join("data.jsonl");
    fs::write(&data, "{\"text\": \"fine\"}\n{\"text\": 3}\n").expect("a file");
    let output = folder.path().join("run");
    let message = refuses(&training(name(&output), &["--train", name(&data)]));
    assert!(message.contains("data.jsonl:2: `text` must be a string"), "{message}");
    assert!(!output.exists(), "bad data is found before anything is written");
    let message = refuses(&training(name(&output), &["--set", "training.adamw.beta1=1"]));
    assert!(message.contains("beta1"), "{message}");
    let targets = r#"lora.target_modules=["q_proj","qq_proj"]"#;
    let message = refuses(&training(name(&output), &["--set", targets]));
    assert!(message.contains("qq_proj"), "{message}");
}

#[test]
fn broken_models_and_adapters_are_refused() {
    let folder = folder();
    let copy = folder.path().join("model");
    without_weights(&copy);
    let ask = ["generate", name(&copy), "--device", "cpu", "--prompt", "a"];
    assert!(refuses(&ask).contains("safetensors"));
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(MODEL).join("model.safetensors");
    let mut weights = fs::read(shipped).expect("the shipped model");
    weights.truncate(weights.len() / 2);
    fs::write(copy.join("model.safetensors"), &weights).expect("a file");
    assert!(refuses(&ask).contains("model.safetensors"));
    weights[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(copy.join("model.safetensors"), &weights).expect("a file");
    assert!(refuses(&ask).contains("model.safetensors"));
    let message = refuses(&["generate", MODEL, "--device", "cpu", "--prompt", "a", "--adapter", name(&copy)]);
    assert!(message.contains("adapter_config.json"), "{message}");
}

#[test]
fn a_quantized_model_answers_as_its_original_does() {
    let folder = folder();
    let target = folder.path().join("nf4");
    works(&["quantize", MODEL, name(&target)]);
    let ask = |model: &str, more: &[&str]| {
        let plain =
            ["generate", model, "--device", "cpu", "--prompt", "a small bird", "--raw", "--max-new-tokens", "24"];
        works(&[&plain[..], more].concat())
    };
    let answer = ask(MODEL, &[]);
    assert!(answer.trim().len() > 20, "{answer}");
    assert_eq!(ask(name(&target), &[]), answer);
    let sampled = ["--temperature", "0.9", "--top-k", "50", "--top-p", "0.9", "--repetition-penalty", "1.1"];
    let seeded = |seed| ask(MODEL, &[&sampled[..], &["--seed", seed]].concat());
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
    assert!(works(&["inspect", name(&target)]).contains("NF4"));
    let message = refuses(&["quantize", MODEL, name(&target)]);
    assert!(message.contains("is there already"), "{message}");
    assert!(fs::metadata(target.join("model.safetensors")).expect("weights").len() < 5_000_000);
}

#[test]
fn an_adapter_is_merged_and_exported() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_string();
    let train = |output: &str, more: &[&str]| {
        works(&training(output, &[&["--max-steps", "2", "--rank", "4"], more].concat()));
        format!("{output}/adapter")
    };
    let dora = train(&at("dora"), &["--set", "lora.use_dora=true", "--set", r#"lora.modules_to_save=["lm_head"]"#]);
    let pattern = r#"lora.rank_pattern={"model.layers.0.*"=2}"#;
    let plain = train(&at("plain"), &["--set", "lora.use_rslora=true", "--set", pattern]);
    let shown = works(&["inspect", &dora]);
    assert!(shown.contains("DoRA") && shown.contains("modules_to_save"), "{shown}");
    assert!(works(&["inspect", &plain]).contains("rank_pattern"));

    let printed = works(&["merge", MODEL, &dora, &at("merged"), "--device", "cpu", "--dtype", "f32"]);
    assert!(printed.contains("| 0 | 0.00e0 |") && printed.contains("likeliest at 100 %"), "{printed}");
    let figures: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("merged/drift.json")).expect("figures")).expect("JSON");
    assert!(figures["compared"]["logits"].as_f64().expect("a number") < 1e-4, "{figures}");
    let ask = |model: &str, more: &[&str]| {
        let plain = ["generate", model, "--device", "cpu", "--prompt", "a small bird", "--max-new-tokens", "12"];
        works(&[&plain[..], more].concat())
    };
    assert_eq!(ask(&at("merged"), &["--full-precision"]), ask(MODEL, &["--adapter", &dora]));
    let printed = works(&["merge", MODEL, &plain, &at("original"), "--base", "original", "--no-logits"]);
    assert!(printed.contains("e-2 |") && printed.contains("| - |"), "{printed}");

    // A base that was held in full precision is held so again without being told.
    let full = train(&at("full"), &["--set", "quantization.load_in_4bit=false"]);
    let answers = [&[][..], &["--full-precision"]].map(|more| ask(MODEL, &[&["--adapter", &full], more].concat()));
    assert_eq!(answers[0], answers[1]);
    let printed = works(&["merge", MODEL, &full, &at("full-merged"), "--device", "cpu", "--dtype", "f32"]);
    assert!(printed.contains("| 0 | 0.00e0 |") && printed.contains("likeliest at 100 %"), "{printed}");
    // What the comparison at the end needs is missed at the beginning.
    fs::create_dir(at("bare")).expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(root.join(MODEL).join(file), folder.path().join("bare").join(file)).expect(file);
    }
    let message = refuses(&["merge", &at("bare"), &full, &at("nothing")]);
    assert!(message.contains("tokenizer.json") && !folder.path().join("nothing").exists(), "{message}");

    let message = refuses(&["export", &dora, &at("vllm"), "--for", "vllm"]);
    assert!(message.contains("use_dora") && message.contains("halfbyte merge"), "{message}");
    let printed = works(&["export", &plain, &at("sglang"), "--for", "sglang"]);
    assert!(printed.contains("rsLoRA") && printed.contains("zeros to r = 4"), "{printed}");
    works(&["export", &plain, &at("ollama"), "--for", "ollama", "--base", MODEL]);
    assert!(folder.path().join("ollama/adapter.gguf").exists());
}

#[test]
fn a_chat_is_read_line_by_line() {
    let folder = folder();
    let lines = folder.path().join("lines");
    fs::write(&lines, "What is a cat?\n\nAnd a tree?\n").expect("a file");
    let mut command = halfbyte(&["generate", MODEL, "--device", "cpu", "--max-new-tokens", "8"]);
    let output = command.stdin(fs::File::open(&lines).expect("a file")).output().expect("the command starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).lines().count() >= 2);

    // A line in another encoding is no end.
    fs::write(&lines, b"Was ist ein K\xe4fer?\nWhat is a cat?\r\n").expect("a file");
    let mut command = halfbyte(&["generate", MODEL, "--device", "cpu", "--max-new-tokens", "8"]);
    let odd = command.stdin(fs::File::open(&lines).expect("a file")).output().expect("the command starts");
    assert!(odd.status.success() && text(&odd.stderr).contains("not UTF-8"), "{}", text(&odd.stderr));
    let first = |output: &Output| text(&output.stdout).lines().next().map(str::to_string);
    assert_eq!(first(&odd), first(&output), "the answer to the line after it");
}
