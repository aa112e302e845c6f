//! Answers to a request: any number of them, of which exactly one is the last.

use std::ffi::{CStr, CString, c_void};
use std::ptr::{self, NonNull};

use super::error::{Code, Error, Result};
use super::request::{DataType, Request};
use super::{Hold, sys};

/// Answers one request, and makes sure that it gets exactly one last answer: sending it consumes the
/// responder, and dropping the responder before sends an error. It outlives the request's release.
#[derive(Debug)]
pub(crate) struct Responder {
    factory: Factory,
    /// Whether a last answer is still owed.
    open: bool,
}

/// Tells whether a request was taken back; outlives its release, and works on any thread.
#[derive(Debug)]
pub(crate) struct Cancellation {
    factory: Factory,
}

/// A response under construction.
#[derive(Debug)]
pub(crate) struct Response<'a> {
    /// `None` once handed to Triton.
    raw: Option<NonNull<sys::TRITONBACKEND_Response>>,
    // Borrowed mutably, so that the responder makes no other one meanwhile.
    factory: &'a mut Factory,
}

/// Value of a response parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ParameterOut<'a> {
    /// A string.
    Text(&'a str),
    /// An integer.
    Int(i64),
    /// A number.
    Double(f64),
}

impl Responder {
    /// Becomes responsible for the last answer of a request.
    pub(crate) fn new(request: &Request) -> Result<Self> {
        Ok(Self { factory: Factory::new(request)?, open: true })
    }

    /// Whether the client took the request back.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.factory.is_cancelled()
    }

    /// Sends an answer after which more will come.
    ///
    /// # Errors
    /// `build` failed, and nothing was sent; or Triton failed to send.
    pub(crate) fn send(
        &mut self,
        build: impl FnOnce(&mut Response<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut response = self.response()?;
        build(&mut response)?;
        response.send(0, None)
    }

    /// Sends the last answer. Where `build` fails, that error is the last answer.
    ///
    /// # Errors
    /// As `build` says, or Triton failed to send; either way the client has its last answer.
    pub(crate) fn finish(
        mut self,
        build: impl FnOnce(&mut Response<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut response = self.response()?;
        if let Err(error) = build(&mut response) {
            drop(response);
            self.fail(&error);
            return Err(error);
        }
        let sent = response.send(sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL, None);
        self.open = false;
        sent
    }

    /// Sends an error as the last answer.
    pub(crate) fn fail(mut self, error: &Error) {
        self.send_error(error);
    }

    /// Leaves the last answer to Triton: it kept, or got back, the request itself.
    pub(crate) fn leave_to_triton(mut self) {
        self.open = false;
    }

    /// Reports one response to the per-response statistics, which are kept by index in the order of
    /// reports: a caller that reports every token of long answers would make them grow without bound.
    pub(crate) fn report(
        &self,
        hold: &Hold,
        times: ResponseTimes,
        error: Option<&Error>,
    ) -> Result<()> {
        self.factory.report(hold, times, error)
    }

    fn response(&mut self) -> Result<Response<'_>> {
        let mut raw = ptr::null_mut();
        // SAFETY: a live factory; the response becomes ours.
        unsafe {
            Error::check(sys::TRITONBACKEND_ResponseNewFromFactory(
                &raw mut raw,
                self.factory.raw.as_ptr(),
            ))?;
        }
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("Triton made no response"))?;
        Ok(Response { raw: Some(raw), factory: &mut self.factory })
    }

    fn send_error(&mut self, error: &Error) {
        let sent = self.response().and_then(|response| {
            response.send(sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL, Some(error))
        });
        // Where not even an error can be made, the bare flag still ends the request.
        if let Err(failure) = sent {
            tracing::error!("an error response could not be sent: {failure}");
            // SAFETY: a live factory.
            let _ = unsafe {
                Error::check(sys::TRITONBACKEND_ResponseFactorySendFlags(
                    self.factory.raw.as_ptr(),
                    sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL,
                ))
            };
        }
        self.open = false;
    }
}

/// When a response was made, in nanoseconds of [`super::now`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseTimes {
    /// Work on it began.
    pub(crate) start: u64,
    /// Its content was known.
    pub(crate) output_start: u64,
    /// It was sent.
    pub(crate) end: u64,
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.open {
            self.send_error(&Error::internal("the request was lost before it was answered"));
        }
    }
}

impl Cancellation {
    /// Watches a request.
    pub(crate) fn new(request: &Request) -> Result<Self> {
        Ok(Self { factory: Factory::new(request)? })
    }

    /// Whether the client took the request back.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.factory.is_cancelled()
    }
}

impl Response<'_> {
    /// Adds an output tensor. `bytes` is its content in Triton's layout.
    ///
    /// # Errors
    /// The model has no such output, or the client wants it in GPU memory.
    pub(crate) fn output(
        &mut self,
        name: &CStr,
        datatype: DataType,
        shape: &[i64],
        bytes: &[u8],
    ) -> Result<()> {
        let mut output = ptr::null_mut();
        let mut buffer = ptr::null_mut::<c_void>();
        let (mut memory, mut memory_id) = (sys::TRITONSERVER_MEMORY_CPU, 0);
        // SAFETY: a live response, a NUL-terminated name, a shape of that many dimensions.
        unsafe {
            Error::check(sys::TRITONBACKEND_ResponseOutput(
                self.as_raw(),
                &raw mut output,
                name.as_ptr(),
                datatype.to_raw(),
                shape.as_ptr(),
                shape.len() as u32,
            ))?;
            Error::check(sys::TRITONBACKEND_OutputBuffer(
                output,
                &raw mut buffer,
                bytes.len() as u64,
                &raw mut memory,
                &raw mut memory_id,
            ))?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let name = name.to_string_lossy();
        if memory == sys::TRITONSERVER_MEMORY_GPU {
            return Err(Error::new(
                Code::Unsupported,
                format!("output '{name}' is wanted in GPU memory: ask for it in host memory"),
            ));
        }
        if buffer.is_null() {
            return Err(Error::internal(format!("Triton gave no memory for output '{name}'")));
        }
        // SAFETY: host memory of at least that size, made for this output alone.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast::<u8>(), bytes.len()) };
        Ok(())
    }

    /// Adds a parameter.
    pub(crate) fn parameter(&mut self, name: &CStr, value: ParameterOut<'_>) -> Result<()> {
        let raw = self.as_raw();
        // SAFETY: a live response and NUL-terminated strings, which Triton copies.
        unsafe {
            Error::check(match value {
                ParameterOut::Text(text) => {
                    let text = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
                    sys::TRITONBACKEND_ResponseSetStringParameter(raw, name.as_ptr(), text.as_ptr())
                }
                ParameterOut::Int(number) => {
                    sys::TRITONBACKEND_ResponseSetIntParameter(raw, name.as_ptr(), number)
                }
                ParameterOut::Double(number) => {
                    sys::TRITONBACKEND_ResponseSetDoubleParameter(raw, name.as_ptr(), number)
                }
            })
        }
    }

    /// Reports this response before it is sent; see [`Responder::report`].
    pub(crate) fn report(
        &self,
        hold: &Hold,
        times: ResponseTimes,
        error: Option<&Error>,
    ) -> Result<()> {
        self.factory.report(hold, times, error)
    }

    fn as_raw(&self) -> *mut sys::TRITONBACKEND_Response {
        self.raw.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// Hands the response to Triton, which deletes it whatever comes of it.
    fn send(mut self, flags: u32, error: Option<&Error>) -> Result<()> {
        let Some(raw) = self.raw.take() else { return Ok(()) };
        let send = |failure| {
            // SAFETY: a live response that is not used again; the error outlives the call.
            unsafe { Error::check(sys::TRITONBACKEND_ResponseSend(raw.as_ptr(), flags, failure)) }
        };
        match error {
            Some(error) => error.with_raw(send),
            None => send(ptr::null_mut()),
        }
    }
}

impl Drop for Response<'_> {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            // SAFETY: a live response that was not sent; there is nothing to do about an error.
            let _ = unsafe { Error::check(sys::TRITONBACKEND_ResponseDelete(raw.as_ptr())) };
        }
    }
}

/// An owned response factory. It keeps the model loaded.
#[derive(Debug)]
struct Factory {
    raw: NonNull<sys::TRITONBACKEND_ResponseFactory>,
}

// SAFETY: a factory may be used from any thread, one at a time; ownership ensures that.
unsafe impl Send for Factory {}

impl Factory {
    fn new(request: &Request) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: a live request; the factory becomes ours.
        unsafe {
            Error::check(sys::TRITONBACKEND_ResponseFactoryNew(&raw mut raw, request.as_raw()))?;
        }
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("Triton made no factory"))?;
        Ok(Self { raw })
    }

    fn is_cancelled(&self) -> bool {
        let mut cancelled = false;
        // SAFETY: a live factory and a live flag; Triton reads an atomic.
        let asked = unsafe {
            Error::check(sys::TRITONBACKEND_ResponseFactoryIsCancelled(
                self.raw.as_ptr(),
                &raw mut cancelled,
            ))
        };
        asked.is_ok() && cancelled
    }

    /// See [`Responder::report`].
    fn report(&self, hold: &Hold, times: ResponseTimes, error: Option<&Error>) -> Result<()> {
        let mut raw = ptr::null_mut();
        // SAFETY: the statistics object becomes ours.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelInstanceResponseStatisticsNew(&raw mut raw))?;
        }
        if raw.is_null() {
            // The server was built without statistics.
            return Ok(());
        }
        let set = |failure: *mut sys::TRITONSERVER_Error| {
            // SAFETY: a live statistics object; instance, factory and error outlive the report.
            unsafe {
                Error::check(sys::TRITONBACKEND_ModelInstanceResponseStatisticsSetModelInstance(
                    raw,
                    hold.instance(),
                ))?;
                Error::check(
                    sys::TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseFactory(
                        raw,
                        self.raw.as_ptr(),
                    ),
                )?;
                Error::check(sys::TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseStart(
                    raw,
                    times.start,
                ))?;
                Error::check(
                    sys::TRITONBACKEND_ModelInstanceResponseStatisticsSetComputeOutputStart(
                        raw,
                        times.output_start,
                    ),
                )?;
                Error::check(sys::TRITONBACKEND_ModelInstanceResponseStatisticsSetResponseEnd(
                    raw, times.end,
                ))?;
                if !failure.is_null() {
                    Error::check(sys::TRITONBACKEND_ModelInstanceResponseStatisticsSetError(
                        raw, failure,
                    ))?;
                }
                Error::check(sys::TRITONBACKEND_ModelInstanceReportResponseStatistics(raw))
            }
        };
        let reported = match error {
            Some(error) => error.with_raw(set),
            None => set(ptr::null_mut()),
        };
        // SAFETY: owned, and deleted once.
        let deleted =
            unsafe { Error::check(sys::TRITONBACKEND_ModelInstanceResponseStatisticsDelete(raw)) };
        reported.and(deleted)
    }
}

impl Drop for Factory {
    fn drop(&mut self) {
        // SAFETY: owned, and deleted once; there is nothing to do about an error.
        let _ =
            unsafe { Error::check(sys::TRITONBACKEND_ResponseFactoryDelete(self.raw.as_ptr())) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::stand_in::{Act, Given, Sent, Server, live_errors};
    use super::*;

    fn responder(server: &Server) -> Responder {
        let request = server.request(Given::default());
        let responder = Responder::new(&request).unwrap();
        // It outlives the request.
        request.release();
        assert_eq!(server.acts(), [Act::Released]);
        responder
    }

    fn nothing(_: &mut Response<'_>) -> Result<()> {
        Ok(())
    }

    /// Whether responses were the last one, in order; and that nothing is left over.
    fn lasts(server: &Server) -> Vec<(bool, Option<Code>)> {
        assert_eq!((server.owed(), live_errors()), (0, 0));
        let told = |act| match act {
            Act::Sent(Sent { last, error, .. }) => (last, error.map(|error| error.code())),
            Act::Closed => (true, None),
            other => panic!("{other:?}"),
        };
        server.acts().into_iter().map(told).collect()
    }

    #[test]
    fn the_last_answer_is_one() {
        let server = Server::new();
        let mut answers = responder(&server);
        answers.send(nothing).unwrap();
        answers.send(nothing).unwrap();
        answers.finish(nothing).unwrap();
        assert_eq!(lasts(&server), [(false, None), (false, None), (true, None)]);
        responder(&server).fail(&Error::cancelled());
        assert_eq!(lasts(&server), [(true, Some(Code::Cancelled))]);
    }

    #[test]
    fn one_that_is_dropped_sends_an_error() {
        let server = Server::new();
        let mut answers = responder(&server);
        answers.send(nothing).unwrap();
        drop(answers);
        assert_eq!(lasts(&server), [(false, None), (true, Some(Code::Internal))]);
    }

    #[test]
    fn what_triton_answers_is_not_answered() {
        let server = Server::new();
        responder(&server).leave_to_triton();
        assert_eq!(lasts(&server), []);
    }

    #[test]
    fn a_response_that_cannot_be_built_is_not_sent() {
        let server = Server::new();
        let broken = |_: &mut Response<'_>| Err(Error::unavailable("no memory"));
        let mut answers = responder(&server);
        assert_eq!(answers.send(broken), Err(Error::unavailable("no memory")));
        assert_eq!(answers.finish(broken), Err(Error::unavailable("no memory")));
        assert_eq!(lasts(&server), [(true, Some(Code::Unavailable))]);
        server.break_down("TRITONBACKEND_ResponseOutput");
        let told = responder(&server)
            .finish(|response| response.output(c"x", DataType::Bool, &[1], &[1]))
            .unwrap_err();
        assert!(told.to_string().contains("ResponseOutput"), "{told}");
        assert_eq!(lasts(&server), [(true, Some(Code::Internal))]);
    }

    #[test]
    fn a_send_that_fails_has_been_sent() {
        let server = Server::new();
        server.break_down("TRITONBACKEND_ResponseSend");
        assert!(responder(&server).finish(nothing).is_err());
        // Triton deletes the response all the same: another one would be one too many.
        assert_eq!(lasts(&server), [(true, None)]);
    }

    #[test]
    fn without_a_response_the_bare_flag_ends_the_request() {
        let server = Server::new();
        let answers = responder(&server);
        server.break_down("TRITONBACKEND_ResponseNewFromFactory");
        assert!(answers.finish(nothing).is_err());
        assert_eq!(lasts(&server), [(true, None)]);
    }

    #[test]
    fn cancellation_is_seen_after_the_release() {
        let server = Server::new();
        let request = server.request(Given::default());
        let watch = Cancellation::new(&request).unwrap();
        drop(request);
        assert!(!watch.is_cancelled());
        server.cancel();
        assert!(watch.is_cancelled());
        drop(watch);
        assert_eq!(server.owed(), 0);
    }
}
