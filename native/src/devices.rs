//! `halfbyte devices`.

use anyhow::Result;

/// Prints every device.
pub(crate) fn run() -> Result<()> {
    for line in crate::device::list() {
        println!("{line}");
    }
    Ok(())
}
