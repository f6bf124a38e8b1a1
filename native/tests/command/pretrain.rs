//! A small model from scratch: what is refused, and what is written.

use std::fs;

use super::{folder, name, refuses, without_weights, works};

#[test]
fn a_model_is_pretrained_where_there_is_none() {
    let folder = folder();
    let model = folder.path().join("model");
    without_weights(&model);
    let data = folder.path().join("data.jsonl");
    fs::write(
        &data,
        "{\"text\": \"a small bird that sings in the morning, and a large one that does not\"}\n".repeat(4),
    )
    .expect("a file");
    let output = folder.path().join("out");
    let recipe = folder.path().join("recipe.toml");
    let text = format!(
        "model = {model:?}\noutput = {output:?}\ntrain = {data:?}\ntest = {data:?}\nlength = 16\n\
         [training]\nmax_steps = 2\nbatch_size = 1\n"
    );
    fs::write(&recipe, text).expect("a recipe");
    let command = ["pretrain", name(&recipe), "--device", "cpu"];
    let refused = |key: &str, value: &str| {
        let setting = format!("{key}={value}");
        let said = refuses(&[&command[..], &["--set", &setting]].concat());
        assert!(said.contains(&format!("recipe.toml: `{key}`: ")), "{said}");
        assert!(!output.exists(), "nothing is written");
        said
    };
    for key in ["model", "train", "test"] {
        assert!(refused(key, "").contains("is not set; name a"), "{key}");
        assert!(refused(key, "nowhere").contains("`nowhere` is not there"), "{key}");
    }
    refused("length", "1");
    let said = refuses(&[&command[..], &["--set", "output="]].concat());
    assert!(said.contains("`output`: names no folder"), "{said}");

    assert!(works(&command).contains("model.safetensors in "));
    let weights = model.join("model.safetensors");
    let first = fs::read(&weights).expect("weights");
    let said = refuses(&command);
    assert!(said.contains("model.safetensors is there already") && said.contains("remove it"), "{said}");
    assert!(fs::read(&weights).expect("weights") == first, "they stay");
    fs::remove_file(&weights).expect("a file");
    works(&command);
    assert!(fs::read(&weights).expect("weights") == first, "the same seed makes the same model");
}
