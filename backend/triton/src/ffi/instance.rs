//! An instance of a model as Triton sees it, and the statistics that are reported to it.

use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::error::{Error, Result};
use super::state::Keeper;
use super::{ModelHandle, Request, copy_text, sys};

/// What an instance was configured to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstanceKind {
    /// `KIND_CPU`.
    Cpu,
    /// `KIND_GPU`, with the device.
    Gpu(i32),
    /// `KIND_MODEL`: the model decides.
    Model,
}

impl fmt::Display for InstanceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("KIND_CPU"),
            Self::Gpu(device) => write!(f, "KIND_GPU, device {device}"),
            Self::Model => f.write_str("KIND_MODEL"),
        }
    }
}

/// An instance, for the length of one entry point.
#[derive(Debug)]
pub(crate) struct InstanceHandle {
    raw: NonNull<sys::TRITONBACKEND_ModelInstance>,
}

impl InstanceHandle {
    /// # Safety
    /// `raw` is null or an instance that outlives the handle.
    pub(super) unsafe fn from_raw(raw: *mut sys::TRITONBACKEND_ModelInstance) -> Result<Self> {
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("Triton passed no instance"))?;
        Ok(Self { raw })
    }

    /// Its name, for the log.
    pub(crate) fn name(&self) -> Result<String> {
        let mut name = ptr::null();
        // SAFETY: a live instance; the name lives as long as it does and is copied at once.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelInstanceName(self.raw.as_ptr(), &raw mut name))?;
            Ok(copy_text(name))
        }
    }

    /// What it was configured to run on.
    pub(crate) fn kind(&self) -> Result<InstanceKind> {
        let (mut kind, mut device) = (0, 0);
        // SAFETY: a live instance and live integers.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelInstanceKind(self.raw.as_ptr(), &raw mut kind))?;
            Error::check(sys::TRITONBACKEND_ModelInstanceDeviceId(
                self.raw.as_ptr(),
                &raw mut device,
            ))?;
        }
        Ok(match kind {
            sys::TRITONSERVER_INSTANCEGROUPKIND_GPU => InstanceKind::Gpu(device),
            sys::TRITONSERVER_INSTANCEGROUPKIND_MODEL => InstanceKind::Model,
            _ => InstanceKind::Cpu,
        })
    }

    /// What requests hold to be able to report to the instance; see [`Hold`].
    ///
    /// The caller must keep the returned value until the instance's finalize entry point, and call
    /// [`Holds::wait`] there.
    pub(crate) fn holds(&self) -> Holds {
        Holds(Arc::new(Shared {
            instance: self.raw,
            held: Mutex::new(0),
            released: Condvar::new(),
        }))
    }

    /// The model it belongs to.
    pub(super) fn model(&self) -> Result<ModelHandle> {
        let mut model = ptr::null_mut();
        // SAFETY: a live instance, which keeps its model alive.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelInstanceModel(self.raw.as_ptr(), &raw mut model))?;
            ModelHandle::from_raw(model)
        }
    }
}

impl Keeper for InstanceHandle {
    fn kept(&self) -> Result<*mut c_void> {
        let mut state = ptr::null_mut();
        // SAFETY: a live instance and a live pointer.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelInstanceState(self.raw.as_ptr(), &raw mut state))
        }?;
        Ok(state)
    }

    fn keep(&self, state: *mut c_void) -> Result<()> {
        // SAFETY: a live instance; the pointer is only ever read back by [`Keeper`].
        unsafe { Error::check(sys::TRITONBACKEND_ModelInstanceSetState(self.raw.as_ptr(), state)) }
    }
}

/// Counts what still needs an instance.
#[derive(Debug)]
pub(crate) struct Holds(Arc<Shared>);

/// Keeps an instance from being finalized.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    instance: NonNull<sys::TRITONBACKEND_ModelInstance>,
    held: Mutex<usize>,
    released: Condvar,
}

// SAFETY: Triton's statistics functions take a lock of their own; they may be called from any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Holds {
    /// One more that needs the instance.
    pub(crate) fn hold(&self) -> Hold {
        *self.0.held.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Hold(Arc::clone(&self.0))
    }

    /// Waits until nothing needs the instance. Called in its finalize entry point.
    pub(crate) fn wait(self) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        while *held > 0 {
            held = self.0.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.held.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.released.notify_all();
    }
}

/// When the parts of an execution began and ended, in nanoseconds of [`now`]. Triton only uses the
/// differences, and the start to find how long the request was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The backend got the request.
    pub(crate) start: u64,
    /// Its input was read.
    pub(crate) compute_start: u64,
    /// Its output was known.
    pub(crate) compute_end: u64,
    /// Its output was handed over.
    pub(crate) end: u64,
}

impl Hold {
    /// Reports a request; must come before its release, and once.
    pub(crate) fn report(&self, request: &Request, success: bool, span: Span) -> Result<()> {
        // SAFETY: the instance is alive while held, the request while borrowed.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelInstanceReportStatistics(
                self.0.instance.as_ptr(),
                request.as_raw(),
                success,
                span.start,
                span.compute_start,
                span.compute_end,
                span.end,
            ))
        }
    }

    /// Reports one execution of so many requests.
    pub(crate) fn report_batch(&self, size: usize, span: Span) -> Result<()> {
        // SAFETY: the instance is alive while held.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelInstanceReportBatchStatistics(
                self.0.instance.as_ptr(),
                size as u64,
                span.start,
                span.compute_start,
                span.compute_end,
                span.end,
            ))
        }
    }

    pub(super) fn instance(&self) -> *mut sys::TRITONBACKEND_ModelInstance {
        self.0.instance.as_ptr()
    }
}

/// The clock that Triton's statistics use (CLOCK_MONOTONIC), in nanoseconds.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec; this clock exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::super::stand_in::Server;
    use super::*;

    #[test]
    fn an_instance_ends_after_its_last_hold() {
        let server = Server::new();
        let holds = server.instance().holds();
        let (first, second) = (holds.hold(), holds.hold());
        let (done, ended) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                holds.wait();
                done.send(()).unwrap();
            });
            drop(first);
            let early = ended.recv_timeout(Duration::from_millis(20));
            assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
            drop(second);
            ended.recv_timeout(Duration::from_secs(10)).unwrap();
        });
    }

    #[test]
    fn the_clock_goes_on() {
        let earlier = now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(now() - earlier >= 2_000_000);
    }
}
