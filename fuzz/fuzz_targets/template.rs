//! A chat template, on a conversation of two turns.
#![no_main]

use halfbyte::text::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = [Message::new("user", "What is this?"), Message::new("assistant", "It is an animal.")];
    let _ = template.render(&messages, false, "<s>", "</s>");
});
