//! One request with all that is owed to it: answers, statistics, release, and each of them once.
//!
//! Statistics are reported and the request is released *before* the last answer is sent, so that a
//! client which has its answer finds itself counted.

use crate::ffi::{Error, Hold, Request, Responder, Response, ResponseTimes, Span, now};

/// A request from its execution to its last answer, or to its return to Triton for another iteration.
/// One that is dropped fails.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// `None` once everything was done.
    owed: Option<Owed>,
    hold: Hold,
    start: u64,
}

#[derive(Debug)]
struct Owed {
    request: Request,
    responder: Responder,
}

impl Exchange {
    /// `start`: when the backend got the request, in nanoseconds of [`now`].
    pub(crate) fn new(request: Request, responder: Responder, hold: Hold, start: u64) -> Self {
        Self { owed: Some(Owed { request, responder }), hold, start }
    }

    /// When the backend got the request, in nanoseconds of [`now`].
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Keeps the instance that executes the request.
    pub(crate) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// The request, while it is ours.
    ///
    /// # Errors
    /// Internal; only code that uses an exchange after its end can see it.
    pub(crate) fn request(&self) -> Result<&Request, Error> {
        match &self.owed {
            Some(owed) => Ok(&owed.request),
            None => Err(Error::internal("the request was answered already")),
        }
    }

    /// Whether the client took the request back.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.owed.as_ref().is_some_and(|owed| owed.responder.is_cancelled())
    }

    /// Sends an answer after which more will come; with `times`, it is counted among the responses.
    ///
    /// # Errors
    /// As [`Responder::send`].
    pub(crate) fn send(
        &mut self,
        times: Option<ResponseTimes>,
        build: impl FnOnce(&mut Response<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(owed) = &mut self.owed else { return Ok(()) };
        owed.responder.send(build)?;
        if let Some(times) = times {
            let times = ResponseTimes { end: now(), ..times };
            count(owed.responder.report(&self.hold, times, None));
        }
        Ok(())
    }

    /// Ends the exchange well.
    pub(crate) fn finish(
        mut self,
        span: Span,
        times: ResponseTimes,
        build: impl FnOnce(&mut Response<'_>) -> Result<(), Error>,
    ) {
        let Some(Owed { request, responder }) = self.owed.take() else { return };
        count(self.hold.report(&request, true, span));
        request.release();
        count(responder.report(&self.hold, times, None));
        if let Err(error) = responder.finish(build) {
            tracing::error!("the last response of a request could not be sent: {error}");
        }
    }

    /// Ends the exchange with an error.
    pub(crate) fn fail(mut self, error: &Error) {
        self.end_with(error);
    }

    /// Hands the request back to Triton for another iteration. Everything that this iteration has to
    /// say must be sent before: a request that was cancelled meanwhile is answered by Triton at once,
    /// and a response after its last answer would be sent into freed memory of the front end.
    ///
    /// # Errors
    /// Triton does not take it; the exchange goes on.
    pub(crate) fn reschedule(mut self) -> Result<(), (Self, Error)> {
        let Some(Owed { request, responder }) = self.owed.take() else {
            return Err((self, Error::internal("the request was answered already")));
        };
        match request.reschedule() {
            Ok(()) => {
                responder.leave_to_triton();
                Ok(())
            }
            Err((request, error)) => {
                self.owed = Some(Owed { request, responder });
                Err((self, error))
            }
        }
    }

    fn end_with(&mut self, error: &Error) {
        let Some(Owed { request, responder }) = self.owed.take() else { return };
        let end = now();
        let span = Span { start: self.start, compute_start: self.start, compute_end: end, end };
        count(self.hold.report(&request, false, span));
        request.release();
        let times = ResponseTimes { start: self.start, output_start: end, end };
        count(responder.report(&self.hold, times, Some(error)));
        responder.fail(error);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end_with(&Error::internal("the request was lost before it was answered"));
    }
}

/// Statistics that cannot be counted must not cost anybody an answer.
pub(crate) fn count(reported: Result<(), Error>) {
    if let Err(error) = reported {
        tracing::warn!("Triton did not take a request's statistics: {error}");
    }
}
