//! Runs that are killed, interrupted, stopped early and continued, on the CPU, as a user has them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a little of the shipped data, and a recipe of 30 steps, 10 an epoch, of two micro-batches each.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [model, train, test] = common::shipped(folder.path(), [40, 6]);
        let recipe = format!(
            "model = {model:?}\ndevice = \"cpu\"\n\
             [data]\ntrain = {train:?}\ntest = {test:?}\nmax_length = 64\n\
             [lora]\nr = 4\nlora_dropout = 0.1\ntarget_modules = [\"q_proj\", \"down_proj\"]\n\
             [training]\nepochs = 3\nbatch_size = 2\ngradient_accumulation_steps = 2\nlearning_rate = 5e-3\n\
             {more}\n"
        );
        fs::write(folder.path().join("recipe.toml"), recipe).expect("a recipe");
        Self { folder }
    }

    fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, output: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
        command.current_dir(&self.folder).args(["train", "recipe.toml", "--output", output]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Both outputs of a run that goes well.
    fn works(&self, output: &str, more: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.train(output, more).output().expect("the command starts");
        let printed = text(&stdout) + &text(&stderr);
        assert!(status.success(), "{more:?}: {printed}");
        printed
    }

    fn refuses(&self, output: &str, more: &[&str]) -> String {
        let Output { status, stderr, .. } = self.train(output, more).output().expect("the command starts");
        let message = text(&stderr);
        assert!(status.code() == Some(1) && message.contains("error: "), "{more:?}: {message}");
        message
    }

    /// All of a finished run that must not depend on how often it was stopped.
    fn result(&self, output: &str) -> Vec<(String, Vec<u8>)> {
        let output = self.output(output);
        let files = ["adapter/adapter_model.safetensors", "loss.svg", "checkpoint-30/optimizer.safetensors"];
        let mut all: Vec<_> =
            files.iter().map(|file| (file.to_string(), fs::read(output.join(file)).expect(file))).collect();
        let metrics: Vec<String> = metrics(&output).iter().map(Value::to_string).collect();
        all.push(("metrics.jsonl".into(), metrics.join("\n").into()));
        let state = fs::read_to_string(output.join("checkpoint-30/trainer_state.json")).expect("a state");
        let state = state.replace(output.file_name().and_then(|name| name.to_str()).expect("a name"), "OUTPUT");
        all.push(("trainer_state.json".into(), state.into()));
        all
    }

    fn same(&self, output: &str, expected: &[(String, Vec<u8>)], when: &str) {
        for ((name, found), (_, expected)) in self.result(output).iter().zip(expected) {
            let both = || format!("{}\n{}", text(found), text(expected));
            let shown = if name.ends_with("jsonl") { both() } else { String::new() };
            assert!(found == expected, "{when}: {name} differs from the run that was not stopped\n{shown}");
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of a run's metrics, without how fast it was.
fn metrics(output: &Path) -> Vec<Value> {
    let lines = fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).ok()?;
        line.as_object_mut()?.remove("tokens_per_second");
        Some(line)
    };
    lines.lines().filter_map(line).collect()
}

fn steps(output: &Path) -> Vec<u64> {
    let metrics = metrics(output);
    metrics.iter().filter(|line| line["loss"].is_f64()).filter_map(|line| line["step"].as_u64()).collect()
}

const SAVING: &str =
    "[checkpoints]\nsave_steps = 2\nsave_total_limit = 3\n[evaluation]\neval_strategy = \"steps\"\neval_steps = 3";

#[test]
fn a_run_that_is_killed_twenty_times_ends_as_one_that_is_not() {
    let case = Case::new(SAVING);
    let started = Instant::now();
    case.works("straight", &[]);
    let whole = started.elapsed();
    let expected = case.result("straight");
    let seed = std::env::var("HALFBYTE_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs()));
    println!("HALFBYTE_TEST_SEED={seed}; a run takes {whole:?}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut kills, mut in_training, mut runs) = (0, 0, 0);
    while kills < 20 {
        let output = format!("killed-{runs}");
        let moment = Duration::from_secs_f64(whole.as_secs_f64() * random.random_range(0.0..0.7));
        let mut child = case.train(&output, &["--resume"]).stdout(Stdio::null()).spawn().expect("the command starts");
        std::thread::sleep(moment);
        match child.try_wait().expect("a state") {
            None => {
                child.kill().expect("it can be killed");
                child.wait().expect("it ends");
                kills += 1;
                in_training += usize::from(case.output(&output).join("metrics.jsonl").exists());
            }
            Some(status) => {
                assert!(status.success(), "seed {seed}: {}", text(&child.wait_with_output().expect("it ended").stderr));
                case.same(&output, &expected, &format!("seed {seed}, after {kills} kills"));
                runs += 1;
            }
        }
    }
    let output = format!("killed-{runs}");
    case.works(&output, &["--resume"]);
    case.same(&output, &expected, &format!("seed {seed}, after the last kill"));
    println!("{kills} kills, {in_training} of them after training had begun, in {} runs", runs + 1);
    assert!(in_training >= 5, "most kills came before the first step; seed {seed}");
    let left =
        fs::read_dir(case.output(&output)).expect("the output").map(|entry| entry.expect("an entry").file_name());
    let left: Vec<String> = left.map(|name| name.to_string_lossy().into_owned()).collect();
    assert_eq!(left.iter().filter(|name| name.starts_with('.')).count(), 0, "no scraps: {left:?}");
    assert_eq!(left.iter().filter(|name| name.starts_with("checkpoint-")).count(), 3, "{left:?}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_a_checkpoint_and_says_how_to_go_on() {
    let case = Case::new("");
    for signal in ["INT", "TERM"] {
        let output = case.output(signal);
        let child = case.train(signal, &["--epochs", "200"]).spawn().expect("the command starts");
        let begun = Instant::now();
        while steps(&output).len() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no step was made");
            std::thread::sleep(Duration::from_millis(5));
        }
        let kill = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(kill.expect("kill").success());
        let ended = child.wait_with_output().expect("it ends");
        let message = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(130), "{message}");
        let done = *steps(&output).last().expect("steps");
        let saved = format!("{signal}/checkpoint-{done} is saved");
        assert!(
            message.contains(&saved) && message.contains(&format!("train {signal}/recipe.toml --resume")),
            "{message}"
        );
        assert!(!output.join("adapter").exists(), "it is not finished");
        // The run may be made shorter, and ends with the steps of before and the new ones.
        let printed = case.works(signal, &["--epochs", "200", "--max-steps", &(done + 2).to_string(), "--resume"]);
        assert!(printed.contains("the run was to have 2000 steps"), "{printed}");
        assert_eq!(steps(&output), (1..=done + 2).collect::<Vec<_>>());
    }
}

#[test]
fn what_cannot_be_continued_is_refused_and_nothing_is_lost() {
    let case = Case::new(SAVING);
    case.works("run", &[]);
    let expected = case.result("run");
    let message = case.refuses("run", &[]);
    assert!(message.contains("run/checkpoint-30 is of an earlier run") && message.contains("--resume"), "{message}");
    for (flag, value, key, before) in [
        ("--batch-size", "3", "training.batch_size", "2"),
        ("--rank", "8", "lora.r", "4"),
        ("--seed", "7", "seed", "42"),
    ] {
        let message = case.refuses("run", &["--resume", flag, value]);
        let both = format!("run.json: `{key}`: the run began with {before}, the recipe now says {value}");
        assert!(message.contains(&both), "{message}");
    }
    let train = case.output("train.jsonl");
    let lines = fs::read_to_string(&train).expect("the data");
    fs::write(&train, lines.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>()).expect("a file");
    assert!(case.refuses("run", &["--resume"]).contains("`data.train (tokens)`"));
    fs::write(&train, lines).expect("a file");
    let message = case.refuses("run", &["--resume", "--max-steps", "20"]);
    assert!(message.contains("step 30") && message.contains("training.max_steps"), "{message}");

    // The last checkpoint is cut short: by name it is refused, otherwise the one before it is taken.
    let optimizer = case.output("run/checkpoint-30/optimizer.safetensors");
    let bytes = fs::read(&optimizer).expect("a file");
    fs::write(&optimizer, &bytes[..bytes.len() / 2]).expect("a file");
    let message = case.refuses("run", &["--resume", "run/checkpoint-30"]);
    let whole = "the one before it is whole: --resume run/checkpoint-28";
    assert!(message.contains("checkpoint-30/optimizer.safetensors: has ") && message.contains(whole), "{message}");
    let printed = case.works("run", &["--resume"]);
    assert!(printed.contains("leaving run/checkpoint-30 out") && printed.contains("step 28 of 30"), "{printed}");
    case.same("run", &expected, "from the checkpoint before");
    for entry in fs::read_dir(case.output("run")).expect("the output") {
        let run = entry.expect("an entry").path().join("run.json");
        if run.exists() {
            fs::write(run, "{}").expect("a file");
        }
    }
    assert!(case.refuses("run", &["--resume"]).contains("none of the checkpoints in run is whole"));
}

#[test]
fn the_best_adapter_is_kept_and_training_stops_when_nothing_improves() {
    let case = Case::new("[evaluation]\neval_strategy = \"steps\"\neval_steps = 2\nload_best_model_at_end = true");
    // Whoever learns to say that it is a plant unlearns this: the first evaluation is the best.
    let other = r#"{"prompt": "What is a baker?", "completion": "A person who bakes bread for a living in a town."}"#;
    fs::write(case.output("test.jsonl"), other).expect("a file");
    let printed = case.works("best", &["--set", "checkpoints.save_total_limit=1"]);
    let output = case.output("best");
    let metrics = metrics(&output);
    let evaluations = metrics.iter().filter(|line| line["step"].as_u64() > Some(0));
    let evaluations: Vec<_> =
        evaluations.filter_map(|line| Some((line["eval_loss"].as_f64()?, line["step"].as_u64()?))).collect();
    assert_eq!(evaluations.len(), 15, "{evaluations:?}");
    let (loss, best) = *evaluations.iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("evaluations");
    assert!(best < 30, "the test needs a run whose end is not its best: {evaluations:?}");
    let read = |file: &str| fs::read(output.join(file)).expect(file);
    let checkpoint = format!("checkpoint-{best}");
    let of_best = read(&format!("{checkpoint}/adapter_model.safetensors"));
    assert!(read("adapter/adapter_model.safetensors") == of_best, "{printed}");
    let state: Value = serde_json::from_slice(&read(&format!("{checkpoint}/trainer_state.json"))).expect("JSON");
    assert_eq!(state["best_metric"].as_f64(), Some(loss));
    assert_eq!(state["best_model_checkpoint"], format!("best/{checkpoint}"));

    // No loss is better by 100: the first evaluation is the best, three others are waited for.
    let waiting = ["--set", "evaluation.early_stopping_patience=3", "--set", "evaluation.early_stopping_threshold=100"];
    case.works("early", &waiting);
    assert_eq!(steps(&case.output("early")).len(), 8);

    // The report tells of the adapter that was kept.
    let report = String::from_utf8(read("report.html")).expect("a page");
    assert!(report.contains(&format!("before, {loss:.4} after")), "{loss}");
    let message = case.refuses("wrong", &["--set", "evaluation.eval_strategy=no"]);
    assert!(message.contains("evaluation.eval_steps: has no effect"), "{message}");
    assert!(case.refuses("wrong", &["--set", "data.test="]).contains("set data.test"));
    assert!(case.refuses("wrong", &["--set", "checkpoints.save_steps=0"]).contains("save_strategy = \"no\""));
}

#[test]
fn what_was_best_by_other_data_is_not() {
    let case = Case::new(SAVING);
    case.works("run", &["--max-steps", "8"]);
    let changed = r#"{"prompt": "What is a baker?", "completion": "A person who bakes bread."}"#;
    fs::write(case.output("test.jsonl"), changed).expect("a file");
    let printed = case.works("run", &["--resume", "--max-steps", "12"]);
    assert!(printed.contains("which evaluation was the best so far is forgotten"), "{printed}");
    let state = fs::read(case.output("run/checkpoint-12/trainer_state.json")).expect("a state");
    let state: Value = serde_json::from_slice(&state).expect("JSON");
    assert!(state["best_global_step"].as_u64() > Some(8), "{}", state["best_global_step"]);
    let printed = case.works("run", &["--resume", "--max-steps", "16"]);
    assert!(!printed.contains("forgotten"), "{printed}");
}

#[test]
fn a_run_that_was_made_shorter_is_evaluated_once() {
    let case = Case::new("[checkpoints]\nsave_steps = 2\nsave_total_limit = 0");
    case.works("run", &["--max-steps", "6"]);
    for later in ["checkpoint-4", "checkpoint-6"] {
        fs::remove_dir_all(case.output("run").join(later)).expect("a checkpoint");
    }
    for _ in 0..2 {
        case.works("run", &["--resume", "--max-steps", "2"]);
        let lines = metrics(&case.output("run"));
        let evaluated: Vec<_> =
            lines.iter().filter(|line| line["eval_loss"].is_f64()).filter_map(|line| line["step"].as_u64()).collect();
        assert_eq!(evaluated, [0, 2]);
    }
}

#[test]
fn epochs_end_with_an_evaluation_and_a_checkpoint() {
    let by_epoch =
        "[evaluation]\neval_strategy = \"epoch\"\n[checkpoints]\nsave_strategy = \"epoch\"\nsave_total_limit = 0";
    let case = Case::new(by_epoch);
    case.works("run", &["--set", "evaluation.metric_for_best_model=eval_mean_token_accuracy"]);
    for step in [10, 20, 30] {
        assert!(case.output(&format!("run/checkpoint-{step}/run.json")).exists(), "{step}");
    }
    let metrics = metrics(&case.output("run"));
    let evaluated =
        metrics.iter().filter(|line| line["eval_perplexity"].is_f64()).filter_map(|line| line["step"].as_u64());
    assert_eq!(evaluated.collect::<Vec<_>>(), [0, 10, 20, 30]);
}

#[test]
fn verify_resume_proves_it_on_this_machine() {
    let case = Case::new("");
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
    command.current_dir(&case.folder).args(["verify-resume", "recipe.toml", "--steps", "5"]);
    let Output { status, stdout, stderr } = command.output().expect("the command starts");
    let printed = text(&stdout);
    assert!(status.success(), "{printed}{}", text(&stderr));
    assert!(printed.contains("stopped after step 2") && printed.contains("optimizer.safetensors: 0 of "), "{printed}");
    assert!(printed.contains("is exact"), "{printed}");
}
