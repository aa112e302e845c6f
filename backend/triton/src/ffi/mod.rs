//! The safe layer over Triton's C API; the only unsafe code of this crate.
//!
//! What the API asks of a backend in prose, the types here ask of the compiler or do themselves:
//!
//! - [`Request`] is owned; releasing it consumes it, and everything read from it borrows it, so that
//!   nothing of a request can be used after its release. One that is dropped is released.
//! - [`Responder`] answers one request. Its last answer consumes it, and one that is dropped without
//!   a last answer sends an error, so that every request gets exactly one final response.
//! - [`Response`] is filled inside a closure of the responder, so a second one of the same request
//!   cannot begin before the first is sent or deleted, as Triton's allocators require.
//! - [`Hold`] keeps an instance from being finalized while a request may still report to it.
//! - [`Error`] carries Triton's code; [`entry`] turns errors and panics of entry points into it.
//!
//! Rejected: wrapping every pointer in a plain `Copy` handle and trusting the drivers. Each of the
//! rules above was broken by some published backend.
#![allow(unsafe_code, reason = "calls into the server that loaded this library")]

mod backend;
mod entry;
mod error;
mod instance;
mod log;
mod metrics;
mod model;
mod request;
mod response;
#[cfg(test)]
pub(crate) mod stand_in;
mod state;

pub(crate) use backend::BackendHandle;
pub(crate) use entry::{catch, panic_text};
pub(crate) use error::{Code, Error};
pub(crate) use instance::{Hold, Holds, InstanceHandle, InstanceKind, Span, now};
pub(crate) use log::install as install_log;
pub(crate) use metrics::{Family, Metric, MetricKind};
pub(crate) use model::{MemoryKind, ModelHandle};
pub(crate) use request::{DataType, Input, ParameterValue, Request, RequestKey};
pub(crate) use response::{Cancellation, ParameterOut, Responder, Response, ResponseTimes};

/// The declarations, as bindgen wrote them.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unused_imports,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated from C headers"
)]
mod sys {
    include!(concat!(env!("OUT_DIR"), "/triton.rs"));
}

use std::ffi::{CStr, c_char};

/// Copies a string that Triton owns.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string that outlives the call.
unsafe fn copy_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and valid by the contract above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
