//! Errors with Triton's codes.

use std::ffi::{CString, c_uint};

use super::{copy_text, sys};

/// Triton's error codes; a front end makes an HTTP or gRPC status of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// No better code fits.
    Unknown,
    /// A defect, here or in the server.
    Internal,
    /// A thing that was named does not exist.
    NotFound,
    /// The caller's mistake.
    InvalidArg,
    /// Not now.
    Unavailable,
    /// Not ever, in this build.
    Unsupported,
    /// A thing to be made exists.
    AlreadyExists,
    /// The caller took the request back.
    Cancelled,
}

/// The one error type of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    code: Code,
    message: String,
}

/// `Result` of everything that talks to Triton.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArg, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(Code::Cancelled, "the request was cancelled")
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// The same error with more about where it happened.
    pub(crate) fn context(self, place: impl std::fmt::Display) -> Self {
        Self { code: self.code, message: format!("{place}: {}", self.message) }
    }

    /// Takes over what an API function returned; null means success.
    ///
    /// # Safety
    /// `raw` is null or an error that the caller owns; it is deleted here.
    pub(super) unsafe fn check(raw: *mut sys::TRITONSERVER_Error) -> Result<()> {
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: an owned, live error by the contract above; its message lives as long as it does.
        let (code, message) = unsafe {
            (sys::TRITONSERVER_ErrorCode(raw), copy_text(sys::TRITONSERVER_ErrorMessage(raw)))
        };
        // SAFETY: owned by the contract above, and not used again.
        unsafe { sys::TRITONSERVER_ErrorDelete(raw) };
        Err(Self { code: Code::from_raw(code), message })
    }

    /// Makes an error object that Triton, or the caller, must delete.
    pub(super) fn to_raw(&self) -> *mut sys::TRITONSERVER_Error {
        let message = CString::new(self.message.replace('\0', "\u{fffd}")).unwrap_or_default();
        // SAFETY: the message is a NUL-terminated string; Triton copies it.
        unsafe { sys::TRITONSERVER_ErrorNew(self.code.to_raw(), message.as_ptr()) }
    }

    /// Runs `f` with an error object that is deleted afterwards.
    pub(super) fn with_raw<T>(&self, f: impl FnOnce(*mut sys::TRITONSERVER_Error) -> T) -> T {
        struct Owned(*mut sys::TRITONSERVER_Error);
        impl Drop for Owned {
            fn drop(&mut self) {
                // SAFETY: made by `to_raw` below and owned by this value alone.
                unsafe { sys::TRITONSERVER_ErrorDelete(self.0) };
            }
        }
        let raw = Owned(self.to_raw());
        f(raw.0)
    }
}

impl Code {
    fn from_raw(code: c_uint) -> Self {
        match code {
            sys::TRITONSERVER_ERROR_INTERNAL => Self::Internal,
            sys::TRITONSERVER_ERROR_NOT_FOUND => Self::NotFound,
            sys::TRITONSERVER_ERROR_INVALID_ARG => Self::InvalidArg,
            sys::TRITONSERVER_ERROR_UNAVAILABLE => Self::Unavailable,
            sys::TRITONSERVER_ERROR_UNSUPPORTED => Self::Unsupported,
            sys::TRITONSERVER_ERROR_ALREADY_EXISTS => Self::AlreadyExists,
            sys::TRITONSERVER_ERROR_CANCELLED => Self::Cancelled,
            _ => Self::Unknown,
        }
    }

    fn to_raw(self) -> c_uint {
        match self {
            Self::Unknown => sys::TRITONSERVER_ERROR_UNKNOWN,
            Self::Internal => sys::TRITONSERVER_ERROR_INTERNAL,
            Self::NotFound => sys::TRITONSERVER_ERROR_NOT_FOUND,
            Self::InvalidArg => sys::TRITONSERVER_ERROR_INVALID_ARG,
            Self::Unavailable => sys::TRITONSERVER_ERROR_UNAVAILABLE,
            Self::Unsupported => sys::TRITONSERVER_ERROR_UNSUPPORTED,
            Self::AlreadyExists => sys::TRITONSERVER_ERROR_ALREADY_EXISTS,
            Self::Cancelled => sys::TRITONSERVER_ERROR_CANCELLED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stand_in::live_errors;
    use super::*;

    fn returned(error: &Error) -> Error {
        // SAFETY: an error that `to_raw` made and nobody else has.
        unsafe { Error::check(error.to_raw()) }.unwrap_err()
    }

    #[test]
    fn codes_survive_the_way_to_triton_and_back() {
        for code in [
            Code::Unknown,
            Code::Internal,
            Code::NotFound,
            Code::InvalidArg,
            Code::Unavailable,
            Code::Unsupported,
            Code::AlreadyExists,
            Code::Cancelled,
        ] {
            let error = Error::new(code, "Größe");
            assert_eq!(returned(&error), error);
        }
        assert_eq!(Code::from_raw(77), Code::Unknown);
        assert_eq!(live_errors(), 0);
    }

    #[test]
    fn no_message_can_break_a_c_string() {
        let error = returned(&Error::invalid("a\0b"));
        assert_eq!(error, Error::invalid("a\u{fffd}b"));
        assert_eq!(error.context("here").to_string(), "here: a\u{fffd}b");
    }

    #[test]
    fn lent_errors_are_deleted() {
        let seen = Error::cancelled().with_raw(|raw| {
            assert_eq!(live_errors(), 1);
            !raw.is_null()
        });
        assert!(seen);
        assert_eq!(live_errors(), 0);
    }
}
