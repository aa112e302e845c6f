//! Requests and their inputs.

use super::*;

pub(super) struct FakeRequest {
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
    pub(super) fn new(log: &Log, given: Given<'_>) -> Self {
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

pub(super) unsafe fn given<'a>(
    request: *mut sys::TRITONBACKEND_Request,
) -> (&'a FakeRequest, &'a Log) {
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
