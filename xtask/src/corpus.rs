//! `cargo xtask corpus`: the pretraining text of the small base model, and that model's tokenizer.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::document::document;
use crate::files::{write, write_jsonl};
use crate::hash::{choose, hash};
use crate::wordnet::{Synset, WordNet};
use crate::{kinds, model_folder, tokenizer};

/// One document in so many is held out.
const HELD_OUT: usize = 100;

/// Writes `train.jsonl` and `heldout.jsonl` to `out`, trains the tokenizer on the former and writes the model folder.
pub(crate) fn make(wordnet: &WordNet, out: &Path, model: &Path) -> Result<()> {
    let tested = kinds::test_ids(wordnet)?;
    let (mut train, mut heldout) = (Vec::new(), Vec::new());
    let mut synsets: Vec<&Synset> = wordnet.synsets.iter().filter(|synset| !tested.contains(&synset.id)).collect();
    // Shuffled, so that any stretch of the files speaks of everything.
    synsets.sort_by_key(|synset| hash("order", synset.id));
    for synset in synsets {
        let part = if choose("held out", synset.id, HELD_OUT) == 0 { &mut heldout } else { &mut train };
        part.push(document(wordnet, synset));
    }

    let tokenizer = tokenizer::train(&train)?;
    model_folder::write_folder(model, &tokenizer)?;
    write(&model.join("LICENSE-WORDNET"), &wordnet.license)?;

    for (name, part) in [("train.jsonl", &train), ("heldout.jsonl", &heldout)] {
        let path = out.join(name);
        write_jsonl(&path, part.iter().map(|text| json!({ "text": text })))?;
        let bytes: usize = part.iter().map(String::len).sum();
        let tokens = tokenizer::count(&tokenizer, part)?;
        println!(
            "{}: {} documents, {:.2} MB of text, {tokens} tokens with the two marks of each document ({:.2} bytes per token)",
            path.display(),
            part.len(),
            bytes as f64 / 1e6,
            bytes as f64 / (tokens - 2 * part.len()) as f64
        );
    }
    println!("left out as insults or obscenities: {} synsets", wordnet.insults);
    println!("left out for the test of recipes/kinds: {} synsets", tested.len());
    println!("{}: tokenizer of {} tokens, configuration", model.display(), tokenizer.get_vocab_size(true));
    Ok(())
}
