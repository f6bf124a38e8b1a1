//! Files and folders.

use std::path::{Path, PathBuf};

use halfbyte::data::{Files, Format, Record, read_records};
use halfbyte::text::Message;
use halfbyte_tests::golden;
use serde_json::json;

use super::write;

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
    for compression in ["none", "gzip", "lz4", "zstd"] {
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
    let brotli = refusal(&golden("data/alpaca-brotli.parquet"));
    assert!(brotli.matches("alpaca-brotli.parquet").count() == 1 && brotli.contains("snappy"), "{brotli}");
}

#[test]
fn a_refusal_names_the_file_the_place_and_the_cure() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text, part) in [
        ("a.jsonl", "{\"text\":\"t\"}\n{oops", "a.jsonl:2: not JSON: key must be a string at column 2"),
        ("b.jsonl", "{\"text\":\"t\"}\n\n{\"text\":3}", "b.jsonl:3: `text` must be a string"),
        ("c.jsonl", "[{\"text\":\"t\"}]", "c.jsonl:1: begins a list"),
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
fn a_folder_is_read_by_the_names_that_the_hub_uses() {
    let names = |folder: &Path, files: &[PathBuf]| -> Vec<String> {
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
