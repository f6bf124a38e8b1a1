//! Data as the trainer sees it: files of every format, what of them is trained, and how they go into batches.

mod batches;
mod checks;
mod files;
mod hostile;
mod masks;

use std::path::{Path, PathBuf};

use halfbyte::text::Tokenizer;
use halfbyte_tests::root;
use serde_json::{Value, json};

/// The shipped tokenizer with more special tokens, a template and ids that end generation.
fn tokenizer(special: &[String], template: Option<&str>, stop: &[u32]) -> Tokenizer {
    let folder = root().join("models/wordnet-4m");
    let read = |name: &str| std::fs::read(folder.join(name)).expect(name);
    let mut json: Value = serde_json::from_slice(&read("tokenizer.json")).expect("JSON");
    let size = json["model"]["vocab"].as_object().expect("a vocabulary").len();
    let added = special.iter().enumerate().map(|(i, content)| {
        json!({"id": size + i, "content": content, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    });
    let added: Vec<Value> = added.collect();
    json["added_tokens"].as_array_mut().expect("a list").extend(added);
    let config = json!({"bos_token": "<|begin|>", "eos_token": "<|end|>"});
    let generation = json!({ "eos_token_id": stop });
    Tokenizer::from_bytes(
        "m",
        json.to_string().as_bytes(),
        Some(config.to_string().as_bytes()),
        template.map(str::to_string),
        Some(generation.to_string().as_bytes()),
    )
    .expect("a tokenizer")
}

fn shipped() -> Tokenizer {
    Tokenizer::from_folder(&root().join("models/wordnet-4m")).expect("the shipped tokenizer")
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, text).expect(name);
    path
}
