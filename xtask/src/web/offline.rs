//! The service worker's list: every file of the site, under a name that changes when any of them does.

use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::files;

/// The service worker as it is written, and where in it the list goes.
const SOURCE: &str = "web/offline.js";
const NAME: &str = "\"NAME\"";
const FILES: &str = "[\"FILES\"]";

/// Files that no browser asks the site for.
const UNASKED: [&str; 2] = ["404.html", "offline.js"];

/// Writes `offline.js`. Models are large, so they are kept when they are first asked for, and not before.
pub(super) fn write(root: &Path, dist: &Path) -> Result<()> {
    let source = std::fs::read_to_string(root.join(SOURCE)).with_context(|| format!("cannot read {SOURCE}"))?;
    let mut hash = Sha256::new();
    let mut addresses = Vec::new();
    for file in files::below(dist)? {
        if UNASKED.contains(&file.as_str()) {
            continue;
        }
        let bytes = std::fs::read(dist.join(&file)).with_context(|| format!("cannot read {file}"))?;
        hash.update(file.as_bytes());
        hash.update(Sha256::digest(&bytes));
        if !file.starts_with("models/") {
            // A page is asked for by its folder.
            addresses.push(format!("./{}", file.strip_suffix("index.html").unwrap_or(&file)));
        }
    }
    let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let written = source.replace(NAME, &format!("\"{name}\"")).replace(FILES, &serde_json::to_string(&addresses)?);
    files::write(&dist.join("offline.js"), &written)
}
