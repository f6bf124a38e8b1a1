//! What Linux tells of memory.

/// The bytes that a line `KEY: N kB` of a file such as `/proc/meminfo` names; none on a system without it. `key` has its colon.
pub(crate) fn bytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}
