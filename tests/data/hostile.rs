//! No bytes and no template make the readers panic or ask for much more memory than they were given.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use halfbyte::data::{Record, parse_records};
use halfbyte::text::{ChatTemplate, Message};
use halfbyte_tests::golden;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Value, json};

/// The system's allocator, which notes the largest request of each thread.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; noting a size allocates nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
        // SAFETY: the caller's promises are handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Runs `run`; the largest single request for memory that it made.
fn largest(run: impl FnOnce()) -> usize {
    LARGEST.set(0);
    run();
    LARGEST.get()
}

/// Tries `property` on 400 inputs, the same ones each time.
fn holds<S: Strategy>(strategy: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig {
        cases: 400,
        rng_seed: RngSeed::Fixed(20_260_101),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    TestRunner::new(config).run(&strategy, property).unwrap_or_else(|e| panic!("{e}"));
}

/// Reads bytes as a file of that name: an answer or an error that names the file, in little memory.
fn read(name: &str, bytes: &[u8], limit: usize) -> Result<(), TestCaseError> {
    let mut result = Ok(());
    let asked = largest(|| result = parse_records(Path::new(name), bytes, &mut |_, _, _| Ok(())));
    prop_assert!(asked <= limit, "{name}: {asked} bytes at once for {} bytes", bytes.len());
    if let Err(error) = result {
        prop_assert!(error.to_string().contains(name), "{error}");
    }
    Ok(())
}

const NAMES: [&str; 4] = ["f.jsonl", "f.json", "f.csv", "f.parquet"];
const LITTLE: usize = 1 << 20;

/// Pieces of the formats, so that inputs get past the first character.
static PIECES: [&str; 34] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\n",
    "\r\n",
    " ",
    "\\",
    "\\u",
    "d800",
    "null",
    "true",
    "-1e999",
    "0",
    "text",
    "prompt",
    "completion",
    "messages",
    "conversations",
    "instruction",
    "output",
    "role",
    "content",
    "from",
    "value",
    "\"text\":\"t\"",
    "{\"text\":\"t\"}",
    "\u{feff}",
    "PAR1",
    "é",
    "\0",
];

#[test]
fn no_bytes_make_a_reader_panic() {
    holds(prop::collection::vec(any::<u8>(), 0..300), |bytes| NAMES.iter().try_for_each(|n| read(n, &bytes, LITTLE)));
    holds(prop::collection::vec(prop::sample::select(&PIECES[..]), 0..60), |pieces| {
        NAMES.iter().try_for_each(|name| read(name, pieces.concat().as_bytes(), LITTLE))
    });
}

#[test]
fn depth_and_length_make_no_reader_panic() {
    for name in NAMES {
        for (open, close) in [("[", "]"), ("{\"messages\":", "}"), ("{\"text\":[", "]}")] {
            let deep = format!("{}{}", open.repeat(100_000), close.repeat(100_000));
            read(name, deep.as_bytes(), 64 * deep.len()).expect(name);
        }
        let long = format!("{{\"text\":\"{}\"}}", "a".repeat(3 << 20));
        read(name, long.as_bytes(), 16 * long.len()).expect(name);
    }
}

static ROLES: [&str; 5] = ["user", "assistant", "gpt", "human", ""];

fn any_json() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(&PIECES[17..28]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(&ROLES[..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect::<serde_json::Map<_, _>>())
                .prop_map(Value::from),
        ]
    })
}

#[test]
fn any_json_is_a_record_or_a_reason() {
    holds(any_json(), |value| {
        if let Err(reason) = Record::parse(value) {
            prop_assert!(!reason.is_empty());
        }
        Ok(())
    });
}

/// A few times the file: a page says how long it becomes, and pages of text become many times as long as they were.
const PAGES: usize = 256 << 20;

#[test]
fn a_damaged_parquet_file_is_an_error_wherever_the_damage_is() {
    for name in ["data/messages.parquet", "data/alpaca-gzip.parquet", "data/alpaca-none.parquet"] {
        let whole = std::fs::read(golden(name)).expect(name);
        for at in 0..whole.len() {
            for damage in [0x00, 0xff, whole[at] ^ 0x55] {
                let mut bytes = whole.clone();
                bytes[at] = damage;
                read("f.parquet", &bytes, PAGES).unwrap_or_else(|e| panic!("{name}, byte {at}: {e}"));
            }
            let cut = parse_records(Path::new("f.parquet"), &whole[..at], &mut |_, _, _| Ok(()));
            assert!(cut.expect_err("a part of a file").to_string().contains("f.parquet"));
        }
    }
}

/// Pieces of templates.
static JINJA: [&str; 40] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-",
    " ",
    "for m in messages",
    "endfor",
    "if m.role == 'user'",
    "else",
    "endif",
    "set x = ",
    "messages",
    "[0]",
    "[::-1]",
    "[-9:99]",
    ".content",
    "| trim",
    "| tojson",
    "| length",
    "| join(', ')",
    "+",
    "~",
    "*",
    "999999999",
    "'a'",
    "namespace(a=1)",
    "range(99999999)",
    "loop.last",
    "raise_exception('no')",
    "strftime_now('%d %b %Y')",
    "generation",
    "endgeneration",
    ".split('')",
    ".strip('a')",
    "(",
    ")",
    "macro f(a)",
];

#[test]
fn no_template_makes_rendering_panic() {
    let talk = || {
        let mut call = Message::new("assistant", "");
        call.extra.insert("tool_calls".into(), json!([{"function": {"name": "f", "arguments": {"x": [1, null]}}}]));
        [Message::new("system", "s"), Message::new("user", "Zürich\n"), call, Message::new("assistant", "\u{e000}")]
    };
    holds(prop::collection::vec(prop::sample::select(&JINJA[..]), 0..40), |pieces| {
        let source = pieces.join(" ");
        let asked = largest(|| {
            if let Ok(template) = ChatTemplate::new(&source) {
                let _ = template.render(&talk(), true, "<s>", "</s>");
            }
        });
        prop_assert!(asked <= 64 << 20, "{asked} bytes at once for {source}");
        Ok(())
    });
    holds(prop::collection::vec((".{0,12}", ".{0,30}"), 0..6), |turns| {
        let turns: Vec<Message> = turns.into_iter().map(|(role, content)| Message::new(role, content)).collect();
        let shipped = include_str!("../../models/wordnet-4m/chat_template.jinja");
        let template = ChatTemplate::new(shipped).expect("Jinja");
        prop_assert!(template.render(&turns, true, "<s>", "</s>").is_ok());
        Ok(())
    });
}

#[test]
fn what_a_template_writes_is_bounded() {
    let endless = "{% for a in range(9999) %}{{ 'x' * 90000 }}{% endfor %}";
    let template = ChatTemplate::new(endless).expect("Jinja");
    let mut rendered = Ok(String::new());
    let asked = largest(|| rendered = template.render(&[Message::new("user", "?")], true, "", ""));
    assert!(rendered.expect_err("too much").to_string().contains("16 MiB"));
    assert!(asked <= 64 << 20, "{asked}");
}
