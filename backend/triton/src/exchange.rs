//! One request with all that is owed to it: answers, statistics, release, and each of them once.
//!
//! Statistics are reported and the request is released *before* the last answer is sent, so that a
//! client which has its answer finds itself counted. The last answer is built before that, so that a
//! request whose answer cannot be built is counted as the failure that it is.

use crate::ffi::{Error, Hold, Request, Responder, Response, ResponseTimes, Span, catch, now};

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
    /// As [`Responder::send`]; or `build` panicked, and nothing was sent.
    pub(crate) fn send(
        &mut self,
        times: Option<ResponseTimes>,
        build: impl FnOnce(&mut Response<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(owed) = &mut self.owed else { return Ok(()) };
        owed.responder.send(|response| catch("building a response", || build(response)))?;
        if let Some(times) = times {
            let times = ResponseTimes { end: now(), ..times };
            count(owed.responder.report(&self.hold, times, None));
        }
        Ok(())
    }

    /// Ends the exchange well; or, where `build` fails or panics, with that error.
    pub(crate) fn finish(
        mut self,
        span: Span,
        times: ResponseTimes,
        build: impl FnOnce(&mut Response<'_>) -> Result<(), Error>,
    ) {
        let Some(Owed { request, responder }) = self.owed.take() else { return };
        let hold = &self.hold;
        let finished = responder.finish(|response| {
            let built = catch("building a response", || build(response));
            count(hold.report(&request, built.is_ok(), span));
            request.release();
            count(response.report(hold, times, built.as_ref().err()));
            built
        });
        if let Err(error) = finished {
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

    /// Releases a request that nobody asked, unanswered and uncounted.
    pub(crate) fn dismiss(mut self) {
        let Some(Owed { request, responder }) = self.owed.take() else { return };
        responder.leave_to_triton();
        request.release();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::stand_in::{Act, Given, Sent, Server, live_errors};
    use crate::ffi::{Code, DataType};

    const SPAN: Span = Span { start: 1, compute_start: 2, compute_end: 3, end: 4 };
    const TIMES: ResponseTimes = ResponseTimes { start: 2, output_start: 3, end: 4 };

    fn exchange(server: &Server) -> Exchange {
        let request = server.request(Given::default());
        let responder = Responder::new(&request).unwrap();
        Exchange::new(request, responder, server.instance().holds().hold(), now())
    }

    /// What was done, with nothing left to do.
    fn acts(server: &Server) -> Vec<Act> {
        assert_eq!((server.owed(), live_errors()), (0, 0));
        server.acts()
    }

    fn failure(error: Error) -> Vec<Act> {
        vec![
            Act::Counted { success: false },
            Act::Released,
            Act::CountedResponse(Some(error.code())),
            Act::Sent(Sent { last: true, error: Some(error), ..Sent::default() }),
        ]
    }

    fn nothing(_: &mut Response<'_>) -> Result<(), Error> {
        Ok(())
    }

    #[test]
    fn a_good_end_is_counted_before_the_client_knows() {
        let server = Server::new();
        exchange(&server).finish(SPAN, TIMES, |response| {
            response.output(c"x", DataType::Int32, &[1], &[1, 0, 0, 0])
        });
        let acts = acts(&server);
        assert_eq!(
            acts[..3],
            [Act::Counted { success: true }, Act::Released, Act::CountedResponse(None)]
        );
        let [Act::Sent(sent)] = &acts[3..] else { panic!("{acts:?}") };
        assert!(sent.last && sent.error.is_none());
        assert_eq!(sent.output("x").unwrap().bytes, [1, 0, 0, 0]);
    }

    #[test]
    fn a_last_answer_that_cannot_be_built_counts_as_a_failure() {
        let server = Server::new();
        let error = Error::new(Code::Unsupported, "in GPU memory");
        exchange(&server).finish(SPAN, TIMES, |_| Err(error.clone()));
        assert_eq!(acts(&server), failure(error));
        exchange(&server).finish(SPAN, TIMES, |_| panic!("boom"));
        let error = Error::internal("building a response panicked: boom");
        assert_eq!(acts(&server), failure(error));
    }

    #[test]
    fn an_error_ends_it() {
        let server = Server::new();
        exchange(&server).fail(&Error::cancelled());
        assert_eq!(acts(&server), failure(Error::cancelled()));
    }

    #[test]
    fn one_that_is_dropped_fails() {
        let server = Server::new();
        drop(exchange(&server));
        let lost = Error::internal("the request was lost before it was answered");
        assert_eq!(acts(&server), failure(lost));
    }

    #[test]
    fn only_the_first_of_many_parts_is_counted() {
        let server = Server::new();
        let mut exchange = exchange(&server);
        exchange.send(Some(TIMES), nothing).unwrap();
        exchange.send(None, nothing).unwrap();
        let part = Act::Sent(Sent::default());
        assert_eq!(server.acts(), [part.clone(), Act::CountedResponse(None), part]);
        // A part that fails leaves the exchange to be ended.
        let error = exchange.send(None, |_| panic!("boom")).unwrap_err();
        assert_eq!(error.code(), Code::Internal);
        assert_eq!(server.acts(), []);
        exchange.fail(&error);
        assert_eq!(acts(&server), failure(error));
    }

    #[test]
    fn triton_owes_what_it_took_back() {
        let server = Server::new();
        exchange(&server).reschedule().unwrap();
        assert_eq!(acts(&server), [Act::Rescheduled]);
    }

    #[test]
    fn one_that_nobody_asked_is_only_released() {
        let server = Server::new();
        exchange(&server).dismiss();
        assert_eq!(acts(&server), [Act::Released]);
    }

    #[test]
    fn a_request_that_triton_does_not_take_back_goes_on() {
        let server = Server::new();
        server.break_down("reschedule");
        let (exchange, error) = exchange(&server).reschedule().unwrap_err();
        assert_eq!(server.acts(), []);
        assert!(exchange.request().is_ok());
        let error = error.context("the request cannot go on");
        exchange.fail(&error);
        assert_eq!(acts(&server), failure(error));
    }

    #[test]
    fn sees_that_the_client_is_gone() {
        let server = Server::new();
        let exchange = exchange(&server);
        assert!(!exchange.is_cancelled());
        server.cancel();
        assert!(exchange.is_cancelled());
    }
}
