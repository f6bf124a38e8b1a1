//! Evaluation against transformers, and checkpoints: a run that is stopped goes on as if it had not been.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use halfbyte::backends::Cpu;
use halfbyte::data::{Dataset, Example};
use halfbyte::files::load_adapter;
use halfbyte::lora::{LoraConfig, attach};
use halfbyte::ops::Sequences;
use halfbyte::optim::StateTensor;
use halfbyte::train::{
    Recipe, Run, SavedCheckpoint, Targets, Trainer, checkpoint_folder, checkpoints, loss_and_hits, remove_checkpoints,
    save_checkpoint,
};
use halfbyte_tests::reference::{MODELS, NF4, expected, golden_batch, model, tokens, values, with_adapter};
use halfbyte_tests::{Expected, golden};
use pollster::block_on;
use tempfile::TempDir;

const MODEL: &str = "llama-untied";
const ROW: usize = 24;

/// Rows of golden tokens, trained where the reference trains.
fn data(ids: &[i64], labels: &[i64]) -> Dataset {
    let examples = ids.chunks(ROW).zip(labels.chunks(ROW)).map(|(ids, labels)| Example {
        tokens: tokens(ids),
        trained: labels.iter().map(|label| *label != -100).collect(),
    });
    Dataset { examples: examples.collect(), ..Dataset::default() }
}

/// Where each row's largest logit is.
fn likeliest(expected: &Expected) -> Vec<u32> {
    let (logits, shape) = (expected.floats("lora_logits"), expected.shape("lora_logits"));
    let largest = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i as u32);
    logits.chunks(shape[shape.len() - 1]).map(|row| largest(row).expect("a row")).collect()
}

#[test]
fn an_evaluation_is_that_of_transformers() {
    for name in MODELS {
        let expected = expected(name);
        let data = data(&expected.integers("input_ids"), &expected.integers("labels"));
        let found = block_on(halfbyte::train::evaluate(&with_adapter::<Cpu>(name, &Default::default()), &data, 2, 5));
        let found = found.expect(name);
        let loss = f64::from(expected.floats("lora_loss")[0]);
        assert!((found.loss / loss - 1.0).abs() < 1e-4, "{name}: {found:?}, expected {loss}");
        assert!((found.perplexity / loss.exp() - 1.0).abs() < 1e-3, "{name}: {found:?}");
        let (batch, likeliest) = (golden_batch(&expected), likeliest(&expected));
        let right = batch.targets.iter().filter(|(row, token)| likeliest[*row] == *token).count();
        let accuracy = right as f64 / batch.targets.len() as f64;
        assert_eq!((found.mean_token_accuracy, found.trained_tokens), (accuracy, batch.targets.len()), "{name}");
    }
}

#[test]
fn predicted_tokens_are_counted_in_chunks_of_any_length() {
    for name in MODELS {
        let (expected, model) = (expected(name), with_adapter::<Cpu>(name, &Default::default()));
        let (batch, likeliest) = (golden_batch(&expected), likeliest(&expected));
        // Every third row asks for the token after the likeliest.
        let asked = |(row, token): (usize, &u32)| if row % 3 == 0 { (token + 1) % 128 } else { *token };
        let targets =
            Targets { rows: (0..likeliest.len()).collect(), tokens: likeliest.iter().enumerate().map(asked).collect() };
        let hidden = model.hidden(&batch.tokens, &model.passes(&Sequences::new(&batch.lengths)), None);
        for chunk in [1, 7, 72, 512] {
            let [_, hits] = loss_and_hits(&model.head, hidden.clone(), &targets, chunk);
            assert_eq!(values(hits), [48.0], "{name}: 72 rows less a third, in chunks of {chunk}");
        }
    }
}

/// A run on a tiny model: 4 steps an epoch of 2 micro-batches of 2 examples, with dropout.
struct Case {
    folder: TempDir,
    run: Run,
    data: Dataset,
}

impl Case {
    fn new() -> Self {
        let expected = expected(MODEL);
        let data =
            data(&expected.integers("curve_input_ids")[..ROW * 15], &expected.integers("curve_labels")[..ROW * 15]);
        let mut recipe = Recipe { model: golden(MODEL).display().to_string(), ..Recipe::default() };
        recipe.lora = LoraConfig { r: 4, lora_dropout: 0.2, ..LoraConfig::default() };
        recipe.training.epochs = 3;
        recipe.training.batch_size = 2;
        recipe.training.gradient_accumulation_steps = 2;
        recipe.training.learning_rate = 1e-2;
        let run = Run::new(&recipe, Path::new(&recipe.model), &data, None).expect("a run");
        Self { folder: tempfile::tempdir().expect("a folder"), run, data }
    }

    fn trainer(&self) -> Trainer<Cpu> {
        let mut model = model::<Cpu>(MODEL, NF4, &Default::default());
        attach(&mut model, &self.run.recipe.lora, self.run.recipe.seed).expect("an adapter");
        let config = self.run.recipe.training.clone();
        Trainer::new(model, self.data.clone(), config, self.run.recipe.seed).expect("a trainer")
    }

    fn save(&self, trainer: &mut Trainer<Cpu>) -> std::path::PathBuf {
        block_on(save_checkpoint(trainer, &self.run, self.folder.path())).expect("a checkpoint")
    }

    fn resumed(&self, checkpoint: &Path) -> Trainer<Cpu> {
        let (saved, mut trainer) = (SavedCheckpoint::open(checkpoint).expect("whole"), self.trainer());
        saved.check(&self.run).expect("the same run");
        saved.restore(&mut trainer).expect("restored");
        trainer
    }
}

fn steps(trainer: &mut Trainer<Cpu>, count: usize) {
    for _ in 0..count {
        block_on(trainer.step()).expect("a finite step").expect("a step");
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let names =
        ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json", "run.json"];
    names.iter().map(|name| (name.to_string(), fs::read(folder.join(name)).expect(name))).collect()
}

#[test]
fn a_resumed_run_ends_as_one_that_was_not_stopped() {
    let case = Case::new();
    let mut straight = case.trainer();
    assert_eq!((straight.steps_per_epoch(), straight.total_steps()), (4, 12));
    steps(&mut straight, 12);
    let end = files(&case.save(&mut straight));
    // In the middle of an epoch, at the end of one, and once more.
    let mut stopped = case.trainer();
    for (at, next) in [(3, 8), (8, 9), (9, 12)] {
        let done = stopped.state.global_step;
        steps(&mut stopped, at - done);
        let checkpoint = case.save(&mut stopped);
        // Killed in the middle of a step, whose work is lost.
        steps(&mut stopped, 1);
        let lost = stopped.state.log_history.last().cloned();
        stopped = case.resumed(&checkpoint);
        assert_eq!(stopped.state.global_step, at);
        steps(&mut stopped, 1);
        assert_eq!(stopped.state.log_history.last(), lost.as_ref(), "step {} is replayed", at + 1);
        steps(&mut stopped, next - at - 1);
    }
    assert_eq!(stopped.state, straight.state);
    for ((name, found), (_, expected)) in files(&case.save(&mut stopped)).iter().zip(&end) {
        assert!(found == expected, "{name} differs");
    }
    assert!(block_on(stopped.step()).expect("no step is left").is_none());
}

#[test]
fn a_checkpoint_that_is_not_whole_is_refused_by_name() {
    let case = Case::new();
    let mut trainer = case.trainer();
    steps(&mut trainer, 1);
    let path = case.save(&mut trainer);
    for (name, bytes) in files(&path) {
        let file = path.join(&name);
        let refused = |what: &str, bytes: &[u8]| {
            fs::write(&file, bytes).expect("a file");
            let error = SavedCheckpoint::open(&path).err().unwrap_or_else(|| panic!("{name}, {what}, was taken"));
            assert!(error.to_string().contains(&name), "{name}, {what}: {error}");
        };
        refused("empty", &[]);
        refused("without its second half", &bytes[..bytes.len() / 2]);
        refused("without its last byte", &bytes[..bytes.len() - 1]);
        if name != "run.json" {
            let mut flipped = bytes.clone();
            flipped[bytes.len() / 2] ^= 1;
            refused("with a bit flipped", &flipped);
            refused("with a byte more", &[&bytes[..], b" "].concat());
        }
        fs::remove_file(&file).expect("removed");
        assert!(SavedCheckpoint::open(&path).expect_err("missing").to_string().contains(&name));
        fs::write(&file, &bytes).expect("a file");
        SavedCheckpoint::open(&path).expect("whole again");
    }
}

type State = BTreeMap<String, StateTensor>;

#[test]
fn the_state_of_another_model_is_refused() {
    let case = Case::new();
    let mut trainer = case.trainer();
    steps(&mut trainer, 2);
    let state = block_on(trainer.optimizer_state()).expect("a state");
    assert!(state.contains_key("model.layers.0.self_attn.q_proj.lora_A.weight.exp_avg"), "{:?}", state.keys().next());
    let last = state.keys().next_back().expect("a state").clone();
    let refused = |change: &dyn Fn(&mut State)| {
        let (mut fresh, mut state) = (case.trainer(), state.clone());
        change(&mut state);
        let error = fresh.restore(trainer.state.clone(), state).expect_err("refused").to_string();
        assert_eq!(fresh.state.global_step, 0, "nothing changed");
        assert!(error.contains("optimizer state `"), "{error}");
        error
    };
    assert!(refused(&|state| drop(state.remove(&last))).contains(&last));
    assert!(refused(&|state| state.get_mut(&last).expect("there").shape.reverse()).contains("but this run keeps"));
    assert!(refused(&|state| state.get_mut(&last).expect("there").bytes.truncate(8)).contains("8 bytes"));
    let stray = |state: &mut State| {
        state.insert("model.norm.weight.exp_avg".to_string(), state[&last].clone());
    };
    assert!(refused(&stray).contains("model.norm.weight"));
    let mut far = trainer.state.clone();
    far.global_step = 13;
    let error = case.trainer().restore(far, state.clone()).expect_err("too far").to_string();
    assert!(error.contains("step 13") && error.contains("max_steps"), "{error}");
}

#[test]
fn neither_the_best_nor_the_last_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let steps = |limit, keep: &[usize]| {
        for step in [2, 4, 6, 10, 100] {
            fs::create_dir_all(checkpoint_folder(folder.path(), step)).expect("a folder");
        }
        fs::create_dir_all(folder.path().join("checkpoint-last")).expect("a folder");
        remove_checkpoints(folder.path(), limit, keep).expect("removed");
        checkpoints(folder.path()).expect("listed").into_iter().map(|(step, _)| step).collect::<Vec<_>>()
    };
    assert_eq!(steps(0, &[]), [2, 4, 6, 10, 100]);
    assert_eq!(steps(2, &[]), [10, 100]);
    assert_eq!(steps(2, &[4]), [4, 100]);
    assert_eq!(steps(1, &[4]), [4, 100]);
    assert_eq!(steps(1, &[]), [100]);
    assert_eq!(steps(3, &[2, 10]), [2, 10, 100]);
    assert!(folder.path().join("checkpoint-last").exists(), "it is somebody else's");
}

#[test]
fn a_checkpoint_is_an_adapter() {
    let case = Case::new();
    let mut trainer = case.trainer();
    steps(&mut trainer, 2);
    let path = case.save(&mut trainer);
    let mut again = model::<Cpu>(MODEL, NF4, &Default::default());
    load_adapter(&mut again, &path, false).expect("an adapter");
    let ids = tokens(&expected(MODEL).integers("generate_prompt"));
    assert_eq!(values(again.logits(&ids, &[ids.len()])), values(trainer.model().logits(&ids, &[ids.len()])));
}
