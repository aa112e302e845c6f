//! `tracing` events in Triton's log.

use std::ffi::CString;
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::error::Error;
use super::sys;

/// Sends all `tracing` events of this library to Triton's log from now on. Calling it again changes
/// nothing: a server may initialize the backend after it was finalized.
pub(crate) fn install() {
    let subscriber = tracing_subscriber::registry().with(TritonLog);
    // Fails only where a subscriber is installed already: this one.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct TritonLog;

impl<S: Subscriber> Layer<S> for TritonLog {
    /// Levels can change while the server runs, so no call site may cache the answer.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }

    /// This project's events at the levels the server logs; of its dependencies, only warnings.
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let ours = metadata.target().contains("rewind");
        // SAFETY: no pointers; Triton reads an atomic.
        (ours || *metadata.level() <= Level::WARN)
            && unsafe { sys::TRITONSERVER_LogIsEnabled(level(*metadata.level())) }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line { message: String::new(), fields: String::new() };
        event.record(&mut line);
        let text = line.message + &line.fields;
        let text = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
        let file = CString::new(metadata.file().unwrap_or("rewind")).unwrap_or_default();
        // SAFETY: NUL-terminated strings, which Triton copies. A failure to log cannot be logged.
        let _ = unsafe {
            Error::check(sys::TRITONSERVER_LogMessage(
                level(*metadata.level()),
                file.as_ptr(),
                metadata.line().unwrap_or(0).try_into().unwrap_or(0),
                text.as_ptr(),
            ))
        };
    }
}

fn level(level: Level) -> sys::TRITONSERVER_LogLevel {
    match level {
        Level::ERROR => sys::TRITONSERVER_LOG_ERROR,
        Level::WARN => sys::TRITONSERVER_LOG_WARN,
        Level::INFO => sys::TRITONSERVER_LOG_INFO,
        Level::DEBUG | Level::TRACE => sys::TRITONSERVER_LOG_VERBOSE,
    }
}

/// The message first, then every field as `name=value`.
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
