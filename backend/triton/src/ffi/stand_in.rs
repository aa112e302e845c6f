//! A stand-in for the server, so that unit tests run without one.
//!
//! It defines the functions of the API that the code under test calls, and keeps a diary of what was
//! done to it. Requests stay in memory until the stand-in is dropped, so that a second release shows
//! in the diary instead of crashing; all other objects are freed as the server frees them. Functions
//! that are missing here are left open at link time and must not be called.
#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "every pointer comes from this module through the layer that is tested; a wrong one is what \
              the tests are to show"
)]

mod instances;
mod requests;
mod responses;

use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use self::instances::number;
use self::requests::{FakeRequest, given};
use self::responses::Factory;
use super::error::{Code, Error};
use super::{DataType, Input, InstanceHandle, ParameterValue, Request, sys};

/// What a backend did, in the diary's words.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Act {
    /// Released a request for good.
    Released,
    /// Gave a request back to be executed again.
    Rescheduled,
    /// Reported a request.
    Counted {
        /// Whether it went well.
        success: bool,
    },
    /// Reported an execution of so many requests.
    CountedBatch(u64),
    /// Reported a response, or one with such an error.
    CountedResponse(Option<Code>),
    /// Sent a response.
    Sent(Sent),
    /// Sent no more than the word that there will be no response.
    Closed,
}

/// A response as the client gets it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sent {
    /// Whether it is the last one.
    pub(crate) last: bool,
    /// Its error.
    pub(crate) error: Option<Error>,
    /// Its tensors, in order.
    pub(crate) outputs: Vec<Output>,
    /// Its parameters, as text.
    pub(crate) parameters: Vec<(String, String)>,
}

/// An output tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Output {
    pub(crate) name: String,
    /// Triton's number of its type.
    pub(crate) datatype: c_uint,
    pub(crate) shape: Vec<i64>,
    pub(crate) bytes: Vec<u8>,
}

/// What a request brings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given<'a> {
    pub(crate) parameters: &'a [(&'a str, ParameterValue<'a>)],
    pub(crate) inputs: &'a [Input<'a>],
    pub(crate) outputs: &'a [&'a str],
    /// `TRITONSERVER_REQUEST_FLAG_SEQUENCE_*`.
    pub(crate) flags: u32,
    /// 0 outside of a sequence.
    pub(crate) sequence: u64,
}

/// A server with one instance.
#[derive(Debug)]
pub(crate) struct Server(Box<Log>);

#[derive(Debug, Default)]
struct Log {
    acts: Mutex<Vec<Act>>,
    /// Functions that shall fail.
    broken: Mutex<Vec<&'static str>>,
    cancelled: AtomicBool,
    /// Requests, factories and responses that nobody gave back.
    owed: AtomicIsize,
    /// State of the instance.
    state: AtomicPtr<c_void>,
    requests: Mutex<Vec<Box<dyn Any>>>,
}

thread_local! {
    /// Errors that this thread made, less those that it deleted.
    static ERRORS: Cell<isize> = const { Cell::new(0) };
}

/// How many errors of this thread nobody deleted.
pub(crate) fn live_errors() -> isize {
    ERRORS.get()
}

impl Server {
    /// A server that nothing was done to.
    pub(crate) fn new() -> Self {
        Self(Box::default())
    }

    /// Its one instance.
    pub(crate) fn instance(&self) -> InstanceHandle {
        // SAFETY: the pointer is only handed back to this module.
        unsafe { InstanceHandle::from_raw(self.raw_instance()) }.unwrap()
    }

    pub(super) fn raw_instance(&self) -> *mut sys::TRITONBACKEND_ModelInstance {
        ptr::from_ref(&*self.0).cast_mut().cast()
    }

    /// A request for a backend to own.
    pub(crate) fn request(&self, given: Given<'_>) -> Request {
        // SAFETY: the pointer is only handed back to this module.
        unsafe { Request::from_raw(self.raw_request(given)) }.unwrap()
    }

    pub(super) fn raw_request(&self, given: Given<'_>) -> *mut sys::TRITONBACKEND_Request {
        let mut request = Box::new(FakeRequest::new(&self.0, given));
        let raw = ptr::from_mut(&mut *request);
        lock(&self.0.requests).push(request);
        self.0.owed.fetch_add(1, Ordering::Relaxed);
        raw.cast()
    }

    /// Has a function fail from now on.
    pub(crate) fn break_down(&self, function: &'static str) {
        lock(&self.0.broken).push(function);
    }

    /// Takes all requests back in the clients' name.
    pub(crate) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    /// What was done since this was last asked.
    pub(crate) fn acts(&self) -> Vec<Act> {
        std::mem::take(&mut lock(&self.0.acts))
    }

    /// Objects that were not given back.
    pub(crate) fn owed(&self) -> isize {
        self.0.owed.load(Ordering::Relaxed)
    }
}

impl Sent {
    /// An output by name.
    pub(crate) fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }
}

impl Log {
    fn note(&self, act: Act) {
        lock(&self.acts).push(act);
    }

    /// Fails where that was asked for.
    fn outcome(&self, function: &'static str) -> *mut sys::TRITONSERVER_Error {
        if lock(&self.broken).contains(&function) {
            Error::internal(format!("{function} was told to fail")).to_raw()
        } else {
            ptr::null_mut()
        }
    }

    fn make<T>(&self, content: T, raw: *mut *mut T, function: &'static str) -> Failure {
        let failure = self.outcome(function);
        if failure.is_null() {
            self.owed.fetch_add(1, Ordering::Relaxed);
            // SAFETY: callers pass a live variable.
            unsafe { *raw = Box::into_raw(Box::new(content)) };
        }
        failure
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Failure = *mut sys::TRITONSERVER_Error;
const SUCCESS: Failure = ptr::null_mut();

unsafe fn text(text: *const c_char) -> String {
    CStr::from_ptr(text).to_str().unwrap().to_owned()
}

// Errors.

struct FakeError {
    code: c_uint,
    message: CString,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ErrorNew(code: c_uint, message: *const c_char) -> Failure {
    ERRORS.set(ERRORS.get() + 1);
    let message = CStr::from_ptr(message).to_owned();
    Box::into_raw(Box::new(FakeError { code, message })).cast()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ErrorDelete(error: Failure) {
    ERRORS.set(ERRORS.get() - 1);
    drop(Box::from_raw(error.cast::<FakeError>()));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ErrorCode(error: Failure) -> c_uint {
    (*error.cast::<FakeError>()).code
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONSERVER_ErrorMessage(error: Failure) -> *const c_char {
    (*error.cast::<FakeError>()).message.as_ptr()
}

/// Copies an error that stays the caller's.
unsafe fn copy_error(error: Failure) -> Option<Error> {
    let FakeError { code, message } = error.cast::<FakeError>().as_ref()?;
    let copy = TRITONSERVER_ErrorNew(*code, message.as_ptr());
    Error::check(copy).err()
}
