//! The command with names of the hub in place of folders, against a server on this machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

// Shared by its path, so that building the command does not need the crate of all other tests.
#[path = "../../tests/src/hub_server.rs"]
#[allow(unreachable_pub)]
mod hub_server;

use hub_server::{HubServer, Repo};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

struct Case {
    server: HubServer,
    folder: TempDir,
}

impl Case {
    /// A hub with the shipped model and the data of its recipe.
    fn new() -> Self {
        let case = Self { server: HubServer::start(), folder: tempfile::tempdir().expect("a folder") };
        let repo = |folder: &str| {
            let mut repo = Repo { commit: COMMIT.into(), ..Repo::default() };
            for entry in fs::read_dir(root().join(folder)).expect(folder).flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                repo.files.insert(name, fs::read(entry.path()).expect("a file"));
            }
            repo
        };
        case.server.with(|state| {
            state.repos.insert("models/org/wordnet".into(), repo("models/wordnet-4m"));
            state.repos.insert("datasets/org/kinds".into(), repo("recipes/kinds"));
        });
        case
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
        for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.server.url).env("HF_HOME", self.folder.path().join("hf"));
        command.envs(variables.iter().copied()).current_dir(root()).args(arguments).stdin(Stdio::null());
        command.output().expect("the command starts")
    }

    fn works(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn refuses(&self, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.run(arguments, variables);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains("error: ") && !message.contains("panicked"), "{message}");
        message
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn memory_is_planned_before_anything_large_is_downloaded() {
    let case = Case::new();
    assert!(case.works(&["memory", "org/wordnet"]).contains("4,000,000"));
    let files: Vec<String> =
        case.server.requests().into_iter().filter(|request| request.contains("/resolve/")).collect();
    assert!(files.iter().all(|request| request.ends_with("/config.json")), "{files:?}");
    let shown = case.works(&["inspect", "org/wordnet"]);
    assert!(shown.contains("4,000,000 parameters") && shown.contains("not on this machine"), "{shown}");
    assert!(!case.server.requests().iter().any(|request| request.contains("safetensors")));
}

#[test]
fn a_run_by_names_of_the_hub_says_what_it_was_made_of() {
    let case = Case::new();
    let output = case.path("run");
    let names = ["train", "recipes/kinds.toml", "--device", "cpu", "--output", &output, "--model", "org/wordnet"];
    let data = ["--train", "org/kinds", "--test", "datasets/org/kinds/test.jsonl", "--max-steps", "2"];
    let checked = case.works(&["data", "check", "--model", "org/wordnet", "--train", "org/kinds"]);
    assert!(checked.contains("nothing is wrong with it"), "{checked}");
    let short = ["--batch-size", "2", "--set", "show.max_new_tokens=4"];
    let printed = case.works(&[&names[..], &data, &short].concat());
    assert!(printed.contains("model org/wordnet") && printed.contains("--adapter"), "{printed}");
    let read = |name: &str| fs::read_to_string(Path::new(&output).join(name)).expect(name);
    let run: serde_json::Value = serde_json::from_str(&read("run.json")).expect("JSON");
    assert_eq!((run["status"].as_str(), run["steps"].as_u64()), (Some("finished"), Some(2)), "{run}");
    assert_eq!((run["base"]["name"].as_str(), run["base"]["revision"].as_str()), (Some("org/wordnet"), Some(COMMIT)));
    // Independent of how the command hashes: the server's own.
    let weights = fs::read(root().join("models/wordnet-4m/model.safetensors")).expect("the shipped model");
    let files = run["base"]["files"].as_array().expect("files");
    let file = files.iter().find(|file| file["name"] == "model.safetensors").expect("the weights");
    assert_eq!(file["sha256"].as_str(), Some(hub_server::sha256(&weights).as_str()));
    assert_eq!(file["from_cache"].as_bool(), Some(cfg!(unix)));
    let test = fs::read(root().join("recipes/kinds/test.jsonl")).expect("the data");
    assert_eq!(run["data"][1]["sha256"].as_str(), Some(hub_server::sha256(&test).as_str()));
    assert_eq!(run["data"][0]["name"].as_str(), Some("org/kinds"));
    assert_eq!(run["recipe_sha256"].as_str(), Some(hub_server::sha256(read("recipe.toml").as_bytes()).as_str()));
    assert_eq!(run["recipe"]["training"]["max_steps"].as_u64(), Some(2));
    assert_eq!(run["eval_loss"].as_array().map(Vec::len), Some(2));
    let adapter = read("adapter/adapter_config.json");
    assert!(adapter.contains("\"base_model_name_or_path\": \"org/wordnet\""), "{adapter}");
    // The cache is enough for what comes next.
    let adapter = format!("{output}/adapter");
    let ask =
        ["generate", "org/wordnet", "--adapter", &adapter, "--device", "cpu", "--prompt", "a", "--max-new-tokens", "2"];
    let offline = case.run(&ask, &[("HF_HUB_OFFLINE", "1")]);
    assert!(offline.status.success(), "{}", String::from_utf8_lossy(&offline.stderr));
    // Merging and exporting go by names too; the adapter knows its base's.
    let (merged, gguf) = (case.path("merged"), case.path("gguf"));
    case.works(&["merge", "org/wordnet", &adapter, &merged, "--no-logits"]);
    assert!(Path::new(&merged).join("model.safetensors").exists());
    case.works(&["export", &adapter, &gguf, "--for", "ollama"]);
    let modelfile = fs::read_to_string(Path::new(&gguf).join("Modelfile")).expect("a file");
    assert!(modelfile.contains("FROM /") && modelfile.contains(COMMIT), "{modelfile}");
    let printed = case.works(&["export", &adapter, &case.path("vllm"), "--for", "vllm"]);
    assert!(printed.contains("vllm serve org/wordnet"), "{printed}");
}

#[test]
fn a_name_is_quantized_shard_by_shard_and_dropped() {
    let case = Case::new();
    let (streamed, local) = (case.path("streamed"), case.path("local"));
    case.works(&["quantize", "org/wordnet", &streamed]);
    case.works(&["quantize", "models/wordnet-4m", &local]);
    for file in ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"] {
        let read = |folder: &str| fs::read(Path::new(folder).join(file)).expect(file);
        assert!(read(&streamed) == read(&local), "{file}");
    }
    let snapshot = case.folder.path().join("hf/hub/models--org--wordnet/snapshots").join(COMMIT);
    assert!(snapshot.join("config.json").exists() && !snapshot.join("model.safetensors").exists());
    case.server.requests();
    assert!(case.refuses(&["quantize", "org/wordnet", &streamed], &[]).contains("is there already"));
    assert!(case.server.requests().is_empty(), "nothing is downloaded for an output that is there");
}

#[test]
fn a_name_that_is_nowhere_says_both() {
    let case = Case::new();
    let message = case.refuses(&["inspect", "org/nothing"], &[]);
    assert!(message.contains("no such folder here") && message.contains("no repository of this name"), "{message}");
    let message = case.refuses(&["inspect", "no/such/folder"], &[]);
    assert!(message.contains("no such folder") && message.contains("org/name[@revision]"), "{message}");
    let message = case.refuses(&["generate", "org/wordnet", "--prompt", "a"], &[("HF_HUB_OFFLINE", "1")]);
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    // A file that was mistyped is not looked for elsewhere.
    case.server.requests();
    let message =
        case.refuses(&["train", "recipes/kinds.toml", "--train", "kinds/trian.jsonl", "--device", "cpu"], &[]);
    assert!(message.contains("kinds/trian.jsonl") && !message.contains("hub"), "{message}");
    assert!(case.server.requests().is_empty());
}
