//! Progress on standard error, gone when the work is done.

use std::borrow::Cow;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use rewind_serving::{AnyEngine, LoadError, Model, Options};

/// A bar over `steps` steps; hidden where standard error is no terminal.
pub(crate) fn bar(steps: u64, what: impl Into<Cow<'static, str>>) -> ProgressBar {
    const BAR: &str = "{msg} [{bar:30}] {pos}/{len} ({eta} left)";
    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps).with_style(style).with_message(what)
}

/// Loads a model behind a bar.
pub(crate) fn load(options: Options) -> Result<(Arc<Model>, AnyEngine), LoadError> {
    let bar = percent("loading");
    let loaded = Model::load_watched(options, |done| bar.set_position((100.0 * done) as u64));
    bar.finish_and_clear();
    loaded
}

/// A bar from 0 to 100.
pub(crate) fn percent(what: impl Into<Cow<'static, str>>) -> ProgressBar {
    const BAR: &str = "{msg} [{bar:30}] {pos} %";
    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(100).with_style(style).with_message(what)
}
