//! The halfbyte command.
fn main() {}
