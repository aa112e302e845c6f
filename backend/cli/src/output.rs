//! Standard output. A reader that has gone away (`rewind … | head`) is an error, never a panic.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints a line.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write to standard output")
}

/// Prints a text that ends its own lines.
pub(crate) fn text(text: &str) -> Result<()> {
    write!(std::io::stdout().lock(), "{text}").context("cannot write to standard output")
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Numbers that JSON can hold; others become null.
pub(crate) fn finite(x: f32) -> Option<f32> {
    x.is_finite().then_some(x)
}
