//! Reads WordNet's `data.*` files (format: the manual page wndb(5WN)) into plain synsets.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The parts of speech, in the order in which the files are read.
const FILES: [(&str, char); 4] = [("data.noun", 'n'), ("data.verb", 'v'), ("data.adj", 'a'), ("data.adv", 'r')];

/// What WordNet calls the use of a word that it marks as an insult or an obscenity, and how its definitions say it.
const INSULTS: [&str; 5] = ["ethnic slur", "obscenity", "disparagement", "dirty word", "vulgarism"];
const MARKED: [&str; 9] = [
    "ethnic slur",
    "racial slur",
    "offensive term",
    "offensive name",
    "disparaging",
    "derogatory",
    "obscene",
    "vulgar term",
    "insulting term",
];

/// What a synset is called across the four files: its file's letter (`n`, `v`, `a`, `r`) and its byte offset there.
pub(crate) type Id = (char, u32);

/// A relation from one synset to another.
pub(crate) struct Pointer {
    /// WordNet's symbol: `@` is a kind of, `~` has the kind, `!` opposite, ...
    pub(crate) symbol: String,
    /// Where it leads.
    pub(crate) target: Id,
    /// Which of the target's words is meant, 0-based; the first when the relation holds for the whole synset.
    pub(crate) word: usize,
}

/// One meaning: the words that share it, its definition, its examples and its relations.
pub(crate) struct Synset {
    /// Its name across the files.
    pub(crate) id: Id,
    /// Number of the lexicographer file, for example 5 for `noun.animal` (lexnames(5WN)).
    pub(crate) lexicographer: u8,
    /// The words, with spaces and without syntactic markers.
    pub(crate) lemmas: Vec<String>,
    /// Its relations, in the file's order.
    pub(crate) pointers: Vec<Pointer>,
    /// The definition, without the examples, without a full stop.
    pub(crate) definition: String,
    /// The quoted examples.
    pub(crate) examples: Vec<String>,
}

/// WordNet, less the insults.
#[derive(Default)]
pub(crate) struct WordNet {
    /// The synsets, less those that WordNet marks as insults: nouns, verbs, adjectives, adverbs, each in the file's order.
    pub(crate) synsets: Vec<Synset>,
    /// The licence that stands at the head of each data file.
    pub(crate) license: String,
    /// How many synsets were left out as insults or obscenities.
    pub(crate) insults: usize,
    index: HashMap<Id, usize>,
}

impl WordNet {
    /// Reads the four data files of `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut synsets = Vec::with_capacity(120_000);
        let mut license = String::new();
        for (name, pos) in FILES {
            let path = folder.join(name);
            let text = std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "cannot read {}: install WordNet 3.0's data files (Debian, Ubuntu: `apt-get install \
                     --no-install-recommends wordnet-base`) or name their folder with --wordnet DIR",
                    path.display()
                )
            })?;
            // The licence is numbered and indented by two spaces; no synset line starts with a space.
            let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("  ")).collect();
            if license.is_empty() {
                let text = |line: &&str| line.trim().split_once(' ').map_or("", |(_, text)| text).to_owned() + "\n";
                license = head.iter().map(text).collect();
            }
            for (number, line) in text.lines().enumerate().skip(head.len()) {
                let synset = synset(line, pos)
                    .with_context(|| format!("{}, line {}: not a WordNet synset", path.display(), number + 1))?;
                synsets.push(synset);
            }
        }
        let mut wordnet = Self { synsets, license, insults: 0, index: HashMap::new() };
        wordnet.number();
        let kept: Vec<bool> = wordnet.synsets.iter().map(|synset| !wordnet.is_insult(synset)).collect();
        wordnet.insults = kept.iter().filter(|kept| !**kept).count();
        let mut kept = kept.into_iter();
        wordnet.synsets.retain(|_| kept.next() == Some(true));
        wordnet.number();
        Ok(wordnet)
    }

    /// Notes where each synset is.
    fn number(&mut self) {
        self.index = self.synsets.iter().enumerate().map(|(place, synset)| (synset.id, place)).collect();
    }

    /// Whether WordNet itself marks the synset as an insult or an obscenity: a shipped model need not learn those.
    fn is_insult(&self, synset: &Synset) -> bool {
        MARKED.iter().any(|mark| synset.definition.contains(mark))
            || self.related(synset, &[";u"]).iter().any(|usage| INSULTS.contains(usage))
    }

    /// The synset of that name.
    pub(crate) fn get(&self, id: Id) -> Option<&Synset> {
        self.index.get(&id).map(|&place| &self.synsets[place])
    }

    /// The words that `synset`'s relations with one of `symbols` lead to, each once, in the file's order.
    pub(crate) fn related<'a>(&'a self, synset: &'a Synset, symbols: &[&str]) -> Vec<&'a str> {
        let mut words = Vec::new();
        for pointer in synset.pointers.iter().filter(|p| symbols.contains(&p.symbol.as_str())) {
            let word = self.get(pointer.target).and_then(|target| target.lemmas.get(pointer.word));
            if let Some(word) = word.map(String::as_str).filter(|word| !words.contains(word)) {
                words.push(word);
            }
        }
        words
    }
}

/// Reads one line: `offset lex_filenum ss_type w_cnt word lex_id [...] p_cnt [ptr...] [frames...] | gloss`.
fn synset(line: &str, pos: char) -> Result<Synset> {
    let (fields, gloss) = line.split_once(" | ").context("no gloss")?;
    let mut fields = fields.split_ascii_whitespace();
    let mut next = || fields.next().context("the line ends early");
    let offset = next()?.parse()?;
    let lexicographer = next()?.parse()?;
    next()?;
    let mut lemmas = Vec::new();
    for _ in 0..u32::from_str_radix(next()?, 16)? {
        lemmas.push(lemma(next()?));
        next()?;
    }
    let mut pointers = Vec::new();
    for _ in 0..next()?.parse::<u32>()? {
        let symbol = next()?.to_owned();
        let offset = next()?.parse()?;
        let pos = match next()? {
            "n" => 'n',
            "v" => 'v',
            "a" | "s" => 'a',
            "r" => 'r',
            other => bail!("part of speech {other:?}"),
        };
        let ends = next()?;
        let word = usize::from_str_radix(ends.get(2..).context("a short source/target field")?, 16)?;
        pointers.push(Pointer { symbol, target: (pos, offset), word: word.saturating_sub(1) });
    }
    let (definition, examples) = split_gloss(gloss);
    Ok(Synset { id: (pos, offset), lexicographer, lemmas, pointers, definition, examples })
}

/// `galore(ip)` to `galore`, `hot_dog` to `hot dog`.
fn lemma(word: &str) -> String {
    word.split_once('(').map_or(word, |(word, _)| word).replace('_', " ")
}

/// A gloss is a definition and then examples in double quotes; what follows a quote (its author) is left out.
fn split_gloss(gloss: &str) -> (String, Vec<String>) {
    let start = [";", ":", ","]
        .iter()
        .flat_map(|mark| [format!("{mark} \""), format!("{mark}\"")])
        .filter_map(|mark| gloss.find(&mark))
        .min();
    let (definition, quotes) = start.map_or((gloss, ""), |at| gloss.split_at(at));
    let mut examples: Vec<String> = quotes.split('"').skip(1).step_by(2).map(clean).collect();
    examples.retain(|example| example.len() > 2);
    (clean(definition).trim_end_matches([';', ':', ',', '.', ' ']).to_owned(), examples)
}

/// WordNet's opening quote is a backquote; runs of spaces are slips.
fn clean(text: &str) -> String {
    text.replace('`', "'").split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_line_becomes_a_synset() {
        let line = "02113335 05 n 02 poodle 0 poodle_dog 0 002 @ 02084071 n 0000 + 00000010 v 0102 | an intelligent  \
                    dog; clipped; \"the `poodle' barked\"; \"two\"- A. Writer  ";
        let synset = synset(line, 'n').unwrap();
        assert_eq!(synset.id, ('n', 2_113_335));
        assert_eq!(synset.lexicographer, 5);
        assert_eq!(synset.lemmas, ["poodle", "poodle dog"]);
        assert_eq!(synset.pointers[1].target, ('v', 10));
        assert_eq!(synset.pointers[1].word, 1);
        assert_eq!(synset.definition, "an intelligent dog; clipped");
        assert_eq!(synset.examples, ["the 'poodle' barked", "two"]);
    }

    #[test]
    fn syntactic_markers_go() {
        assert_eq!(lemma("galore(ip)"), "galore");
    }

    #[test]
    fn a_short_line_is_an_error_not_a_panic() {
        assert!(synset("02113335 05 n 02 poodle | a dog", 'n').is_err());
    }
}
