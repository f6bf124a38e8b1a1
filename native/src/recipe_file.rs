//! The recipe as it was run, flags included: where it stands in the output folder.

use std::path::{Path, PathBuf};

use halfbyte::train::Recipe;

/// The file to write it to in `output`, for a run by the recipe `read`. A recipe that its user wrote there stays as it is: its
/// comments are nowhere else.
pub(crate) fn of(read: &Path, output: &Path) -> PathBuf {
    let [usual, beside] = ["recipe.toml", "recipe-as-run.toml"].map(|name| output.join(name));
    let same = read.canonicalize().is_ok_and(|read| usual.canonicalize().is_ok_and(|usual| read == usual));
    if beside.exists() || (same && !is_written(read)) { beside } else { usual }
}

/// Whether a recipe is one that a run wrote: all keys, and nothing else.
fn is_written(path: &Path) -> bool {
    let again = |text: &String| toml::to_string(&toml::from_str::<Recipe>(text).ok()?).ok();
    std::fs::read_to_string(path).is_ok_and(|text| again(&text).as_ref() == Some(&text))
}
