//! The shards of a model too large for the disk: one is there at a time.

use std::collections::VecDeque;
use std::path::PathBuf;

use super::Snapshot;
use super::download::HubProgress;
use crate::Result;
use crate::files::Checkpoint;

/// Shards in turn. Whoever takes one lets go of it before asking for the next, which removes it.
pub struct ShardStream<'a> {
    snapshot: &'a Snapshot<'a>,
    files: VecDeque<String>,
    keep: bool,
    progress: HubProgress<'a>,
    /// The shard that was given out, where it is this stream's to remove: its place and its hash.
    given: Option<(PathBuf, String)>,
}

impl<'a> ShardStream<'a> {
    pub(super) fn new(snapshot: &'a Snapshot<'a>, files: Vec<String>, keep: bool, progress: HubProgress<'a>) -> Self {
        Self { snapshot, files: files.into(), keep, progress, given: None }
    }

    fn open(&mut self, file: &str) -> Result<Checkpoint> {
        let path = self.snapshot.folder().join(file);
        if !path.exists() {
            let fetched = self.snapshot.fetch(file, self.progress)?;
            if fetched.fresh && !self.keep {
                self.given = Some((fetched.path, fetched.etag));
            }
        }
        Checkpoint::open_file(path)
    }

    fn drop_given(&mut self) -> Result<()> {
        let Some((path, etag)) = self.given.take() else { return Ok(()) };
        self.snapshot.cache.drop_file(&path, &etag)
    }
}

impl Iterator for ShardStream<'_> {
    type Item = Result<Checkpoint>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.drop_given() {
            return Some(Err(error));
        }
        let file = self.files.pop_front()?;
        Some(self.open(&file))
    }
}

impl Drop for ShardStream<'_> {
    /// A run that fails on a shard leaves none behind either.
    fn drop(&mut self) {
        let _ = self.drop_given();
    }
}
