//! The parts of the command that watch a run, each beside its own tests. They are compiled here by their paths: building the
//! whole command a second time for them would take minutes.

#![allow(dead_code, unused_imports, unused_macros)]

#[path = "../src/watch/chart.rs"]
mod chart;
#[path = "../src/console.rs"]
mod console;
#[path = "../src/watch/hashes.rs"]
mod hashes;
#[path = "../src/progress.rs"]
mod progress;
#[path = "../src/pulse.rs"]
mod pulse;
#[path = "../src/watch/tensorboard.rs"]
mod tensorboard;
