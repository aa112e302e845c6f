//! Instances and the statistics that are reported to them.

use super::*;

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
