//! Writes a synset as a short English text, for pretraining.

use crate::english::{capital, list, sentence, with_article};
use crate::hash::choose;
use crate::wordnet::{Synset, WordNet};

/// The most facts and examples that a document holds.
const FACTS: usize = 3;
const EXAMPLES: usize = 1;
/// The most words that a listing of kinds, parts or members names.
const LISTED: usize = 5;

/// The text of one synset: its words, its definition, what it is a kind of, its parts, examples. The phrasing is chosen
/// by a hash of the synset, so the same synset always gives the same text.
pub(crate) fn document(wordnet: &WordNet, synset: &Synset) -> String {
    let Synset { lemmas, definition, .. } = synset;
    let (word, others) = lemmas.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let pos = pos(synset);
    let also = if others.is_empty() { String::new() } else { format!(" It is also called {}.", list(others)) };
    let opening = match choose("form", synset.id, 4) {
        0 => format!("{} ({pos}): {}", lemmas.join(", "), full_stop(definition)),
        1 => {
            let question = match (synset.id.0, choose("question", synset.id, 2)) {
                ('n', 0) => format!("What is {}?", noun(synset)),
                ('v', 0) => format!("What is it to {word}?"),
                (_, 0) => format!("What is the meaning of {word}?"),
                _ => format!("What does {word} mean?"),
            };
            format!("Question: {question}\nAnswer: {}{also}", sentence(definition))
        }
        2 => match choose("reverse", synset.id, 2) {
            0 => format!("{} The {pos} for this is {word}.{also}", sentence(definition)),
            _ => format!("Question: Which {pos} means this: {definition}?\nAnswer: {}.{also}", capital(word)),
        },
        _ => match synset.id.0 {
            'n' if has_article(definition) => {
                format!("{} is {}{also}", capital(&noun(synset)), full_stop(definition))
            }
            'v' => format!("To {word} is to {}{also}", full_stop(definition)),
            _ => format!("The {pos} {word} means {}{also}", full_stop(definition)),
        },
    };
    let mut text = opening;
    for fact in facts(wordnet, synset).into_iter().take(FACTS) {
        text.push(' ');
        text += &fact;
    }
    for example in synset.examples.iter().take(EXAMPLES) {
        text += " Example: ";
        text += &sentence(example);
    }
    text
}

/// What the relations say, one sentence each, the most telling first.
fn facts(wordnet: &WordNet, synset: &Synset) -> Vec<String> {
    let word = synset.lemmas.first().map_or("", String::as_str);
    let mut facts = Vec::new();
    let mut say = |symbols: &[&str], phrase: &dyn Fn(&str) -> String| {
        let others = wordnet.related(synset, symbols).into_iter().filter(|other| *other != word);
        let found: Vec<&str> = others.take(LISTED).collect();
        if !found.is_empty() {
            facts.push(phrase(&list(&found)));
        }
    };
    match synset.id.0 {
        'n' => {
            let subject = capital(&noun(synset));
            say(&["@"], &|kind| format!("{subject} is a kind of {kind}."));
            say(&["@i"], &|kind| format!("{subject} is {}.", with_article(kind)));
            say(&["~"], &|kinds| format!("Kinds of {word} include {kinds}."));
            say(&["~i"], &|names| format!("Examples of {word} are {names}."));
            say(&["%p"], &|parts| format!("Its parts include {parts}."));
            say(&["%m"], &|members| format!("Its members include {members}."));
            say(&["%s"], &|substances| format!("It is made of {substances}."));
            say(&["#p"], &|wholes| format!("It is part of {wholes}."));
            say(&["#m"], &|groups| format!("It belongs to {groups}."));
            say(&["!"], &|opposite| format!("The opposite of {word} is {opposite}."));
        }
        'v' => {
            say(&["@"], &|way| format!("To {word} is one way to {way}."));
            say(&["~"], &|ways| format!("Ways to {word} are to {ways}."));
            say(&["!"], &|opposite| format!("The opposite of {word} is {opposite}."));
            say(&[">"], &|effect| format!("It causes someone or something to {effect}."));
            say(&["*"], &|part| format!("Whoever does it must also {part}."));
        }
        _ => {
            say(&["!"], &|opposite| format!("The opposite of {word} is {opposite}."));
            say(&["&"], &|similar| format!("Similar in meaning: {similar}."));
            say(&["="], &|attribute| format!("It describes {attribute}."));
            let source = if synset.id.0 == 'r' { "It comes from the adjective" } else { "It has to do with" };
            say(&["\\"], &|base| format!("{source} {base}."));
        }
    }
    say(&[";c"], &|field| format!("The word is used in {field}."));
    facts
}

/// The noun as a sentence's subject: with an article when its definition shows that it can be counted.
fn noun(synset: &Synset) -> String {
    let word = synset.lemmas.first().map_or("", String::as_str);
    let proper = word.starts_with(|c: char| c.is_uppercase());
    let counted = ["a ", "an ", "any ", "one ", "someone "].iter().any(|start| synset.definition.starts_with(start));
    if counted && !proper { with_article(word) } else { word.to_owned() }
}

/// Whether `X is <definition>` reads as a sentence.
fn has_article(definition: &str) -> bool {
    ["a ", "an ", "any ", "one ", "someone ", "the "].iter().any(|start| definition.starts_with(start))
}

/// The part of speech in words.
fn pos(synset: &Synset) -> &'static str {
    match synset.id.0 {
        'n' => "noun",
        'v' => "verb",
        'a' => "adjective",
        _ => "adverb",
    }
}

/// The text with a full stop.
fn full_stop(text: &str) -> String {
    if text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synset(word: &str, definition: &str) -> Synset {
        Synset {
            id: ('n', 1),
            lexicographer: 5,
            lemmas: vec![word.to_owned()],
            pointers: Vec::new(),
            definition: definition.to_owned(),
            examples: vec!["the dog barked".to_owned(), "left out".to_owned()],
        }
    }

    #[test]
    fn only_counted_common_nouns_take_an_article() {
        assert_eq!(noun(&synset("owl", "a bird of the night")), "an owl");
        assert_eq!(noun(&synset("butter", "fat made from cream")), "butter");
        assert_eq!(noun(&synset("Kyoto", "a city in Japan")), "Kyoto");
    }

    #[test]
    fn every_form_holds_word_definition_and_one_example() {
        let wordnet = WordNet::default();
        for offset in 0..64 {
            let synset = Synset { id: ('n', offset), ..synset("owl", "a bird of the night") };
            let text = document(&wordnet, &synset);
            assert!(text.to_lowercase().contains("owl"), "{text}");
            assert!(text.to_lowercase().contains("a bird of the night"), "{text}");
            assert!(text.ends_with(" Example: The dog barked."), "{text}");
        }
    }
}
