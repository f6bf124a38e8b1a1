//! `cargo xtask kinds`: the small fine-tuning task that ships, "what kind of thing is this?", made from WordNet.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::files::{write, write_jsonl};
use crate::hash::{choose, hash};
use crate::wordnet::{Id, Synset, WordNet};

/// Questions per kind: for training, and for the test.
const TRAIN: usize = 150;
const TEST: usize = 20;

/// One kind: what the answers say, and where its examples come from.
struct Kind {
    /// The answer's words, with the article: "It is an animal."
    name: &'static str,
    /// The lexicographer file's number and name.
    file: (u8, &'static str),
    /// Whether a proper name may be meant (a city); elsewhere only common nouns are.
    proper: bool,
    /// Word beginnings that no question contains: the answer itself, and what the file holds besides its kind.
    answer: &'static [&'static str],
    /// Words that come close to giving the answer away; the README says how often they occur.
    hints: &'static [&'static str],
}

/// Word beginnings that a lesson in a classroom can do without.
const UNSUITABLE: [&str; 9] =
    ["sex", "genital", "penis", "vagin", "erot", "prostitut", "intercourse", "nazi", "narcotic"];

const KINDS: [Kind; 10] = [
    Kind {
        name: "an animal",
        file: (5, "noun.animal"),
        proper: false,
        answer: &["animal"],
        hints: &["bird", "fish", "dog", "breed", "insect", "mammal", "snake", "horse", "beetle", "fishes", "birds"],
    },
    Kind {
        name: "a plant",
        file: (20, "noun.plant"),
        proper: false,
        answer: &["plant"],
        hints: &["tree", "herb", "shrub", "fern", "grass", "weed", "vine", "trees", "herbs", "flower", "leaves"],
    },
    Kind {
        name: "a person",
        file: (18, "noun.person"),
        proper: false,
        answer: &["person"],
        hints: &["someone", "one", "man", "woman", "who", "member", "worker"],
    },
    Kind {
        name: "a food",
        file: (13, "noun.food"),
        proper: false,
        answer: &["food"],
        hints: &["dish", "sauce", "bread", "cheese", "cake", "meat", "wine", "drink", "cooked", "soup"],
    },
    Kind {
        name: "an object made by people",
        file: (6, "noun.artifact"),
        proper: false,
        answer: &["object", "people"],
        hints: &["device", "machine", "tool", "instrument", "building", "ship", "garment", "made"],
    },
    Kind {
        name: "a part of the body",
        file: (8, "noun.body"),
        proper: false,
        answer: &["body", "bodies"],
        hints: &["bone", "muscle", "artery", "vein", "nerve", "gland", "skin", "arteries", "tissue"],
    },
    Kind {
        name: "a substance",
        file: (27, "noun.substance"),
        proper: false,
        answer: &["substance"],
        hints: &["acid", "compound", "metal", "mineral", "element", "wood", "gas", "oil", "liquid"],
    },
    Kind {
        name: "a time",
        file: (28, "noun.time"),
        proper: false,
        answer: &["time", "rate", "speed"],
        hints: &["period", "day", "days", "year", "years", "month", "season", "hour", "second", "age", "era"],
    },
    Kind {
        name: "a place",
        file: (15, "noun.location"),
        proper: true,
        answer: &["place"],
        hints: &["city", "town", "region", "area", "country", "state", "capital", "district", "port"],
    },
    Kind {
        name: "an act",
        file: (4, "noun.act"),
        proper: false,
        answer: &["act", "acts", "acting", "action"],
        hints: &["activity", "doing", "making", "process", "practice", "movement", "performance"],
    },
];

/// The questions of one kind, as synsets.
struct Chosen<'a> {
    kind: &'a Kind,
    train: Vec<&'a Synset>,
    test: Vec<&'a Synset>,
}

/// The synsets that the test asks about: the pretraining corpus leaves them out.
pub(crate) fn test_ids(wordnet: &WordNet) -> Result<HashSet<Id>> {
    Ok(choose_all(wordnet)?.iter().flat_map(|chosen| chosen.test.iter().map(|synset| synset.id)).collect())
}

/// Writes `train.jsonl`, `test.jsonl`, `README.md` and WordNet's licence into `folder`.
pub(crate) fn make(wordnet: &WordNet, folder: &Path) -> Result<()> {
    let chosen = choose_all(wordnet)?;
    for (name, part) in [("train.jsonl", 0), ("test.jsonl", 1)] {
        let mut lines: Vec<(&Kind, &Synset)> =
            chosen.iter().flat_map(|c| [&c.train, &c.test][part].iter().map(|synset| (c.kind, *synset))).collect();
        lines.sort_by_key(|(_, synset)| hash("order", synset.id));
        let count = lines.len();
        write_jsonl(&folder.join(name), lines.iter().map(|(kind, synset)| example(kind, synset)))?;
        println!("{}: {count} conversations", folder.join(name).display());
    }
    write(&folder.join("LICENSE-WORDNET"), &wordnet.license)?;
    write(&folder.join("README.md"), &readme(&chosen))
}

/// Picks the synsets of every kind by their hash: first the test's, then the training set's.
fn choose_all(wordnet: &WordNet) -> Result<Vec<Chosen<'_>>> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for synset in &wordnet.synsets {
        *uses.entry(&synset.definition).or_default() += 1;
    }
    let lines = wordnet.synsets.iter().flat_map(|s| [&s.definition].into_iter().chain(&s.examples));
    let text: String = lines.map(|line| line.to_ascii_lowercase() + "\n").collect();
    KINDS
        .iter()
        .map(|kind| {
            let fits = |synset: &&Synset| {
                synset.id.0 == 'n'
                    && synset.lexicographer == kind.file.0
                    && (kind.proper || !synset.lemmas.iter().any(|word| word.starts_with(|c: char| c.is_uppercase())))
                    && uses.get(synset.definition.as_str()) == Some(&1)
                    && is_plain(&synset.definition)
                    && !words(&synset.definition)
                        .any(|word| kind.answer.iter().chain(&UNSUITABLE).any(|start| word.starts_with(start)))
            };
            let mut found: Vec<&Synset> = wordnet.synsets.iter().filter(fits).collect();
            found.sort_by_key(|synset| hash("kinds", synset.id));
            // The test's definitions stand nowhere else, not even inside a longer one: the base model must not have read them.
            let alone = |synset: &&Synset| text.matches(&synset.definition.to_ascii_lowercase()).count() == 1;
            let test: Vec<&Synset> = found.iter().copied().filter(alone).take(TEST).collect();
            let train: Vec<&Synset> =
                found.into_iter().filter(|s| !test.iter().any(|t| t.id == s.id)).take(TRAIN).collect();
            ensure!(test.len() == TEST && train.len() == TRAIN, "{}: too few definitions fit", kind.file.1);
            Ok(Chosen { kind, train, test })
        })
        .collect()
}

/// Whether a definition is 4 to 20 words of plain text: letters, commas, hyphens, apostrophes.
fn is_plain(definition: &str) -> bool {
    (4..=20).contains(&definition.split(' ').count())
        && definition.starts_with(|c: char| c.is_ascii_alphabetic())
        && definition.chars().all(|c| c.is_ascii_alphabetic() || " ,-'".contains(c))
}

/// The words of a text in lower case.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_ascii_alphabetic()).map(str::to_ascii_lowercase)
}

/// The question and its answer, as a conversation.
fn example(kind: &Kind, synset: &Synset) -> serde_json::Value {
    let definition = &synset.definition;
    let question = match choose("question form", synset.id, 4) {
        0 => format!("What kind of thing is this: {definition}?"),
        1 => format!("Here is a definition: {definition}. What kind of thing is it?"),
        2 => format!("Which kind of thing is described as \"{definition}\"?"),
        _ => format!("Name the kind of thing: {definition}."),
    };
    json!({"messages": [
        {"role": "user", "content": question},
        {"role": "assistant", "content": format!("It is {}.", kind.name)},
    ]})
}

/// What the folder holds, with the counts as they are.
fn readme(chosen: &[Chosen]) -> String {
    let mut table = String::new();
    let (mut hinted, mut all) = (0, 0);
    for Chosen { kind, train, test } in chosen {
        let both = || train.iter().chain(test);
        let hints = both().filter(|s| words(&s.definition).any(|word| kind.hints.contains(&word.as_str()))).count();
        let total = both().count();
        (hinted, all) = (hinted + hints, all + total);
        let _ = writeln!(
            table,
            "| It is {}. | `{}` | {} | {} | {:.0} % |",
            kind.name,
            kind.file.1,
            train.len(),
            test.len(),
            100.0 * hints as f64 / total as f64
        );
    }
    format!(
        "{}\n{table}\nOverall {hinted} of {all} questions ({:.0} %) contain such a word.\n",
        include_str!("kinds_readme.md").trim_end(),
        100.0 * hinted as f64 / all as f64
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The conversations of one shipped file: question and answer.
    fn shipped(name: &str) -> Vec<(String, String)> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/kinds").join(name);
        let text = std::fs::read_to_string(path).unwrap();
        let content = |value: &serde_json::Value, turn: usize, role: &str| {
            assert_eq!(value["messages"][turn]["role"], role);
            value["messages"][turn]["content"].as_str().unwrap().to_owned()
        };
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.map(|value| (content(&value, 0, "user"), content(&value, 1, "assistant"))).collect()
    }

    #[test]
    fn shipped_files_are_balanced_and_disjoint() {
        let (train, test) = (shipped("train.jsonl"), shipped("test.jsonl"));
        for kind in &KINDS {
            let answer = format!("It is {}.", kind.name);
            let count = |file: &[(String, String)]| file.iter().filter(|(_, a)| *a == answer).count();
            assert_eq!((count(&train), count(&test)), (TRAIN, TEST), "{answer}");
        }
        assert_eq!((train.len(), test.len()), (TRAIN * KINDS.len(), TEST * KINDS.len()));
        let questions: HashSet<&String> = train.iter().chain(&test).map(|(question, _)| question).collect();
        assert_eq!(questions.len(), train.len() + test.len());
    }

    #[test]
    fn only_plain_definitions_are_asked() {
        assert!(is_plain("an intelligent dog's heavy, curly-haired coat"));
        assert!(!is_plain("a dog"));
        assert!(!is_plain("a dog (or a wolf) of the woods"));
        assert!(!is_plain(&"word ".repeat(21)));
    }
}
