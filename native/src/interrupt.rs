//! Ctrl-C, SIGTERM and SIGHUP: the first asks a run to stop after its step, the second ends the process.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// What shells report of a command that was interrupted.
pub(crate) const EXIT_CODE: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on a signal is noticed rather than deadly. Files are written whole or not at all, so that the second does no
/// harm at any moment.
pub(crate) fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(EXIT_CODE));
        }
        // The terminal may be what has gone.
        let _ = writeln!(std::io::stderr(), "\nstopping after this step, with a checkpoint; once more stops at once");
    })?;
    Ok(())
}

/// Whether a signal came.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// A run that stopped because it was asked to; says how to go on.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) String);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}
