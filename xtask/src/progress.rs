//! What a person sees while set-up works: a moving line on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Read};
use std::time::{Duration, Instant};

use anyhow::Result;
use console::style;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// The steps of one set-up. A step that has nothing to do is never announced.
#[derive(Debug)]
pub(crate) struct Steps {
    started: Instant,
    done: usize,
    terminal: bool,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), done: 0, terminal: io::stderr().is_terminal() }
    }

    /// Runs one step under the heading `what`.
    pub(crate) fn run<T>(
        &mut self,
        what: &str,
        work: impl FnOnce(&Activity) -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        self.done += 1;
        let activity = Activity::new(what, self.terminal);
        let result = work(&activity);
        activity.bar.finish_and_clear();
        let took = started.elapsed();
        match (&result, self.terminal) {
            (Ok(_), true) => {
                eprintln!("{} {what} {}", style("✔").green(), style(brief(took)).dim());
            }
            (Ok(_), false) => eprintln!("set-up: {what}: done in {}", brief(took)),
            (Err(_), true) => eprintln!("{} {what}", style("✘").red()),
            (Err(_), false) => eprintln!("set-up: {what}: failed"),
        }
        result
    }

    /// Closes the set-up with a line of its total, if there was anything to do.
    pub(crate) fn finish(self) {
        if self.done > 0 {
            eprintln!("Set-up is complete ({}).", HumanDuration(self.started.elapsed()));
        }
    }
}

/// The line of the step that is running.
#[derive(Debug)]
pub(crate) struct Activity {
    bar: ProgressBar,
    what: String,
}

impl Activity {
    fn new(what: &str, terminal: bool) -> Self {
        if !terminal {
            eprintln!("set-up: {what} …");
            return Self { bar: ProgressBar::hidden(), what: what.to_owned() };
        }
        let bar = ProgressBar::new_spinner();
        bar.set_style(template("{spinner:.cyan} {msg} {elapsed:.dim}"));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, what: what.to_owned() }
    }

    /// Says what the step is doing right now.
    pub(crate) fn says(&self, now: &str) {
        self.bar.set_message(format!("{}: {now}", self.what));
    }

    /// Counts the bytes read from `source`, `total` of them expected, on a progress bar.
    pub(crate) fn count<R: Read>(&self, total: u64, source: R) -> impl Read + use<R> {
        self.bar.set_length(total);
        self.bar.set_position(0);
        self.bar.set_style(template(
            "{spinner:.cyan} {msg} {wide_bar:.cyan/dim} {bytes}/{total_bytes}",
        ));
        self.bar.wrap_read(source)
    }
}

/// A duration as a person says it: "12 s" or "3 min 20 s", tenths below ten seconds.
pub(crate) fn brief(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if seconds < 99.5 {
        format!("{seconds:.0} s")
    } else {
        let whole = time.as_secs();
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

fn template(text: &str) -> ProgressStyle {
    // A template that does not parse costs looks, never the set-up.
    ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_brief() {
        for (seconds, expected) in [
            (0.04, "0.0 s"),
            (1.26, "1.3 s"),
            (9.96, "10 s"),
            (99.4, "99 s"),
            (200.0, "3 min 20 s"),
        ] {
            assert_eq!(brief(Duration::from_secs_f64(seconds)), expected);
        }
    }

    #[test]
    fn a_step_hands_on_what_its_work_returns() {
        let mut steps = Steps { started: Instant::now(), done: 0, terminal: false };
        assert_eq!(steps.run("count", |_| Ok(7)).unwrap(), 7);
        assert!(steps.run("fail", |_| -> Result<()> { anyhow::bail!("no") }).is_err());
        assert_eq!(steps.done, 2);
    }

    #[test]
    fn counting_passes_the_bytes_through() {
        let activity = Activity::new("count", false);
        let mut read = Vec::new();
        activity.count(5, &b"bytes"[..]).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"bytes");
    }
}
