//! How much memory this process has needed.

/// Most memory that it had at once, bytes, mapped files that were in memory included; `None` where the system does not
/// say. Linux does.
pub(super) fn bytes() -> Option<u64> {
    of_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The line `VmHWM:   123456 kB` of proc(5).
fn of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found() {
        let status =
            "Name:\trewind\nVmPeak:\t  999999 kB\nVmHWM:\t    5124 kB\nVmRSS:\t    4000 kB\n";
        assert_eq!(of_status(status), Some(5124 * 1024));
        assert_eq!(of_status("Name:\trewind\n"), None);
    }
}
