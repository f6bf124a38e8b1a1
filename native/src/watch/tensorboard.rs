//! TensorBoard's event file: a record for each step, which `tensorboard --logdir` shows while it is written.
//!
//! A record is its length (u64, little-endian), the length's checksum, a protobuf `Event` and its checksum; a checksum is
//! CRC-32C, rotated and offset (TensorFlow, core/lib/io/record_writer.cc and core/lib/hash/crc32c.h). Written here: the crate
//! `tensorboard-rs` panics on an error of the disk and brings an image library of 2021.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use prost::Message;

/// How the files of this writer end, by which it knows its own of an earlier run.
const ENDING: &str = ".halfbyte";

/// The parts of TensorFlow's `Event` (core/util/event.proto) that are written.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

/// `Summary` (core/framework/summary.proto).
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `Summary.Value` with a scalar.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// `SessionLog`; status 1 is START: what was recorded for this step and later ones no longer holds.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An event file being written.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder`. A run from the start takes the place of those that this writer left there; one that goes on
    /// after `done` steps lets TensorBoard forget what came after them.
    pub(super) fn create(folder: &Path, done: usize) -> Result<Self> {
        if done == 0 {
            for entry in fs::read_dir(folder)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("events.out.tfevents.") && name.ends_with(ENDING) {
                    fs::remove_file(entry.path())
                        .with_context(|| format!("cannot remove {}", entry.path().display()))?;
                }
            }
        }
        // TensorBoard reads the files of a folder in the order of their names.
        let name = format!("events.out.tfevents.{:010}.{}{ENDING}", seconds() as u64, std::process::id());
        let path = folder.join(name);
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Self { path, file };
        events.write(Event { file_version: Some("brain.Event:2".into()), ..Event::default() })?;
        if done > 0 {
            let step = i64::try_from(done)? + 1;
            events.write(Event { step, session_log: Some(SessionLog { status: 1 }), ..Event::default() })?;
        }
        Ok(events)
    }

    /// Records values of a step by their tags.
    pub(super) fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let value = |(tag, value): &(&str, f64)| Value { tag: (*tag).into(), simple_value: Some(*value as f32) };
        let summary = Some(Summary { value: values.iter().map(value).collect() });
        self.write(Event { step: i64::try_from(step)?, summary, ..Event::default() })
    }

    fn write(&mut self, event: Event) -> Result<()> {
        let record = record(&Event { wall_time: seconds(), ..event }.encode_to_vec());
        // In one call, so that whoever reads meanwhile rarely sees a part of it.
        self.file.write_all(&record).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn seconds() -> f64 {
    UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64())
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_of_tensorboards_own_writer() {
        let value = |tag: &str, value| Value { tag: tag.into(), simple_value: Some(value) };
        let at = |step, event: Event| record(&Event { wall_time: 1.5, step, ..event }.encode_to_vec());
        let summary = |value| Event { summary: Some(Summary { value }), ..Event::default() };
        let log = Event { session_log: Some(SessionLog { status: 1 }), ..Event::default() };
        let records = [
            at(0, Event { file_version: Some("brain.Event:2".into()), ..Event::default() }),
            at(8, log),
            at(8, summary(vec![value("train/loss", 2.25), value("train/epoch", 0.0)])),
            at(300, summary(vec![value("eval/loss", 1e-3)])),
        ];
        assert_eq!(records.concat(), include_bytes!("../../../tests/golden/events/events.bin"));
    }

    #[test]
    fn a_run_from_the_start_replaces_its_own_files_only() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["events.out.tfevents.1.2.halfbyte", "events.out.tfevents.1.host.3.0", "notes.halfbyte"] {
            fs::write(folder.path().join(name), "before").unwrap();
        }
        let mut events = EventFile::create(folder.path(), 0).unwrap();
        events.scalars(1, &[("train/loss", 2.0)]).unwrap();
        let names = || {
            let mut names: Vec<String> =
                fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names().len(), 3, "{:?}", names());
        assert!(!names().contains(&"events.out.tfevents.1.2.halfbyte".into()));
        let length = fs::metadata(&events.path).unwrap().len();
        fs::rename(&events.path, folder.path().join("events.out.tfevents.1.2.halfbyte")).unwrap();
        // One that goes on leaves what was there, and begins with the mark of a new session.
        let again = EventFile::create(folder.path(), 1).unwrap();
        assert_eq!(names().len(), 4);
        assert_ne!(fs::metadata(&again.path).unwrap().len(), length);
    }
}
