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

use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

// Requests.

struct FakeRequest {
    log: *const Log,
    parameters: Vec<(CString, Parameter)>,
    inputs: Vec<FakeInput>,
    outputs: Vec<CString>,
    flags: u32,
    sequence: u64,
}

enum Parameter {
    Text(CString),
    Int(i64),
    Bool(bool),
    Double(f64),
}

struct FakeInput {
    name: CString,
    datatype: c_uint,
    shape: Vec<i64>,
    pieces: Vec<Vec<u8>>,
}

impl FakeRequest {
    fn new(log: &Log, given: Given<'_>) -> Self {
        let c_text = |text: &str| CString::new(text).unwrap();
        let parameter = |value: &ParameterValue<'_>| match value {
            ParameterValue::Text(bytes) => Parameter::Text(CString::new(*bytes).unwrap()),
            ParameterValue::Int(number) => Parameter::Int(*number),
            ParameterValue::Bool(flag) => Parameter::Bool(*flag),
            ParameterValue::Double(number) => Parameter::Double(*number),
            ParameterValue::Other => panic!("no test needs one"),
        };
        let input = |input: &Input<'_>| FakeInput {
            name: c_text(input.name),
            datatype: input.datatype.to_raw(),
            shape: input.shape.to_vec(),
            pieces: input.pieces.iter().map(|piece| piece.to_vec()).collect(),
        };
        let Given { parameters, inputs, outputs, flags, sequence } = given;
        Self {
            log,
            parameters: parameters.iter().map(|(k, v)| (c_text(k), parameter(v))).collect(),
            inputs: inputs.iter().map(input).collect(),
            outputs: outputs.iter().map(|name| c_text(name)).collect(),
            flags,
            sequence,
        }
    }
}

unsafe fn given<'a>(request: *mut sys::TRITONBACKEND_Request) -> (&'a FakeRequest, &'a Log) {
    let request = &*request.cast::<FakeRequest>();
    (request, &*request.log)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestId(
    _: *mut sys::TRITONBACKEND_Request,
    id: *mut *const c_char,
) -> Failure {
    *id = c"".as_ptr();
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestFlags(
    request: *mut sys::TRITONBACKEND_Request,
    flags: *mut u32,
) -> Failure {
    *flags = given(request).0.flags;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestCorrelationId(
    request: *mut sys::TRITONBACKEND_Request,
    id: *mut u64,
) -> Failure {
    *id = given(request).0.sequence;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestOutputCount(
    request: *mut sys::TRITONBACKEND_Request,
    count: *mut u32,
) -> Failure {
    *count = given(request).0.outputs.len() as u32;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestOutputName(
    request: *mut sys::TRITONBACKEND_Request,
    index: u32,
    name: *mut *const c_char,
) -> Failure {
    *name = given(request).0.outputs[index as usize].as_ptr();
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestParameterCount(
    request: *mut sys::TRITONBACKEND_Request,
    count: *mut u32,
) -> Failure {
    *count = given(request).0.parameters.len() as u32;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestParameter(
    request: *mut sys::TRITONBACKEND_Request,
    index: u32,
    key: *mut *const c_char,
    kind: *mut c_uint,
    value: *mut *const c_void,
) -> Failure {
    let (name, parameter) = &given(request).0.parameters[index as usize];
    *key = name.as_ptr();
    (*kind, *value) = match parameter {
        Parameter::Text(text) => (sys::TRITONSERVER_PARAMETER_STRING, text.as_ptr().cast()),
        Parameter::Int(number) => (sys::TRITONSERVER_PARAMETER_INT, ptr::from_ref(number).cast()),
        Parameter::Bool(flag) => (sys::TRITONSERVER_PARAMETER_BOOL, ptr::from_ref(flag).cast()),
        Parameter::Double(number) => {
            (sys::TRITONSERVER_PARAMETER_DOUBLE, ptr::from_ref(number).cast())
        }
    };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestInputCount(
    request: *mut sys::TRITONBACKEND_Request,
    count: *mut u32,
) -> Failure {
    *count = given(request).0.inputs.len() as u32;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestInputByIndex(
    request: *mut sys::TRITONBACKEND_Request,
    index: u32,
    input: *mut *mut sys::TRITONBACKEND_Input,
) -> Failure {
    *input = ptr::from_ref(&given(request).0.inputs[index as usize]).cast_mut().cast();
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_InputProperties(
    input: *mut sys::TRITONBACKEND_Input,
    name: *mut *const c_char,
    datatype: *mut c_uint,
    shape: *mut *const i64,
    dims: *mut u32,
    bytes: *mut u64,
    pieces: *mut u32,
) -> Failure {
    let input = &*input.cast::<FakeInput>();
    (*name, *datatype) = (input.name.as_ptr(), input.datatype);
    (*shape, *dims) = (input.shape.as_ptr(), input.shape.len() as u32);
    *bytes = input.pieces.iter().map(|piece| piece.len() as u64).sum();
    *pieces = input.pieces.len() as u32;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_InputBuffer(
    input: *mut sys::TRITONBACKEND_Input,
    index: u32,
    buffer: *mut *const c_void,
    bytes: *mut u64,
    memory: *mut c_uint,
    memory_id: *mut i64,
) -> Failure {
    let piece = &(&(*input.cast::<FakeInput>()).pieces)[index as usize];
    (*buffer, *bytes) = (piece.as_ptr().cast(), piece.len() as u64);
    (*memory, *memory_id) = (sys::TRITONSERVER_MEMORY_CPU, 0);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_RequestRelease(
    request: *mut sys::TRITONBACKEND_Request,
    flags: u32,
) -> Failure {
    let log = given(request).1;
    let again = flags == sys::TRITONSERVER_REQUEST_RELEASE_RESCHEDULE;
    let failure = log.outcome(if again { "reschedule" } else { "release" });
    if failure.is_null() {
        log.owed.fetch_sub(1, Ordering::Relaxed);
        log.note(if again { Act::Rescheduled } else { Act::Released });
    }
    failure
}

// Responses.

/// A response factory, which has nothing of its own.
struct Factory(*const Log);

struct FakeResponse {
    log: *const Log,
    sent: Sent,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseFactoryNew(
    factory: *mut *mut sys::TRITONBACKEND_ResponseFactory,
    request: *mut sys::TRITONBACKEND_Request,
) -> Failure {
    let log = given(request).1;
    log.make(Factory(log), factory.cast(), "TRITONBACKEND_ResponseFactoryNew")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseFactoryDelete(
    factory: *mut sys::TRITONBACKEND_ResponseFactory,
) -> Failure {
    let factory = Box::from_raw(factory.cast::<Factory>());
    (*factory.0).owed.fetch_sub(1, Ordering::Relaxed);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseFactoryIsCancelled(
    factory: *mut sys::TRITONBACKEND_ResponseFactory,
    cancelled: *mut bool,
) -> Failure {
    let log = &*(*factory.cast::<Factory>()).0;
    *cancelled = log.cancelled.load(Ordering::Relaxed);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseFactorySendFlags(
    factory: *mut sys::TRITONBACKEND_ResponseFactory,
    flags: u32,
) -> Failure {
    assert_eq!(flags, sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL);
    (*(*factory.cast::<Factory>()).0).note(Act::Closed);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseNewFromFactory(
    response: *mut *mut sys::TRITONBACKEND_Response,
    factory: *mut sys::TRITONBACKEND_ResponseFactory,
) -> Failure {
    let log = &*(*factory.cast::<Factory>()).0;
    let content = FakeResponse { log, sent: Sent::default() };
    log.make(content, response.cast(), "TRITONBACKEND_ResponseNewFromFactory")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseDelete(
    response: *mut sys::TRITONBACKEND_Response,
) -> Failure {
    let response = Box::from_raw(response.cast::<FakeResponse>());
    (*response.log).owed.fetch_sub(1, Ordering::Relaxed);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseOutput(
    response: *mut sys::TRITONBACKEND_Response,
    output: *mut *mut sys::TRITONBACKEND_Output,
    name: *const c_char,
    datatype: c_uint,
    shape: *const i64,
    dims: u32,
) -> Failure {
    let response = &mut *response.cast::<FakeResponse>();
    let shape = slice::from_raw_parts(shape, dims as usize).to_vec();
    let made = Output { name: text(name), datatype, shape, bytes: Vec::new() };
    response.sent.outputs.push(made);
    // Good until the next output: the server's own rule is wider.
    *output = response.sent.outputs.last_mut().map_or(ptr::null_mut(), ptr::from_mut).cast();
    (*response.log).outcome("TRITONBACKEND_ResponseOutput")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_OutputBuffer(
    output: *mut sys::TRITONBACKEND_Output,
    buffer: *mut *mut c_void,
    bytes: u64,
    memory: *mut c_uint,
    memory_id: *mut i64,
) -> Failure {
    let output = &mut *output.cast::<Output>();
    output.bytes = vec![0; bytes as usize];
    *buffer = output.bytes.as_mut_ptr().cast();
    (*memory, *memory_id) = (sys::TRITONSERVER_MEMORY_CPU, 0);
    SUCCESS
}

unsafe fn parameter(
    response: *mut sys::TRITONBACKEND_Response,
    name: *const c_char,
    value: String,
) -> Failure {
    (*response.cast::<FakeResponse>()).sent.parameters.push((text(name), value));
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseSetStringParameter(
    response: *mut sys::TRITONBACKEND_Response,
    name: *const c_char,
    value: *const c_char,
) -> Failure {
    parameter(response, name, text(value))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseSetIntParameter(
    response: *mut sys::TRITONBACKEND_Response,
    name: *const c_char,
    value: i64,
) -> Failure {
    parameter(response, name, value.to_string())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseSetDoubleParameter(
    response: *mut sys::TRITONBACKEND_Response,
    name: *const c_char,
    value: f64,
) -> Failure {
    parameter(response, name, value.to_string())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ResponseSend(
    response: *mut sys::TRITONBACKEND_Response,
    flags: u32,
    error: Failure,
) -> Failure {
    // Deleted whatever comes of it, as the server does.
    let FakeResponse { log, mut sent } = *Box::from_raw(response.cast::<FakeResponse>());
    let log = &*log;
    log.owed.fetch_sub(1, Ordering::Relaxed);
    sent.last = flags == sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL;
    sent.error = copy_error(error);
    let failure = log.outcome("TRITONBACKEND_ResponseSend");
    log.note(Act::Sent(sent));
    failure
}

// Instances and statistics.

struct Statistics {
    log: *const Log,
    error: Option<Code>,
}

unsafe fn statistics<'a>(
    raw: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
) -> &'a mut Statistics {
    &mut *raw.cast::<Statistics>()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceState(
    instance: *mut sys::TRITONBACKEND_ModelInstance,
    state: *mut *mut c_void,
) -> Failure {
    *state = (*instance.cast::<Log>()).state.load(Ordering::Relaxed);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceSetState(
    instance: *mut sys::TRITONBACKEND_ModelInstance,
    state: *mut c_void,
) -> Failure {
    (*instance.cast::<Log>()).state.store(state, Ordering::Relaxed);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceName(
    _: *mut sys::TRITONBACKEND_ModelInstance,
    name: *mut *const c_char,
) -> Failure {
    *name = c"stand-in_0".as_ptr();
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceKind(
    _: *mut sys::TRITONBACKEND_ModelInstance,
    kind: *mut c_uint,
) -> Failure {
    *kind = sys::TRITONSERVER_INSTANCEGROUPKIND_CPU;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceDeviceId(
    _: *mut sys::TRITONBACKEND_ModelInstance,
    device: *mut i32,
) -> Failure {
    *device = 0;
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceReportStatistics(
    _: *mut sys::TRITONBACKEND_ModelInstance,
    request: *mut sys::TRITONBACKEND_Request,
    success: bool,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) -> Failure {
    given(request).1.note(Act::Counted { success });
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceReportBatchStatistics(
    instance: *mut sys::TRITONBACKEND_ModelInstance,
    size: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) -> Failure {
    (*instance.cast::<Log>()).note(Act::CountedBatch(size));
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceResponseStatisticsNew(
    raw: *mut *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
) -> Failure {
    *raw = Box::into_raw(Box::new(Statistics { log: ptr::null(), error: None })).cast();
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(
    raw: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
    instance: *mut sys::TRITONBACKEND_ModelInstance,
) -> Failure {
    statistics(raw).log = instance.cast();
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(
    raw: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
    factory: *mut sys::TRITONBACKEND_ResponseFactory,
) -> Failure {
    assert_eq!(statistics(raw).log, (*factory.cast::<Factory>()).0);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(
    _: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
    _: u64,
) -> Failure {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(
    _: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
    _: u64,
) -> Failure {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(
    _: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
    _: u64,
) -> Failure {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceResponseStatisticsSetError(
    raw: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
    error: Failure,
) -> Failure {
    statistics(raw).error = copy_error(error).map(|error| error.code());
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceReportResponseStatistics(
    raw: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
) -> Failure {
    let Statistics { log, error } = *statistics(raw);
    (*log).note(Act::CountedResponse(error));
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn TRITONBACKEND_ModelInstanceResponseStatisticsDelete(
    raw: *mut sys::TRITONBACKEND_ModelInstanceResponseStatistics,
) -> Failure {
    drop(Box::from_raw(raw.cast::<Statistics>()));
    SUCCESS
}

/// The number by which Triton knows a type, for comparisons with [`Output::datatype`].
pub(crate) fn number(datatype: DataType) -> c_uint {
    datatype.to_raw()
}
