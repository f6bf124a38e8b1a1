//! Numbers as people read them.

use alloc::format;
use alloc::string::{String, ToString};

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

/// A count with its digits in groups of three: `8,030,261,248`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_stand_in_threes() {
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (8_030_261_248, "8,030,261,248")] {
            assert_eq!(super::grouped(count), text);
        }
    }

    #[test]
    fn three_digits_and_a_unit() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (5_701_337_088, "5.31 GiB"), (48 << 30, "48.0 GiB")];
        for (count, text) in cases {
            assert_eq!(super::bytes(count), text);
        }
    }
}
