//! The functions that the server looks up in this library, behind one barrier.
//!
//! Each calls the function of the same purpose in the crate root. A panic must not cross into C++
//! (it would abort the server), so everything runs inside [`barrier`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use super::error::{Error, Result};
use super::{BackendHandle, InstanceHandle, ModelHandle, Request, Responder, sys};
use crate::metrics::Families;
use crate::model::{Instance, Model};

/// Runs the body of an entry point; its error, or its panic, is what the server gets.
fn barrier(name: &str, body: impl FnOnce() -> Result<()>) -> *mut sys::TRITONSERVER_Error {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => ptr::null_mut(),
        Ok(Err(error)) => error.to_raw(),
        Err(panic) => {
            let error = Error::internal(format!("{name} panicked: {}", panic_text(&*panic)));
            // Dropping a payload may panic again; leaking the few bytes of one cannot.
            std::mem::forget(panic);
            error.to_raw()
        }
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Called once, when the first model of this backend loads.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_Initialize(
    backend: *mut sys::TRITONBACKEND_Backend,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_Initialize", || {
        // SAFETY: Triton passes a live backend for the length of this call.
        let handle = unsafe { BackendHandle::from_raw(backend) }?;
        handle.set_state(crate::initialize(&handle)?)
    })
}

/// Called once, when the server exits.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_Finalize(
    backend: *mut sys::TRITONBACKEND_Backend,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_Finalize", || {
        // SAFETY: Triton passes a live backend, for the last time.
        let handle = unsafe { BackendHandle::from_raw(backend) }?;
        // SAFETY: the state was set by `TRITONBACKEND_Initialize`, as this type, and no model is left.
        if let Some(families) = unsafe { handle.take_state::<Families>() }? {
            crate::finalize(families);
        }
        Ok(())
    })
}

/// Called after `TRITONBACKEND_Initialize`.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_GetBackendAttribute(
    _backend: *mut sys::TRITONBACKEND_Backend,
    attributes: *mut sys::TRITONBACKEND_BackendAttribute,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_GetBackendAttribute", || {
        // One engine serves a model however many instances point at it, so loading is parallel-safe
        // and one CPU instance is what an owner who names none should get.
        // SAFETY: Triton passes a live attribute object; no device ids are given.
        unsafe {
            Error::check(sys::TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(
                attributes,
                sys::TRITONSERVER_INSTANCEGROUPKIND_CPU,
                1,
                ptr::null(),
                0,
            ))?;
            Error::check(sys::TRITONBACKEND_BackendAttributeSetParallelModelInstanceLoading(
                attributes, true,
            ))
        }
    })
}

/// Called when a model loads.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_ModelInitialize(
    model: *mut sys::TRITONBACKEND_Model,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_ModelInitialize", || {
        // SAFETY: Triton passes a live model for the length of this call.
        let handle = unsafe { ModelHandle::from_raw(model) }?;
        let backend = handle.backend()?;
        // SAFETY: the state was set by `TRITONBACKEND_Initialize`, as this type.
        let families = unsafe { backend.state::<Families>() }?
            .ok_or_else(|| Error::internal("the backend was not initialized"))?;
        handle.set_state(crate::model_initialize(&handle, families)?)
    })
}

/// Called when a model has no instance and no request left.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_ModelFinalize(
    model: *mut sys::TRITONBACKEND_Model,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_ModelFinalize", || {
        // SAFETY: Triton passes a live model, for the last time.
        let handle = unsafe { ModelHandle::from_raw(model) }?;
        // SAFETY: the state was set by `TRITONBACKEND_ModelInitialize`, as this type.
        if let Some(model) = unsafe { handle.take_state::<std::sync::Arc<Model>>() }? {
            crate::model_finalize(*model);
        }
        Ok(())
    })
}

/// Called for each instance of a model.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_ModelInstanceInitialize(
    instance: *mut sys::TRITONBACKEND_ModelInstance,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_ModelInstanceInitialize", || {
        // SAFETY: Triton passes a live instance, which stays alive until its finalize call.
        let handle = unsafe { InstanceHandle::from_raw(instance) }?;
        let model = handle.model()?;
        // SAFETY: the state was set by `TRITONBACKEND_ModelInitialize`, as this type.
        let model = unsafe { model.state::<std::sync::Arc<Model>>() }?
            .ok_or_else(|| Error::internal("the model was not initialized"))?;
        let state = crate::instance_initialize(&handle, model)?;
        handle.set_state(Box::new(state))
    })
}

/// Called when an instance gets no more requests.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_ModelInstanceFinalize(
    instance: *mut sys::TRITONBACKEND_ModelInstance,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_ModelInstanceFinalize", || {
        // SAFETY: Triton passes a live instance, for the last time.
        let handle = unsafe { InstanceHandle::from_raw(instance) }?;
        // SAFETY: the state was set by `TRITONBACKEND_ModelInstanceInitialize`, as this type.
        if let Some(instance) = unsafe { handle.take_state::<Instance>() }? {
            crate::instance_finalize(*instance);
        }
        Ok(())
    })
}

/// Called with the next batch of requests. An error hands all of them back to Triton; after success
/// all are ours, so nothing may fail once the first was touched.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_ModelInstanceExecute(
    instance: *mut sys::TRITONBACKEND_ModelInstance,
    requests: *mut *mut sys::TRITONBACKEND_Request,
    count: u32,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_ModelInstanceExecute", || {
        // SAFETY: Triton passes a live instance for the length of this call.
        let handle = unsafe { InstanceHandle::from_raw(instance) }?;
        // SAFETY: the state was set by `TRITONBACKEND_ModelInstanceInitialize`, as this type.
        let state = unsafe { handle.state::<Instance>() }?
            .ok_or_else(|| Error::internal("the instance was not initialized"))?;
        // SAFETY: Triton passes `count` live requests.
        let batch = unsafe { take_batch(requests, count) }?;
        // From here on every request has an owner that answers and releases it, even in a panic.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| crate::execute(state, batch))) {
            tracing::error!("execute panicked: {}", panic_text(&*panic));
            std::mem::forget(panic);
        }
        Ok(())
    })
}

/// Whether an instance can serve. Newer servers look it up; the headers do not declare it yet.
#[unsafe(no_mangle)]
extern "C" fn TRITONBACKEND_ModelInstanceReady(
    instance: *mut sys::TRITONBACKEND_ModelInstance,
) -> *mut sys::TRITONSERVER_Error {
    barrier("TRITONBACKEND_ModelInstanceReady", || {
        // SAFETY: Triton passes a live instance for the length of this call.
        let handle = unsafe { InstanceHandle::from_raw(instance) }?;
        // SAFETY: the state was set by `TRITONBACKEND_ModelInstanceInitialize`, as this type.
        let state = unsafe { handle.state::<Instance>() }?
            .ok_or_else(|| Error::unavailable("the instance is not initialized"))?;
        crate::instance_ready(state)
    })
}

/// Pairs each request with its responder, or takes none.
///
/// # Safety
/// `requests` points to `count` live requests.
unsafe fn take_batch(
    requests: *mut *mut sys::TRITONBACKEND_Request,
    count: u32,
) -> Result<Vec<(Request, Responder)>> {
    let mut batch = Vec::with_capacity(count as usize);
    for index in 0..count as usize {
        // SAFETY: `index < count`, and the array holds live requests by the contract above.
        let taken = unsafe { Request::from_raw(*requests.add(index)) }.and_then(|request| {
            match Responder::new(&request) {
                Ok(responder) => Ok((request, responder)),
                Err(error) => {
                    request.give_back();
                    Err(error)
                }
            }
        });
        match taken {
            Ok(pair) => batch.push(pair),
            Err(error) => {
                for (request, responder) in batch {
                    responder.leave_to_triton();
                    request.give_back();
                }
                return Err(error);
            }
        }
    }
    Ok(batch)
}
