//! Commands that a user is told to type.

use std::borrow::Cow;

/// A word of a command, in quotes where a shell needs them.
pub(crate) fn word(text: impl ToString) -> String {
    let text = text.to_string();
    // No name of a file holds what cannot be quoted.
    shlex::try_quote(&text).map(Cow::into_owned).unwrap_or(text)
}
