//! Response factories and responses.

use super::*;

/// A response factory, which has nothing of its own.
pub(super) struct Factory(pub(super) *const Log);

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
