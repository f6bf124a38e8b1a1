//! Ctrl-C, SIGTERM and SIGHUP: the first asks a run to stop after its step, the second ends the process.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::console::note;

/// What shells report of a command that was interrupted.
pub(crate) const EXIT_CODE: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);
/// Whether somebody looks at [`asked`].
static LISTENING: AtomicBool = AtomicBool::new(false);
/// Whether a parent passes on what stops the run, and ends this process if a second signal comes.
static FOLLOWING: AtomicBool = AtomicBool::new(false);

/// From now on a signal is noticed rather than deadly. Files are written whole or not at all, so that the second does no
/// harm at any moment. A run `speaks` of it unless another process does.
pub(crate) fn listen(speaks: bool) -> Result<()> {
    LISTENING.store(true, Ordering::SeqCst);
    ctrlc::set_handler(move || {
        let again = ASKED.swap(true, Ordering::SeqCst);
        if again && !FOLLOWING.load(Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_CODE));
        }
        if !again && speaks {
            speak();
        }
    })?;
    Ok(())
}

/// Says that a signal was noticed. The terminal may be what has gone.
pub(crate) fn speak() {
    note!("\nstopping after this step, with a checkpoint; once more stops at once");
}

/// This process is one of several that a parent has started, which holds its standard input open for as long as the run is to
/// go on. The parent may have been killed: that closes it, too.
pub(crate) fn follow_parent() {
    FOLLOWING.store(true, Ordering::SeqCst);
    std::thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        // Nothing is ever written to it.
        while matches!(input.read(&mut [0; 64]), Ok(1..)) {}
        ASKED.store(true, Ordering::SeqCst);
        if !LISTENING.load(Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_CODE));
        }
    });
}

/// Whether a signal came.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
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
