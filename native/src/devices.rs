//! `halfbyte devices`.

use anyhow::Result;

use crate::console::out;

/// Prints every device.
pub(crate) fn run() -> Result<()> {
    for line in crate::device::list() {
        out!("{line}")?;
    }
    Ok(())
}
