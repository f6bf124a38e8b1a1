//! Data as the trainer sees it: files of every format, what of them is trained, and how they go into batches.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use halfbyte::backends::Cpu;
use halfbyte::data::{
    Batch, Batches, DataConfig, Dataset, Example, Files, Format, Grouping, Record, TrainOn, read_records, tokenize,
};
use halfbyte::text::{Message, Tokenizer};
use halfbyte::train::{Recipe, Trainer, TrainerConfig, backpropagate, parse_override, parse_recipe};
use halfbyte_tests::reference::{values, with_adapter};
use halfbyte_tests::{assert_close, golden, root};
use pollster::block_on;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Masks {
    special: Vec<String>,
    templates: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    family: String,
    talk: String,
    messages: Vec<Message>,
    text: String,
    ids: Vec<u32>,
    mask: String,
}

fn masks() -> Masks {
    serde_json::from_slice(&std::fs::read(golden("text/masks.json")).expect("text/masks.json"))
        .expect("text/masks.json")
}

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

fn mask(example: &Example) -> String {
    example.trained.iter().map(|t| if *t { '1' } else { '0' }).collect()
}

#[test]
fn masks_without_generation_marks_are_those_of_transformers_with_them() {
    let Masks { special, templates, cases } = masks();
    assert!(cases.len() >= 35 && templates.len() == 6);
    for Case { family, talk, messages, text, ids, mask: expected } in cases {
        let tokenizer = tokenizer(&special, Some(&templates[&family]), &[]);
        let name = format!("{family}, {talk}");
        assert_eq!(tokenizer.render_chat(&messages, false).expect(&name), text, "{name}");
        let record = Record::Messages(messages);
        let all = tokenize(&record, &tokenizer, TrainOn::Assistant).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((all.tokens.as_slice(), mask(&all)), (ids.as_slice(), expected.clone()), "{name}");
        let last = tokenize(&record, &tokenizer, TrainOn::Completion).expect(&name);
        let begins = expected.trim_end_matches('0').rfind('0').map_or(0, |i| i + 1);
        assert_eq!(mask(&last), format!("{}{}", "0".repeat(begins), &expected[begins..]), "{name}");
    }
}

#[test]
fn a_template_that_hides_where_answers_are_is_refused_by_name() {
    let talk = Record::Messages(vec![
        Message::new("user", "Cat?"),
        Message::new("assistant", "An animal."),
        Message::new("user", "Tree?"),
        Message::new("assistant", "A plant."),
    ]);
    let error = |template: &str| {
        let tokenizer = tokenizer(&[], Some(template), &[]);
        tokenize(&talk, &tokenizer, TrainOn::Assistant).expect_err(template).to_string()
    };
    // Ends only the last turn, so that where an earlier one ends cannot be seen.
    let ends_once = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last and m.role == 'assistant' %}\
                     {{ eos_token }}{% else %}\n{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    assert!(
        error(ends_once).contains("message 1 (assistant): the chat template does not end it"),
        "{}",
        error(ends_once)
    );
    let counts = "{{ messages | length }}{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}";
    assert!(error(counts).contains("repeats the content"), "{}", error(counts));
    let thinks = "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}\
                  {% if add_generation_prompt %}<assistant><think>{% endif %}";
    assert!(error(thinks).contains("does not put its generation prompt"), "{}", error(thinks));
    let tokenizer = tokenizer(&[], Some(counts), &[]);
    assert!(tokenize(&talk, &tokenizer, TrainOn::All).is_ok(), "the cure that the error names");
}

#[test]
fn an_instruction_is_a_turn_of_the_template_or_the_alpaca_prompt() {
    let task = Record::Instruction { instruction: "Count.".into(), input: "to 2".into(), output: "1 2".into() };
    let pieces = |tokenizer: &Tokenizer| {
        let example = tokenize(&task, tokenizer, TrainOn::Completion).expect("it encodes");
        let first = example.trained.iter().position(|t| *t).expect("an answer");
        let text = |ids: &[u32]| tokenizer.decode(ids, false).expect("known tokens");
        (text(&example.tokens[..first]), text(&example.tokens[first..]))
    };
    let (prompt, answer) = pieces(&shipped());
    assert_eq!((prompt.as_str(), answer.as_str()), ("<|begin|>Question: Count.\n\nto 2\nAnswer:", " 1 2<|end|>\n"));
    let (prompt, answer) = pieces(&tokenizer(&[], None, &[]));
    assert!(
        prompt.starts_with("<|begin|>Below is an instruction") && prompt.ends_with("### Input:\nto 2\n\n### Response:")
    );
    assert_eq!(answer, "1 2<|end|>");
}

#[test]
fn an_end_token_is_not_added_twice() {
    let tokenizer = shipped();
    let ids = |text: &str| tokenize(&Record::Text(text.into()), &tokenizer, TrainOn::All).expect("it encodes").tokens;
    assert_eq!(ids("a cat"), ids("a cat<|end|>"));
}

fn records(path: &Path) -> Vec<(usize, Format, Record)> {
    let mut records = Vec::new();
    let read = read_records(path, &mut |place, format, record| {
        records.push((place, format, record));
        Ok(())
    });
    read.unwrap_or_else(|e| panic!("{e}"));
    records
}

fn refusal(path: &Path) -> String {
    read_records(path, &mut |_, _, _| Ok(())).expect_err("a refusal").to_string()
}

fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, text).expect(name);
    path
}

#[test]
fn every_format_of_file_gives_the_same_records() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines =
        "{\"prompt\":\"a, b\",\"completion\":\"c\\nd\"}\n\n{\"prompt\":\"\\\"q\\\"\",\"completion\":\"Zürich\"}\n";
    let list =
        "[{\"prompt\":\"a, b\",\"completion\":\"c\\nd\"},\n {\"prompt\":\"\\\"q\\\"\",\"completion\":\"Zürich\"}]";
    let of = |name: &str, text: &str| records(&write(folder.path(), name, text));
    let expected = of("a.jsonl", lines);
    assert_eq!(expected.iter().map(|(place, ..)| *place).collect::<Vec<_>>(), [1, 3]);
    let without_places = |records: Vec<(usize, Format, Record)>| {
        records.into_iter().map(|(_, format, record)| (format, record)).collect::<Vec<_>>()
    };
    let expected = without_places(expected);
    let object = format!("{{\"version\": {{\"list\": [1, 2]}}, \"n\": null, \"data\": {list}, \"more\": \"text\"}}");
    for (name, text) in [
        ("bom.jsonl", format!("\u{feff}{lines}")),
        ("crlf.jsonl", lines.replace('\n', "\r\n")),
        ("list.json", list.to_string()),
        ("object.json", object),
        ("lines.json", lines.to_string()),
        ("a.csv", "prompt,completion\n\"a, b\",\"c\nd\"\n\"\"\"q\"\"\",Zürich\n".to_string()),
        ("bom.CSV", "\u{feff}completion,prompt\r\n\"c\nd\",\"a, b\"\r\nZürich,\"\"\"q\"\"\"\r\n".to_string()),
    ] {
        assert_eq!(without_places(of(name, &text)), expected, "{name}");
    }
    let talk = "messages\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"q\"\"},{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"a\"\"}]\"\n";
    let talk = of("talk.csv", talk);
    assert_eq!(talk[0].2, Record::Messages(vec![Message::new("user", "q"), Message::new("assistant", "a")]));
}

#[test]
fn parquet_files_of_pyarrow_are_read_with_nested_lists_and_nulls() {
    let talks = records(&golden("data/messages.parquet"));
    let call = json!([{"function": {"name": "weather", "arguments": "{}"}}]);
    let mut calling = Message::new("assistant", "");
    calling.extra.insert("tool_calls".into(), call);
    let expected = [
        vec![Message::new("user", "What is a cat?"), Message::new("assistant", "An animal.")],
        vec![
            Message::new("user", "Wetter in Zürich?"),
            calling,
            Message::new("tool", "12 °C"),
            Message::new("assistant", "12 °C."),
        ],
    ];
    assert_eq!(talks, [1, 2].map(|i| (i, Format::Messages, Record::Messages(expected[i - 1].clone()))));
    for compression in ["none", "gzip", "lz4"] {
        let tasks = records(&golden(&format!("data/alpaca-{compression}.parquet")));
        assert_eq!(
            tasks.iter().map(|(place, format, _)| (*place, *format)).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5].map(|place| (place, Format::Alpaca)),
            "{compression}"
        );
        let input = |i: usize| match &tasks[i].2 {
            Record::Instruction { input, output, .. } => (input.clone(), output.clone()),
            other => panic!("{other:?}"),
        };
        assert_eq!(input(1), (String::new(), "0 1".into()));
        assert_eq!(input(4), ("down".into(), "0 1 2 3 4".into()));
    }
    let zstd = refusal(&golden("data/alpaca-zstd.parquet"));
    assert!(zstd.contains("alpaca-zstd.parquet") && zstd.contains("snappy"), "{zstd}");
}

#[test]
fn a_refusal_names_the_file_the_place_and_the_cure() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text, part) in [
        ("a.jsonl", "{\"text\":\"t\"}\n{oops", "a.jsonl:2: not JSON: key must be a string at column 2"),
        ("b.jsonl", "{\"text\":\"t\"}\n\n{\"text\":3}", "b.jsonl:3: `text` must be a string"),
        ("c.jsonl", "[{\"text\":\"t\"}]", ".json"),
        ("d.jsonl", "\n \n", "d.jsonl: holds no record"),
        ("e.json", "[{\"text\":\"t\"},{\"question\":\"t\"}]", "e.json:2: has the keys [question]"),
        ("f.json", "[{\"text\":\"t\"}", "f.json: not JSON: EOF"),
        ("g.json", "{\"a\":[{\"text\":\"t\"}],\"b\":[]}", "several lists"),
        ("h.json", "{\"a\":{\"text\":\"t\"}}", "no list"),
        ("i.json", "[{\"text\":\"t\"}] x", "trailing"),
        ("j.csv", "text,id\nfine,1\nbroken\n", "j.csv:3: has 1 cells where the header has 2"),
        ("k.csv", "text\n\"one\ntwo\"\n\"\"\n", "k.csv:4: `text` is empty"),
        ("l.csv", "messages\nhello\n", "l.csv:2: `messages` must hold a JSON list"),
        ("m.csv", "text\n", "holds no record"),
        ("n.txt", "hello", ".jsonl"),
        ("o.parquet", "PAR1, says the file", "o.parquet: "),
        ("p.parquet", "", "p.parquet: "),
    ] {
        let error = refusal(&write(folder.path(), name, text));
        assert!(error.contains(name) && error.contains(part), "{name}: {error}");
    }
    std::fs::write(folder.path().join("q.csv"), b"text\n\xff\xfe\n").expect("a file");
    assert!(refusal(&folder.path().join("q.csv")).contains("q.csv:2: is not UTF-8"));
    std::fs::write(folder.path().join("r.jsonl"), b"{\"text\":\"\xff\"}").expect("a file");
    assert!(refusal(&folder.path().join("r.jsonl")).contains("r.jsonl:1: not JSON"));
    std::fs::write(folder.path().join("s.jsonl"), vec![b' '; (16 << 20) + 1]).expect("a file");
    assert!(refusal(&folder.path().join("s.jsonl")).contains("s.jsonl:1: the line is longer"));
    assert!(refusal(&folder.path().join("nothing.jsonl")).contains("nothing.jsonl"));
}

#[test]
fn a_damaged_parquet_file_is_an_error_wherever_the_damage_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("damaged.parquet");
    for name in ["data/messages.parquet", "data/alpaca-gzip.parquet"] {
        let whole = std::fs::read(golden(name)).expect(name);
        for at in (0..whole.len()).step_by(7) {
            for damage in [0x00, 0xff, whole[at] ^ 0x55] {
                let mut bytes = whole.clone();
                bytes[at] = damage;
                std::fs::write(&path, &bytes).expect("a file");
                // What it answers depends on the place; that it answers is what is asked for.
                if let Err(error) = read_records(&path, &mut |_, _, _| Ok(())) {
                    assert!(error.to_string().contains("damaged.parquet"), "{error}");
                }
            }
            std::fs::write(&path, &whole[..at]).expect("a file");
            assert!(refusal(&path).contains("damaged.parquet"));
        }
    }
}

#[test]
fn a_folder_is_read_by_the_names_that_the_hub_uses() {
    let names = |folder: &Path, files: &[std::path::PathBuf]| -> Vec<String> {
        files.iter().map(|f| f.strip_prefix(folder).expect("inside").display().to_string()).collect()
    };
    for (files, train, test) in [
        (
            &["train.jsonl", "test.jsonl", "README.md", "dataset_infos.json"][..],
            &["train.jsonl"][..],
            &["test.jsonl"][..],
        ),
        (
            &[
                "data/train-00000-of-00002.jsonl",
                "data/train-00001-of-00002.jsonl",
                "data/validation-00000-of-00001.jsonl",
            ],
            &["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"],
            &["data/validation-00000-of-00001.jsonl"],
        ),
        (
            &["train/a.csv", "train/b.csv", "test/a.csv", "other/c.csv"],
            &["train/a.csv", "train/b.csv"],
            &["test/a.csv"],
        ),
        (&["val.json", "test.json", "my_train.json"], &["my_train.json"], &["test.json"]),
        (&["two.jsonl", "one.jsonl", ".hidden.jsonl"], &["one.jsonl", "two.jsonl"], &[]),
        (&["contest.jsonl", "trainers.jsonl"], &["contest.jsonl", "trainers.jsonl"], &[]),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        for file in files {
            write(folder.path(), file, "{}");
        }
        let found = Files::find(folder.path()).expect("files");
        assert_eq!(names(folder.path(), &found.train), train, "{files:?}");
        assert_eq!(names(folder.path(), &found.test), test, "{files:?}");
    }
    for (files, part) in [
        (&["notes.txt"][..], "holds no data file"),
        (&["train.jsonl", "train.parquet"], "name the one to read"),
        (&["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], "holds 2 of 3 files of `train`"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        for file in files {
            write(folder.path(), file, "{}");
        }
        let error = Files::find(folder.path()).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}

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

/// Examples of the tiny models' vocabulary, of lengths from 2 to 30.
fn examples(count: u32) -> Vec<Example> {
    let example = |i: u32| {
        let length = 2 + (i * 7 % 29) as usize;
        let tokens = (0..length as u32).map(|j| (i * 31 + j * 17) % 90 + 3).collect();
        Example { tokens, trained: (0..length).map(|j| j > length / 3).collect() }
    };
    (0..count).map(example).collect()
}

/// Each example's own loss, from one backward pass over a batch of several.
fn losses(examples: &[Example], rows: &[usize]) -> Vec<f32> {
    let model = with_adapter::<Cpu>("llama-tied", &Default::default());
    let batch = Batch::collate(rows.iter().map(|i| &examples[*i]));
    let hidden: Tensor<Cpu, 2> =
        model.hidden(&batch.tokens, &model.pass(halfbyte::ops::Sequences::new(&batch.lengths)), None);
    let mut begin = 0;
    let of = |length: &usize| {
        let rows = begin..begin + length;
        begin += length;
        let targets: Vec<_> = batch.targets.iter().filter(|(row, _)| rows.contains(row)).copied().collect();
        let (rows, tokens) = targets.into_iter().unzip();
        let targets = halfbyte::train::Targets { rows, tokens };
        values(halfbyte::train::loss_sum(&model.head, hidden.clone(), &targets, 64))[0]
    };
    batch.lengths.iter().map(of).collect()
}

#[test]
fn packed_and_unpacked_examples_have_the_same_loss_and_gradients() {
    let examples = examples(24);
    let lengths: Vec<usize> = examples.iter().map(|e| e.tokens.len()).collect();
    let packed = Batches::new(lengths, Grouping::Packed { bin: 32 }, 2, 1, 5);
    let batches: Vec<Vec<usize>> = (0..packed.steps_per_epoch()).flat_map(|s| packed.step(0, s)).collect();
    assert!(batches.iter().all(|rows| rows.len() > 2), "bins of several examples: {batches:?}");
    for rows in &batches {
        let alone: Vec<f32> = rows.iter().flat_map(|i| losses(&examples, &[*i])).collect();
        assert_close("losses of a packed batch", &losses(&examples, rows), &alone, 1e-5);
    }
    let model = with_adapter::<Cpu>("llama-tied", &Default::default());
    let gradients = |rows: &[usize]| {
        let batch = Batch::collate(rows.iter().map(|i| &examples[*i]));
        backpropagate(&model, &batch, 1.0, 64, halfbyte::train::Recompute::None, None).gradients
    };
    let together = gradients(&batches[0]);
    let apart: Vec<_> = batches[0].iter().map(|i| gradients(&[*i])).collect();
    for (path, gradient) in together {
        let sum = apart.iter().map(|g| g[&path].clone()).reduce(|a, b| a + b).expect("some");
        assert_close(&path, &values(gradient), &values(sum), 1e-4);
    }
}

#[test]
fn a_trainer_takes_packed_data_and_every_token_once_an_epoch() {
    let mut data = Dataset::new(examples(40));
    let tokens = data.token_count();
    data.grouping = Grouping::Packed { bin: 32 };
    let model = with_adapter::<Cpu>("llama-tied", &Default::default());
    let config = TrainerConfig { batch_size: 2, gradient_accumulation_steps: 2, ..Default::default() };
    let mut trainer = Trainer::new(model, data, config, 3).expect("a trainer");
    let mut seen = 0;
    while let Some(metrics) = block_on(trainer.step()).expect("a finite step") {
        assert!(metrics.tokens <= 4 * 32);
        seen += metrics.tokens;
    }
    assert_eq!(seen, tokens);
}
