//! Progress on standard error, gone when the work is done.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `steps` steps; hidden where standard error is no terminal.
pub(crate) fn bar(steps: u64, what: impl Into<Cow<'static, str>>) -> ProgressBar {
    const BAR: &str = "{msg} [{bar:30}] {pos}/{len} ({eta} left)";
    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps).with_style(style).with_message(what)
}

/// A spinner for work of unknown length.
pub(crate) fn spinner(what: impl Into<Cow<'static, str>>) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
