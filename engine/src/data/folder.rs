//! Folders of data files, with the names that data sets on the hub have.

use std::path::{Path, PathBuf};

use super::read::EXTENSIONS;
use crate::{Error, Result};

/// The files of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Files to train on, in the order of their names.
    pub train: Vec<PathBuf>,
    /// Files held out; `validation` where there is no `test`.
    pub test: Vec<PathBuf>,
}

/// Words that name a split, from the best to the one taken in its place.
const TRAIN: [&str; 2] = ["train", "training"];
const TEST: [&[&str]; 2] = [&["test", "testing", "eval", "evaluation"], &["validation", "valid", "val", "dev"]];
/// JSON files that describe a data set.
const DESCRIPTIONS: [&str; 3] = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json"];

impl Files {
    /// A file to train on, or a folder: its files and those of the folders in it (`data`, `train`, `test`), told apart by
    /// words of their names (`train.jsonl`, `data/train-00000-of-00002.parquet`, `test/part.csv`). Where no name
    /// speaks of a split, all are trained on.
    ///
    /// # Errors
    /// When there is no data file, files of a split have several formats, or a numbered file is missing.
    pub fn find(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Ok(Self { train: vec![path.to_path_buf()], test: vec![] });
        }
        let mut files = listed(path)?;
        for folder in folders(path)? {
            files.extend(listed(&folder)?);
        }
        files.sort();
        let named = |words: &[&str]| -> Vec<PathBuf> {
            files.iter().filter(|file| words.contains(&split_word(path, file).as_str())).cloned().collect()
        };
        let test = TEST.iter().map(|words| named(words)).find(|found| !found.is_empty()).unwrap_or_default();
        let any = TRAIN.iter().chain(TEST.concat().iter()).any(|word| !named(&[*word]).is_empty());
        let train = if any { named(&TRAIN) } else { files.clone() };
        if train.is_empty() && test.is_empty() {
            let extensions = EXTENSIONS.join(", .");
            return Err(Error::file(path, format!("holds no data file (.{extensions}), also not one folder down")));
        }
        for files in [&train, &test] {
            same_format(path, files)?;
            complete(path, files)?;
        }
        Ok(Self { train, test })
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::file(folder, e))?;
    let paths = entries.map(|entry| Ok(entry.map_err(|e| Error::file(folder, e))?.path()));
    let paths: Vec<PathBuf> = paths.collect::<Result<_>>()?;
    Ok(paths.into_iter().filter(|path| !name(path).starts_with('.')).collect())
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_data = |path: &PathBuf| {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        path.is_file() && EXTENSIONS.contains(&extension.as_str()) && !DESCRIPTIONS.contains(&name(path).as_str())
    };
    Ok(entries(folder)?.into_iter().filter(is_data).collect())
}

/// Folders that hold a split, or all of them.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let splits = TEST.concat();
    let is_part = |folder: &PathBuf| {
        let name = name(folder);
        folder.is_dir() && (name == "data" || TRAIN.contains(&name.as_str()) || splits.contains(&name.as_str()))
    };
    Ok(entries(path)?.into_iter().filter(is_part).collect())
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The word of a file's name, or of its folder's, that names a split; empty for none.
fn split_word(root: &Path, file: &Path) -> String {
    let known = [&TRAIN[..], &TEST.concat()].concat();
    let word_of = |name: String| {
        let name = name.to_lowercase();
        name.split(|c: char| !c.is_alphabetic()).find(|word| known.contains(word)).map(str::to_string)
    };
    let folder = || file.parent().filter(|folder| *folder != root).and_then(|folder| word_of(name(folder)));
    word_of(name(file)).or_else(folder).unwrap_or_default()
}

fn same_format(root: &Path, files: &[PathBuf]) -> Result<()> {
    let other = files.iter().find(|file| file.extension() != files[0].extension());
    match other {
        Some(other) => {
            let reason = format!("holds both {} and {}; name the one to read", files[0].display(), other.display());
            Err(Error::file(root, reason))
        }
        None => Ok(()),
    }
}

/// Refuses a set of files `..-00000-of-00002..` of which one is missing, as a download that was cut off leaves it.
fn complete(root: &Path, files: &[PathBuf]) -> Result<()> {
    let numbered = files.iter().filter_map(|file| {
        let name = name(file);
        let (before, after) = name.split_once("-of-")?;
        let (stem, _) = before.rsplit_once('-')?;
        let total: usize = after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        Some((stem.to_string(), total))
    });
    let mut sets = std::collections::BTreeMap::<_, usize>::new();
    for set in numbered {
        *sets.entry(set).or_default() += 1;
    }
    match sets.iter().find(|((_, total), found)| *found < total) {
        Some(((stem, total), found)) => {
            Err(Error::file(root, format!("holds {found} of {total} files of `{stem}`; fetch the missing ones")))
        }
        None => Ok(()),
    }
}
