//! Which tokens are trained, against transformers, and where that cannot be told.

use std::collections::BTreeMap;

use halfbyte::data::{Example, Record, TrainOn, tokenize};
use halfbyte::text::{Message, Tokenizer};
use halfbyte_tests::golden;
use serde::Deserialize;

use super::{shipped, tokenizer};

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

/// The blank at a prompt's end lies in the token of the word after it.
#[test]
fn a_word_is_trained_whose_blank_is_the_prompts() {
    let tokenizer = shipped();
    let trained = |prompt: &str, completion: &str| {
        let record = Record::PromptCompletion { prompt: prompt.into(), completion: completion.into() };
        let example = tokenize(&record, &tokenizer, TrainOn::Completion).expect("it encodes");
        let trained = example.tokens.iter().zip(&example.trained).filter(|(_, trained)| **trained);
        tokenizer.decode(&trained.map(|(token, _)| *token).collect::<Vec<_>>(), false).expect("known tokens")
    };
    assert_eq!(trained("Kind: ", "animal"), " animal<|end|>");
    assert_eq!(trained("Kind:", " animal"), " animal<|end|>");
    // A token that holds letters of the prompt is none of the answer's.
    assert_eq!(trained("Kind: a", "nimal"), "<|end|>");
}

#[test]
fn an_end_token_is_not_added_twice() {
    let tokenizer = shipped();
    let ids = |text: &str| tokenize(&Record::Text(text.into()), &tokenizer, TrainOn::All).expect("it encodes").tokens;
    assert_eq!(ids("a cat"), ids("a cat<|end|>"));
}
