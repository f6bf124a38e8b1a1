//! What a run finds in its output folder, and what it leaves of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{folder, halfbyte, name, refuses, text, training, works};

/// All files below a folder and what they hold.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), fs::read(path).expect("a file"));
        }
    }
    all
}

fn manifest(output: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(output.join("run.json")).expect("a manifest")).expect("JSON")
}

/// Ends every run with an error after its first step.
const DIVERGING: [&str; 6] = ["--max-steps", "20", "--learning-rate", "1e25", "--set", "training.warmup_ratio=0"];

#[test]
fn what_cannot_be_begun_leaves_what_an_earlier_run_made() {
    let folder = folder();
    let output = folder.path().join("run");
    works(&training(name(&output), &["--max-steps", "2"]));
    let before = files(&output);
    assert!(refuses(&training(name(&output), &["--dashboard"])).contains("the output is no terminal"));
    assert!(refuses(&training(name(&output), &["--train", "nothing.jsonl"])).contains("nothing.jsonl"));
    assert!(files(&output) == before, "a run that is refused changes nothing");

    // Whatever else is wrong is found later: with the data, or the model.
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a file");
    let below = file.join("run");
    let said = refuses(&training(name(&below), &["--model", "no/model"]));
    assert!(said.contains("`output`: ") && said.contains("cannot be written into"), "{said}");
    let said = refuses(&["train", "recipes/kinds.toml", "--device", "cpu", "--set", "output="]);
    assert!(said.contains("`output`: names no folder"), "{said}");
    let inner = folder.path().join("made/for/it");
    refuses(&training(name(&inner), &["--train", "nothing.jsonl"]));
    assert!(!folder.path().join("made").exists(), "folders that were made for a run that is refused");
}

#[test]
fn a_run_that_fails_leaves_the_adapter_of_one_that_was_finished() {
    let folder = folder();
    let output = folder.path().join("run");
    works(&training(name(&output), &["--max-steps", "2"]));
    let adapter = files(&output.join("adapter"));
    assert_eq!(manifest(&output)["status"], "finished");
    let said = refuses(&training(name(&output), &DIVERGING));
    let both = format!("{0}/adapter-stopped; {0}/adapter is of an earlier run", name(&output));
    assert!(said.contains(&both), "{said}");
    assert!(files(&output.join("adapter")) == adapter);
    assert!(works(&["inspect", name(&output.join("adapter-stopped"))]).contains("LoRA"));
    assert_eq!(manifest(&output)["status"], "failed");
}

#[test]
fn a_manifest_tells_of_every_failure() {
    let folder = folder();
    for (blocked, steps) in [("metrics.jsonl", 0), ("loss.svg", 2), ("report.html", 2)] {
        let output = folder.path().join(blocked);
        // No file takes the place of a folder.
        fs::create_dir_all(output.join(blocked).join("inner")).expect("a folder");
        let mut command = halfbyte(&training(name(&output), &["--max-steps", "2"]));
        let ended = command.output().expect("the command starts");
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{blocked}: {said}");
        let run = manifest(&output);
        let reason = run["reason"].as_str().unwrap_or_default();
        assert!(run["status"] == "failed" && !reason.is_empty() && said.contains(reason), "{blocked}: {run} {said}");
        let metrics = fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default();
        assert_eq!(metrics.lines().count(), steps, "{blocked}: {said}");
    }
}

#[test]
fn two_runs_do_not_write_into_one_folder() {
    let folder = folder();
    let output = folder.path().join("run");
    let mut command = halfbyte(&training(name(&output), &["--epochs", "200"]));
    let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts");
    let metrics = || fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default().lines().count();
    let begun = Instant::now();
    while metrics() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no step was made");
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = refuses(&training(name(&output), &["--max-steps", "1"]));
    assert!(said.contains("`output`: another run") && said.contains(name(&output.join("run.lock"))), "{said}");
    assert!(first.try_wait().expect("a state").is_none() && metrics() >= 2, "the first goes on");
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    assert!(output.join("run.lock").exists(), "a process that is killed leaves the file, which locks nothing");
    works(&training(name(&output), &["--max-steps", "1"]));
}

#[test]
fn a_recipe_of_the_users_own_stays_as_it_is() {
    let folder = folder();
    let output = folder.path().join("a run");
    fs::create_dir(&output).expect("a folder");
    let own = output.join("recipe.toml");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/kinds.toml")).expect("one");
    fs::write(&own, &text).expect("a file");
    let run = |recipe: &Path, output: &Path, steps: &str, more: &[&str]| {
        let mut arguments = training(name(output), &["--max-steps", steps]);
        arguments[1] = name(recipe);
        arguments.extend(more);
        works(&arguments)
    };
    let saves = ["--set", "checkpoints.save_steps=2"];
    let said = run(&own, &output, "2", &saves);
    assert_eq!(fs::read_to_string(&own).expect("the recipe"), text);
    let as_run = output.join("recipe-as-run.toml");
    assert!(fs::read_to_string(&as_run).expect("the recipe as it was run").contains("max_steps = 2"));
    // What is printed to be typed is one word, blank and all.
    assert!(said.contains(&format!("--adapter '{}/adapter'", name(&output))), "{said}");
    run(&as_run, &output, "4", &["--resume"]);
    assert_eq!(fs::read_to_string(&own).expect("the recipe"), text);
    assert!(fs::read_to_string(&as_run).expect("the recipe as it was run").contains("max_steps = 4"));

    // One that a run wrote is written anew.
    let other = folder.path().join("other");
    run(&own, &other, "2", &saves);
    let written = other.join("recipe.toml");
    run(&written, &other, "4", &["--resume"]);
    assert!(fs::read_to_string(&written).expect("the recipe").contains("max_steps = 4"));
    assert!(!other.join("recipe-as-run.toml").exists());
}
