//! What is held out, and what stops a run.

use std::path::Path;

use halfbyte::data::{DataConfig, Dataset, Example, Grouping, TrainOn};
use halfbyte::model::ModelConfig;
use halfbyte::text::Tokenizer;
use halfbyte::train::{Recipe, parse_override, parse_recipe};
use halfbyte_tests::root;
use serde_json::json;

use super::{shipped, tokenizer, write};

fn tasks(count: usize) -> String {
    let line = |i: usize| format!("{}\n", json!({"prompt": format!("{i} is"), "completion": format!(" number {i}.")}));
    (0..count).map(line).collect()
}

#[test]
fn a_part_is_held_out_by_seed_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write(folder.path(), "all.jsonl", &tasks(50));
    let load = |size: f64, seed: u64| {
        let train = path.display().to_string();
        let splits =
            DataConfig { train, test_size: size, ..DataConfig::default() }.load(&shipped(), seed).expect("data");
        (splits.train.examples, splits.test.map(|test| test.examples))
    };
    let (train, test) = load(0.1, 1);
    let test = test.expect("a part held out");
    assert_eq!((train.len(), test.len()), (45, 5));
    assert_eq!(load(5.0, 1).1, Some(test.clone()));
    assert_ne!(load(0.1, 2).1, Some(test.clone()));
    let (whole, none) = load(0.0, 1);
    assert!(none.is_none());
    assert!(whole.iter().all(|example| train.contains(example) != test.contains(example)));

    write(folder.path(), "test.jsonl", &tasks(3));
    std::fs::rename(&path, folder.path().join("train.jsonl")).expect("a move");
    let train = folder.path().display().to_string();
    let config = DataConfig { train, ..DataConfig::default() };
    let splits = config.load(&shipped(), 1).expect("a folder with both");
    assert_eq!((splits.train.examples.len(), splits.test.map(|t| t.examples.len())), (50, Some(3)));
    let both = DataConfig { test_size: 0.5, ..config }.load(&shipped(), 1).expect_err("two answers to one question");
    assert!(both.to_string().contains("data.test_size"), "{both}");
}

#[test]
fn data_and_model_fit_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write(folder.path(), "d.jsonl", &tasks(3));
    let data = Dataset::load(&path, &shipped(), 99, TrainOn::Completion).expect("data");
    let model = ModelConfig::from_folder(&root().join("models/wordnet-4m")).expect("the shipped model");
    assert!(data.check_model(&model, &shipped()).expect("they fit").is_empty());
    let short = ModelConfig { max_positions: 3, ..model.clone() };
    let warnings = data.check_model(&short, &shipped()).expect("a warning only");
    assert!(
        warnings.len() == 1 && warnings[0].starts_with("3 examples are longer than the 3 positions"),
        "{warnings:?}"
    );
    let error =
        data.check_model(&ModelConfig { vocab_size: 9, ..model }, &shipped()).expect_err("no embedding").to_string();
    assert!(error.contains("example 1 has token") && error.contains("tokenizer.json"), "{error}");
}

#[test]
fn data_that_would_teach_something_else_stops_the_run() {
    let dataset = |text: &str, tokenizer: &Tokenizer, max_length| {
        let folder = tempfile::tempdir().expect("a folder");
        Dataset::load(&write(folder.path(), "d.jsonl", text), tokenizer, max_length, TrainOn::Completion)
    };
    let error = |text: &str, tokenizer: &Tokenizer, max_length| {
        let checked = dataset(text, tokenizer, max_length).and_then(|data| data.check(tokenizer));
        checked.expect_err("a refusal").to_string()
    };
    let tokenizer_of = |template: &str, stop: &[u32]| tokenizer(&["<turn_end>".into()], Some(template), stop);
    let talk = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}";
    assert!(dataset(talk, &shipped(), 99).expect("data").check(&shipped()).expect("nothing is wrong").is_empty());

    // The template's own end-of-turn token is none that generation stops at, until the folder says so.
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<turn_end>\n{% endfor %}\
                    {% if add_generation_prompt %}assistant:{% endif %}";
    let found = error(talk, &tokenizer_of(template, &[]), 99);
    assert!(found.contains("<|end|>") && found.contains("generation_config.json"), "{found}");
    let end = tokenizer_of(template, &[]).encode("<turn_end>", false).expect("it encodes");
    assert!(
        dataset(talk, &tokenizer_of(template, &end), 99).expect("data").check(&tokenizer_of(template, &end)).is_ok()
    );

    let long = json!({"prompt": "a", "completion": " cat".repeat(50)}).to_string();
    assert!(error(&long, &shipped(), 10).contains("raise data.max_length"));
    let cut = format!("{talk}\n{talk}\n{long}");
    let warnings = dataset(&cut, &shipped(), 30).expect("data");
    let warnings = warnings.check(&shipped()).expect("a warning only");
    assert!(warnings.len() == 1 && warnings[0].starts_with("1 of 3 records (33 %)"), "{warnings:?}");

    let doubled = error("{\"text\":\"<|begin|>a cat\"}", &shipped(), 99);
    assert!(doubled.contains("begins with <|begin|> twice"), "{doubled}");
    let nothing = error(&json!({"prompt": "a cat ".repeat(20), "completion": "is"}).to_string(), &shipped(), 10);
    assert!(nothing.contains("no answer is left"), "{nothing}");
    let untrained = Dataset::new(vec![Example { tokens: vec![1, 2], trained: vec![false, false] }]);
    assert!(untrained.check(&shipped()).expect_err("nothing").to_string().contains("no token is trained"));
}

#[test]
fn the_keys_of_a_recipe_choose_how_examples_are_grouped() {
    let recipe = |overrides: &[&str]| {
        let overrides: Vec<_> = overrides.iter().map(|o| parse_override(o).expect("KEY=VALUE")).collect();
        parse_recipe::<Recipe>(Path::new("r.toml"), "", &overrides).expect("a recipe").data
    };
    assert_eq!(recipe(&[]).grouping(), Grouping::Shuffled);
    assert_eq!(recipe(&["data.packing=true", "data.max_length=99"]).grouping(), Grouping::Packed { bin: 99 });
    assert_eq!(recipe(&["data.group_by_length=true"]).grouping(), Grouping::ByLength);
    let both = recipe(&["data.packing=true", "data.group_by_length=true", "data.train=t.jsonl"]);
    assert!(both.load(&shipped(), 0).expect_err("a contradiction").to_string().contains("exclude each other"));
    assert_eq!(recipe(&["data.test_size=100"]).test_size, 100.0);
}
