//! The one error type of the engine: every variant names the place and says what to do about it.

use std::path::Path;

/// What went wrong, where, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that is missing, unreadable or not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// The file, as the user named it.
        path: String,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// A key of a configuration file.
    #[error("{path}: `{key}`: {reason}")]
    Key {
        /// The file, as the user named it.
        path: String,
        /// The key, dotted where it is nested.
        key: String,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// One line of a line-based data file.
    #[error("{path}:{line}: {reason}")]
    Line {
        /// The file, as the user named it.
        path: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// A value that no file is to blame for.
    #[error("{0}")]
    Invalid(String),
    /// A name of the hub that is not there, may not be read or could not be downloaded.
    #[error("hub: {name}: {reason}")]
    Hub {
        /// The name, as `org/name@revision`.
        name: String,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// A device that is absent or that failed.
    #[error("device `{device}`: {reason}")]
    Device {
        /// The device as the user asked for it.
        device: String,
        /// What is wrong, and the cure.
        reason: String,
    },
    /// Training met a loss or a gradient that is not a number; what was saved before is whole.
    #[error("step {step}: {what} is not finite; {cure}")]
    NonFinite {
        /// The optimizer step, counted from 1.
        step: usize,
        /// What was not finite.
        what: String,
        /// Where the last good state is and what to change.
        cure: String,
    },
    /// Another process of a data-parallel run.
    #[error("rank {rank} ({address}): {reason}")]
    Rank {
        /// Which one.
        rank: usize,
        /// Where it is connected from.
        address: String,
        /// What is wrong, and the cure.
        reason: String,
        /// The kind of it.
        trouble: Trouble,
    },
}

/// What became of another process of a data-parallel run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is gone without a word.
    Vanished,
    /// Its run ended with an error, which it told.
    Failed,
    /// It runs or holds something else.
    Differs,
}

impl From<crate::nf4::Invalid> for Error {
    fn from(invalid: crate::nf4::Invalid) -> Self {
        Self::Invalid(invalid.0)
    }
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::File`].
    pub fn file(path: impl AsRef<Path>, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().display().to_string(), reason: reason.to_string() }
    }

    /// An [`Error::Key`].
    pub fn key(path: impl AsRef<Path>, key: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Key { path: path.as_ref().display().to_string(), key: key.into(), reason: reason.to_string() }
    }

    /// An [`Error::Line`].
    pub fn line(path: impl AsRef<Path>, line: usize, reason: impl std::fmt::Display) -> Self {
        Self::Line { path: path.as_ref().display().to_string(), line, reason: reason.to_string() }
    }
}
