//! The backend as Triton sees it.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use super::error::{Code, Error, Result};
use super::state::Keeper;
use super::{copy_text, sys};

/// A backend, for the length of one entry point.
#[derive(Debug)]
pub(crate) struct BackendHandle {
    raw: NonNull<sys::TRITONBACKEND_Backend>,
}

impl BackendHandle {
    /// # Safety
    /// `raw` is null or a backend that outlives the handle.
    pub(super) unsafe fn from_raw(raw: *mut sys::TRITONBACKEND_Backend) -> Result<Self> {
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("Triton passed no backend"))?;
        Ok(Self { raw })
    }

    /// Name under which the server knows this backend.
    pub(crate) fn name(&self) -> Result<String> {
        let mut name = ptr::null();
        // SAFETY: a live backend; the name lives as long as it does and is copied at once.
        unsafe {
            Error::check(sys::TRITONBACKEND_BackendName(self.raw.as_ptr(), &raw mut name))?;
            Ok(copy_text(name))
        }
    }

    /// Checks that the server speaks the API this library was built for, and tells its version.
    ///
    /// # Errors
    /// Unsupported: another major version, or an older minor one.
    pub(crate) fn check_version(&self) -> Result<(u32, u32)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        unsafe { Error::check(sys::TRITONBACKEND_ApiVersion(&raw mut major, &raw mut minor)) }?;
        let built = (sys::TRITONBACKEND_API_VERSION_MAJOR, sys::TRITONBACKEND_API_VERSION_MINOR);
        if major != built.0 || minor < built.1 {
            return Err(Error::new(
                Code::Unsupported,
                format!(
                    "this server speaks backend API {major}.{minor}, libtriton_rewind.so needs {}.{} or a \
                     later {}.x: use a newer server, or build with the server's own headers in \
                     TRITON_INCLUDE_DIR",
                    built.0, built.1, built.0
                ),
            ));
        }
        Ok((major, minor))
    }
}

impl Keeper for BackendHandle {
    fn kept(&self) -> Result<*mut c_void> {
        let mut state = ptr::null_mut();
        // SAFETY: a live backend and a live pointer.
        unsafe {
            Error::check(sys::TRITONBACKEND_BackendState(self.raw.as_ptr(), &raw mut state))
        }?;
        Ok(state)
    }

    fn keep(&self, state: *mut c_void) -> Result<()> {
        // SAFETY: a live backend; the pointer is only ever read back by [`Keeper`].
        unsafe { Error::check(sys::TRITONBACKEND_BackendSetState(self.raw.as_ptr(), state)) }
    }
}
