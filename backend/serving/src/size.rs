//! Amounts of memory as people write them.

/// Bytes of a text such as `2GiB`, `512 MB`, `1.5g` or `1048576`. `None` for anything else, for 0
/// and for what does not fit.
///
/// `KB`, `MB`, `GB`, `TB` are powers of 1000; `KiB` … and the bare letters `K`, `M`, `G`, `T` are
/// powers of 1024. Case does not matter.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return None,
    };
    let bytes = match number.parse::<u64>() {
        Ok(number) => number.checked_mul(scale)?,
        Err(_) => {
            let bytes = number.parse::<f64>().ok()? * scale as f64;
            // Above 2^53 a fraction of a unit can no longer be told apart.
            if bytes >= 9e15 {
                return None;
            }
            bytes as u64
        }
    };
    (bytes > 0).then_some(bytes)
}

/// `bytes` with a unit and three digits: `1.23 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ if value < 10.0 => format!("{value:.2} {unit}"),
        _ if value < 100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_fractions() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("2GiB", 2 << 30),
            ("2g", 2 << 30),
            (" 512 MB ", 512_000_000),
            ("1.5KiB", 1536),
            ("1tb", 1_000_000_000_000),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", "0", "GiB", "-1", "1e9", "2 gigs", "1.2.3", "99999999999T", "0.1B", "nan"]
        {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn three_digits() {
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(1536), "1.50 KiB");
        assert_eq!(format_bytes(89_800_000), "85.6 MiB");
        assert_eq!(format_bytes(256 << 30), "256 GiB");
    }
}
