//! What the stages' programs say on the way, and the table at the end.

use std::time::Duration;

use console::{measure_text_width, style};

use crate::progress::brief;

/// What is worth a place in the table if a stage passed; why, if it failed.
pub(super) type Outcome = Result<String, String>;

/// How one stage went.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) name: String,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
    /// What its tests left out, in their words.
    pub(super) skips: Vec<String>,
}

/// Picks the sums and the skipped tests out of what nextest, cargo test and pytest print.
#[derive(Debug, Default)]
pub(super) struct Listener {
    passed: usize,
    skips: Vec<String>,
}

impl Listener {
    /// Takes in a line, without colours.
    pub(super) fn hear(&mut self, line: &str) {
        match Sum::of(line) {
            Some(sum) => {
                self.passed += sum.passed;
                // pytest explains each of its skipped tests in a line of its own; the others do not.
                if sum.skipped > 0 && !sum.explained {
                    self.skips.push(line.trim().to_owned());
                }
            }
            None => self.hear_skip(line),
        }
    }

    /// Takes in a line that can only be of interest for a test that skips itself.
    pub(super) fn hear_skip(&mut self, line: &str) {
        if mentions_skip(line) {
            self.skips.push(line.trim().to_owned());
        }
    }

    /// Tests that passed.
    pub(super) fn count(&self) -> usize {
        self.passed
    }

    /// Tests that passed, for the table.
    pub(super) fn counted(&self) -> String {
        format!("{} tests", self.passed)
    }

    /// Every line about a skipped test.
    pub(super) fn into_skips(self) -> Vec<String> {
        self.skips
    }
}

/// The closing line of a test runner.
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    passed: usize,
    skipped: usize,
    explained: bool,
}

impl Sum {
    fn of(line: &str) -> Option<Self> {
        let line = line.trim();
        let nextest = line.starts_with("Summary [");
        let cargo = line.starts_with("test result: ");
        let pytest = line.starts_with("==") && line.ends_with("==") && line.contains(" in ");
        if !(nextest || cargo || pytest) {
            return None;
        }
        // "1 passed", "2 skipped", "3 ignored": the number stands before the word.
        let words: Vec<&str> =
            line.split([' ', ',', ';', '(', '=']).filter(|w| !w.is_empty()).collect();
        let before = |sought: &str| {
            let pair = words.windows(2).find(|pair| pair[1] == sought);
            pair.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
        };
        Some(Self {
            passed: before("passed"),
            skipped: before("skipped") + before("ignored"),
            explained: pytest,
        })
    }
}

/// True for "SKIP" as a word, and for pytest's "SKIPPED [n]".
fn mentions_skip(line: &str) -> bool {
    line.match_indices("SKIP").any(|(at, word)| {
        let starts =
            line[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
        let rest = &line[at + word.len()..];
        let ends = rest.chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_');
        starts && (ends || rest.starts_with("PED ["))
    })
}

/// The table of all stages, then what was skipped.
pub(super) fn table(reports: &[Report], total: Duration) -> String {
    let width =
        reports.iter().map(|report| report.name.len()).max().unwrap_or(0).max("total".len());
    let mut lines = Vec::new();
    for Report { name, outcome, took, skips } in reports {
        let (result, note) = match outcome {
            Ok(note) => (style("ok").green(), note.clone()),
            Err(why) => (style("FAILED").red().bold(), why.clone()),
        };
        let skipped = match skips.len() {
            0 => String::new(),
            count => style(format!("  {count} SKIP")).yellow().to_string(),
        };
        let padding = " ".repeat(6_usize.saturating_sub(measure_text_width(&result.to_string())));
        lines.push(format!(
            "{name:<width$}  {result}{padding}  {:>12}  {note}{skipped}",
            brief(*took)
        ));
    }
    lines.push(format!("{:<width$}  {:<6}  {:>12}", "total", "", brief(total)));
    for Report { name, skips, .. } in reports {
        lines.extend(skips.iter().map(|skip| format!("skipped in {name}: {skip}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Listener {
        let mut listener = Listener::default();
        lines.iter().for_each(|line| listener.hear(line));
        listener
    }

    #[test]
    fn sums_of_every_runner_are_understood() {
        for (line, passed, skipped) in [
            (
                "     Summary [   1.203s] 41 tests run: 40 passed (1 slow), 1 failed, 3 skipped",
                40,
                3,
            ),
            ("test result: ok. 7 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out", 7, 2),
            ("======= 12 passed, 2 skipped, 1 warning in 3.40s =======", 12, 2),
            ("==== 9 passed in 61.00s (0:01:01) ====", 9, 0),
            ("==== no tests ran in 0.01s ====", 0, 0),
        ] {
            let sum = Sum::of(line).unwrap();
            assert_eq!((sum.passed, sum.skipped), (passed, skipped), "{line}");
        }
        assert_eq!(Sum::of("12 passed in my dreams"), None);
    }

    #[test]
    fn several_sums_add_up() {
        let sum = "test result: ok. 7 passed; 0 failed; 0 ignored";
        let listener = heard(&[sum, sum]);
        assert_eq!((listener.count(), listener.counted().as_str()), (14, "14 tests"));
    }

    #[test]
    fn a_skip_is_heard_once() {
        let skips = heard(&[
            "test kernel ... SKIP: no AVX-512",
            "SKIP no model",
            "SKIPPED [1] tests/e2e/test_a.py:3: no GPU",
            "=== 5 passed, 1 skipped in 1s ===",
            "tests/e2e/test_a.py .s.  skipping SKIPPABLE NO_SKIP SKIP_ALL",
        ])
        .into_skips();
        assert_eq!(skips.len(), 3, "{skips:?}");
    }

    #[test]
    fn ignored_tests_are_skips() {
        assert_eq!(
            heard(&["test result: ok. 1 passed; 0 failed; 1 ignored"]).into_skips().len(),
            1
        );
    }

    #[test]
    fn the_table_names_every_stage_and_every_skip() {
        let report = |name: &str, outcome: Outcome, skips: &[&str]| Report {
            name: name.into(),
            outcome,
            took: Duration::from_millis(1500),
            skips: skips.iter().map(ToString::to_string).collect(),
        };
        let reports = [
            report("unit", Ok("14 tests".into()), &["SKIP no model"]),
            report("e2e", Err("there is no folder tests/e2e".into()), &[]),
        ];
        let shown = table(&reports, Duration::from_secs(200));
        let shown = console::strip_ansi_codes(&shown);
        assert_eq!(
            shown,
            "unit   ok             1.5 s  14 tests  1 SKIP\n\
             e2e    FAILED         1.5 s  there is no folder tests/e2e\n\
             total            3 min 20 s\n\
             skipped in unit: SKIP no model"
        );
    }
}
