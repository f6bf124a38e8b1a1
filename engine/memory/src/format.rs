//! Bytes as people read them.

/// A number of bytes in binary units with three significant digits: `5.31 GiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{count} B"),
        (_, value) if value < 10.0 => format!("{value:.2} {}", units[unit]),
        (_, value) if value < 100.0 => format!("{value:.1} {}", units[unit]),
        (_, value) => format!("{value:.0} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn three_digits_and_a_unit() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (5_701_337_088, "5.31 GiB"), (48 << 30, "48.0 GiB")];
        for (count, text) in cases {
            assert_eq!(super::bytes(count), text);
        }
    }
}
