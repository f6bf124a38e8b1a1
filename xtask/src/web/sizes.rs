//! What a visitor downloads, file by file, compressed as hosts compress; and the widget's limit.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::files;

/// What the widget may weigh in all: whoever embeds it has a page of their own to load.
const WIDGET_LIMIT: usize = 40_000;
const WIDGET: [&str; 2] = ["halfbyte-memory.js", "halfbyte-memory.wasm"];

/// The length of a file after gzip at its best.
fn gzipped(path: &Path) -> Result<usize> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&bytes)?;
    Ok(encoder.finish()?.len())
}

/// Prints the size of every file.
///
/// # Errors
/// When the widget's files pass 40 kB together.
pub(super) fn report(dist: &Path) -> Result<()> {
    println!("\n{:<44} {:>10} {:>10}", "file of web/dist", "bytes", "gzip");
    let mut widget = 0;
    for file in files::below(dist)? {
        let path = dist.join(&file);
        let gzip = gzipped(&path)?;
        println!("{file:<44} {:>10} {gzip:>10}", path.metadata()?.len());
        if WIDGET.contains(&file.as_str()) {
            widget += gzip;
        }
    }
    println!("the widget: {widget} bytes in gzip, of {WIDGET_LIMIT}");
    ensure!(
        widget <= WIDGET_LIMIT,
        "the widget takes {widget} bytes in gzip; more than {WIDGET_LIMIT} is too much to ask of a page that embeds it"
    );
    Ok(())
}
