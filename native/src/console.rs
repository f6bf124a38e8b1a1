//! Everything that the command prints. Whoever reads it may be gone, and a disk may be full: a command that was asked for what it prints
//! ends then, a run goes on.

use std::fmt::Arguments;
use std::io::{self, Write};

use anyhow::{Context, Result};

/// Prints a line of what the command was asked for; whether it was written.
macro_rules! out {
    ($($text:tt)+) => { $crate::console::write(format_args!("{}\n", format_args!($($text)+))) };
}

/// Prints a line about a run on the standard output, if it can be written.
macro_rules! tell {
    ($($text:tt)+) => { $crate::console::tell_line(format_args!($($text)+)) };
}

/// Prints a line on the standard error, if it can be written, in one piece: the ranks of a run write to the same place at the same
/// moment.
macro_rules! note {
    ($($text:tt)+) => { $crate::console::note_line(format_args!($($text)+)) };
}

pub(crate) use {note, out, tell};

/// What a command ends with whose output fails.
pub(crate) const CANNOT_WRITE: &str = "cannot write to the standard output";

/// Writes to the standard output, to be seen at once.
pub(crate) fn write(text: Arguments<'_>) -> Result<()> {
    let mut output = io::stdout().lock();
    output.write_fmt(text).and_then(|()| output.flush()).context(CANNOT_WRITE)
}

pub(crate) fn tell_line(line: Arguments<'_>) {
    let _ = writeln!(Outlasting, "{line}");
}

pub(crate) fn note_line(line: Arguments<'_>) {
    // There is nobody to tell that nobody can be told.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The standard output of a run: what cannot be written is passed over.
pub(crate) struct Outlasting;

impl Write for Outlasting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stdout().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = io::stdout().flush();
        Ok(())
    }
}
