//! Chat templates and the shipped tokenizer against transformers.

use std::path::Path;

use chrono::NaiveDate;
use halfbyte::data::{Example, Record, TrainOn, tokenize};
use halfbyte::text::{ChatTemplate, Message, StreamDecoder, Tokenizer};
use halfbyte_tests::golden;
use serde::Deserialize;

#[derive(Deserialize)]
struct Cases {
    bos_token: String,
    eos_token: String,
    chats: Vec<Chat>,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Chat {
    name: String,
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    rendered: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    special: bool,
    ids: Vec<u32>,
    decoded: String,
}

fn cases() -> Cases {
    let path = golden("text/cases.json");
    serde_json::from_slice(&std::fs::read(path).expect("text/cases.json")).expect("text/cases.json")
}

fn shipped() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/wordnet-4m");
    Tokenizer::from_folder(&folder).expect("the shipped tokenizer")
}

#[test]
fn templates_render_as_in_transformers() {
    let cases = cases();
    assert!(cases.chats.len() >= 72);
    for Chat { name, template, messages, add_generation_prompt, rendered, error } in &cases.chats {
        let template = ChatTemplate::new(template).expect(name);
        match template.render(messages, *add_generation_prompt, &cases.bos_token, &cases.eos_token) {
            Ok(text) => assert_eq!(Some(&text), rendered.as_ref(), "{name}"),
            Err(found) => {
                let expected = error.as_deref().unwrap_or_else(|| panic!("{name}: {found}"));
                assert!(found.to_string().ends_with(expected), "{name}: {found}");
            }
        }
    }
}

#[test]
fn a_template_is_told_one_day_from_its_settling_on() {
    let source = "{{ strftime_now('%d %b %Y, %A %j') }}";
    let told = |template: &ChatTemplate| template.render(&[], false, "", "").expect("it renders");
    let mut template = ChatTemplate::new(source).expect("Jinja");
    let day = NaiveDate::from_ymd_opt(2024, 2, 29);
    assert_eq!(template.settle_date(day), day);
    assert_eq!(told(&template), "29 Feb 2024, Thursday 060");
    let today = template.settle_date(None).expect("it asks");
    assert_eq!(told(&template), today.format("%d %b %Y, %A %j").to_string());
    assert_eq!(ChatTemplate::new("{{ bos_token }}").expect("Jinja").settle_date(day), None);
    let wrong = ChatTemplate::new("{{ strftime_now('%Q') }}").expect("Jinja");
    assert!(wrong.render(&[], false, "", "").expect_err("no format").to_string().contains("%Q"));
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(endless).expect("Jinja");
    assert!(template.render(&[Message::new("user", "?")], true, "", "").is_err());
    assert!(ChatTemplate::new("{% for %}").is_err());
    // Found by fuzzing: a tag's beginning and end that share their `%`.
    for source in ["{%}", "{%}\u{6d}-", "{%}%}", "{% generation %}a{%- endgeneration -%}"] {
        let _ = ChatTemplate::new(source);
    }
}

#[test]
fn texts_are_encoded_and_decoded_as_in_transformers() {
    let tokenizer = shipped();
    for Text { text, special, ids, decoded } in &cases().texts {
        assert_eq!(&tokenizer.encode(text, *special).expect(text), ids, "{text:?}");
        assert_eq!(&tokenizer.decode(ids, true).expect(text), decoded, "{text:?}");
    }
}

#[test]
fn a_stream_of_tokens_gives_whole_characters_and_the_whole_text() {
    let tokenizer = shipped();
    for Text { ids, decoded, .. } in &cases().texts {
        let mut stream = StreamDecoder::new(&tokenizer);
        let mut pieces = Vec::new();
        for id in ids {
            pieces.extend(stream.push(*id).expect("known tokens"));
        }
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        pieces.push(stream.finish().expect("known tokens"));
        assert_eq!(&pieces.concat(), decoded);
    }
}

fn trained_text(tokenizer: &Tokenizer, example: &Example) -> String {
    let trained = example.tokens.iter().zip(&example.trained).filter(|(_, trained)| **trained);
    tokenizer.decode(&trained.map(|(id, _)| *id).collect::<Vec<_>>(), false).expect("known tokens")
}

#[test]
fn the_loss_is_taken_on_answers_and_their_end() {
    let tokenizer = shipped();
    let talk = Record::Messages(vec![
        Message::new("user", "What is a cat?"),
        Message::new("assistant", "An animal."),
        Message::new("user", "And a tree?"),
        Message::new("assistant", "A plant."),
    ]);
    let tokens = |record: &Record, on| tokenize(record, &tokenizer, on).expect("it renders");
    let trained = |record: &Record, on| trained_text(&tokenizer, &tokens(record, on));
    assert_eq!(trained(&talk, TrainOn::Completion), " A plant.<|end|>");
    assert_eq!(trained(&talk, TrainOn::Assistant), " An animal.<|end|> A plant.<|end|>");
    let all = tokens(&talk, TrainOn::All);
    assert!(!all.trained[0] && all.trained[1..].iter().all(|trained| *trained));
    let pair = Record::PromptCompletion { prompt: "A cat is".into(), completion: " an animal.".into() };
    assert_eq!(trained(&pair, TrainOn::Completion), " an animal.<|end|>");
    assert_eq!(trained(&pair, TrainOn::All), "A cat is an animal.<|end|>");
    let text = Record::Text("A cat.".into());
    assert_eq!(trained(&text, TrainOn::Completion), "A cat.<|end|>");
    assert_eq!(tokens(&text, TrainOn::All).tokens[0], tokenizer.bos_id().expect("it has one"));
}

#[test]
fn training_sees_the_tokens_that_generation_continues() {
    let tokenizer = shipped();
    let question = Message::new("user", "What is a cat?");
    let talk = Record::Messages(vec![question.clone(), Message::new("assistant", "An animal.")]);
    let example = tokenize(&talk, &tokenizer, TrainOn::Completion).expect("it renders");
    let prompt = tokenizer.encode(&tokenizer.render_chat(&[question], true).expect("it renders"), false);
    let first = example.trained.iter().position(|trained| *trained).expect("an answer");
    assert_eq!(example.tokens[..first], prompt.expect("it encodes"));
}

#[test]
fn what_is_cut_off_is_not_trained_and_nothing_left_is_none() {
    let tokenizer = shipped();
    let pair = Record::PromptCompletion { prompt: "a cat ".repeat(20), completion: "is".into() };
    assert!(tokenize(&pair, &tokenizer, TrainOn::Completion).expect("it encodes").cut(10).is_none());
    let cut = tokenize(&pair, &tokenizer, TrainOn::All).expect("it encodes").cut(10).expect("the prompt");
    assert_eq!((cut.tokens.len(), cut.trained.len()), (10, 10));
}
