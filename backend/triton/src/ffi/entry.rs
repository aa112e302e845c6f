//! The functions that the server looks up in this library, behind one barrier.
//!
//! Each calls the function of the same purpose in the crate root. A panic must not cross into C++
//! (it would abort the server), so everything runs inside [`barrier`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use super::error::{Error, Result};
use super::state::Keeper;
use super::{BackendHandle, InstanceHandle, ModelHandle, Request, Responder, sys};
use crate::metrics::Families;
use crate::model::{Instance, Model};

/// Runs the body of an entry point; its error, or its panic, is what the server gets.
fn barrier(name: &str, body: impl FnOnce() -> Result<()>) -> *mut sys::TRITONSERVER_Error {
    match catch(name, body) {
        Ok(()) => ptr::null_mut(),
        Err(error) => error.to_raw(),
    }
}

/// Makes an error of a panic in `body`; `name` says what panicked.
pub(crate) fn catch<T>(name: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let error = Error::internal(format!("{name} panicked: {}", panic_text(&*panic)));
        tracing::error!("{error}");
        // Dropping a payload may panic again; leaking the few bytes of one cannot.
        std::mem::forget(panic);
        Err(error)
    })
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
        // and one instance is what an owner who names none should get. Its kind leaves the device to
        // the model's parameter.
        // SAFETY: Triton passes a live attribute object; no device ids are given.
        unsafe {
            Error::check(sys::TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(
                attributes,
                sys::TRITONSERVER_INSTANCEGROUPKIND_MODEL,
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
        handle.set_state(Box::new(crate::model_initialize(&handle, families)?))
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
        if let Some(model) = unsafe { handle.take_state::<Model>() }? {
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
        let model = unsafe { model.state::<Model>() }?
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
        // So a panic must not look as if Triton got the requests back.
        let _ = catch("execute", || {
            crate::execute(state, batch);
            Ok(())
        });
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

#[cfg(test)]
mod tests {
    use std::panic::panic_any;
    use std::sync::Arc;

    use super::super::error::Code;
    use super::super::stand_in::{Act, Given, Sent, Server, live_errors};
    use super::*;
    use crate::exchange::Exchange;
    use crate::model::Driver;

    /// Takes the error that an entry point returned.
    fn error(raw: *mut sys::TRITONSERVER_Error) -> Error {
        // SAFETY: entry points return null or an error that is the caller's.
        let error = unsafe { Error::check(raw) }.unwrap_err();
        assert_eq!(live_errors(), 0);
        error
    }

    #[test]
    fn a_panic_becomes_an_internal_error() {
        let one = 1;
        let formatted = error(barrier("TRITONBACKEND_X", || panic!("no. {one}")));
        assert_eq!(formatted, Error::internal("TRITONBACKEND_X panicked: no. 1"));
        let plain = error(barrier("x", || panic!("plain")));
        assert_eq!(plain, Error::internal("x panicked: plain"));
        let odd = error(barrier("x", || panic_any(7)));
        assert_eq!(odd, Error::internal("x panicked: no message"));
    }

    #[test]
    fn errors_keep_their_code_and_success_is_null() {
        let refused = error(barrier("x", || Err(Error::unavailable("not now"))));
        assert_eq!(refused, Error::unavailable("not now"));
        assert!(barrier("x", || Ok(())).is_null());
    }

    /// A driver that fails in some way.
    #[derive(Debug)]
    enum Bad {
        Panics,
        Forgets,
    }

    impl Driver for Bad {
        fn execute(&self, batch: Vec<Exchange>) {
            assert!(matches!(self, Self::Forgets), "boom");
            drop(batch);
        }

        fn is_alive(&self) -> bool {
            false
        }
    }

    fn with_instance(driver: Bad) -> Server {
        let server = Server::new();
        let instance = Instance::new(&server.instance(), "m", Arc::new(driver)).unwrap();
        server.instance().set_state(Box::new(instance)).unwrap();
        server
    }

    fn finalize(server: &Server) {
        assert!(TRITONBACKEND_ModelInstanceFinalize(server.raw_instance()).is_null());
    }

    #[test]
    fn requests_that_the_driver_drops_are_answered_and_released_once() {
        for driver in [Bad::Panics, Bad::Forgets] {
            let server = with_instance(driver);
            let mut requests =
                [server.raw_request(Given::default()), server.raw_request(Given::default())];
            let raw =
                TRITONBACKEND_ModelInstanceExecute(server.raw_instance(), requests.as_mut_ptr(), 2);
            assert!(raw.is_null(), "an error would hand the requests back to Triton");
            let lost = Error::internal("the request was lost before it was answered");
            let of_one = [
                Act::Counted { success: false },
                Act::Released,
                Act::CountedResponse(Some(Code::Internal)),
                Act::Sent(Sent { last: true, error: Some(lost), ..Sent::default() }),
            ];
            assert_eq!(server.acts(), [of_one.clone(), of_one].concat());
            finalize(&server);
            assert_eq!((server.owed(), live_errors()), (0, 0));
        }
    }

    #[test]
    fn a_batch_that_cannot_be_taken_stays_with_triton() {
        let server = with_instance(Bad::Forgets);
        let whole = server.raw_request(Given::default());
        let mut requests = [whole, ptr::null_mut()];
        let raw =
            TRITONBACKEND_ModelInstanceExecute(server.raw_instance(), requests.as_mut_ptr(), 2);
        assert_eq!(error(raw).code(), Code::Internal);
        server.break_down("TRITONBACKEND_ResponseFactoryNew");
        let raw =
            TRITONBACKEND_ModelInstanceExecute(server.raw_instance(), requests.as_mut_ptr(), 1);
        assert!(error(raw).to_string().contains("ResponseFactoryNew"));
        assert_eq!(server.acts(), []);
        // The one request.
        assert_eq!(server.owed(), 1);
        finalize(&server);
    }

    #[test]
    fn an_instance_that_is_not_there_is_an_error() {
        let server = Server::new();
        let mut requests = [server.raw_request(Given::default())];
        let raw =
            TRITONBACKEND_ModelInstanceExecute(server.raw_instance(), requests.as_mut_ptr(), 1);
        assert_eq!(error(raw).code(), Code::Internal);
        let raw = TRITONBACKEND_ModelInstanceExecute(ptr::null_mut(), requests.as_mut_ptr(), 1);
        assert_eq!(error(raw).code(), Code::Internal);
        assert_eq!(server.acts(), []);
        // Never initialized, finalized all the same.
        finalize(&server);
    }

    #[test]
    fn a_dead_engine_is_not_ready() {
        let server = with_instance(Bad::Forgets);
        let dead = error(TRITONBACKEND_ModelInstanceReady(server.raw_instance()));
        assert_eq!(dead.code(), Code::Unavailable);
        assert!(dead.to_string().contains("reload the model"), "{dead}");
        finalize(&server);
    }
}
