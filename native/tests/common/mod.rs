//! What runs in tests are made of.

use std::fs;
use std::path::{Path, PathBuf};

/// The shipped model, and the first lines of its training and held-out data in `folder`.
pub(crate) fn shipped(folder: &Path, [train, test]: [usize; 2]) -> [PathBuf; 3] {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let [train, test] = [("train.jsonl", train), ("test.jsonl", test)].map(|(file, lines)| {
        let all = fs::read_to_string(root.join("recipes/kinds").join(file)).expect(file);
        let some: String = all.lines().take(lines).map(|line| format!("{line}\n")).collect();
        let path = folder.join(file);
        fs::write(&path, some).expect(file);
        path
    });
    [root.join("models/wordnet-4m"), train, test]
}
