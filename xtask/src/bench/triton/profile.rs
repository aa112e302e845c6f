//! From a log of requests and responses to the figures of a serving benchmark.
//!
//! The log has the shape of perf_analyzer's profile export, whoever wrote it. Under the policies that are measured here a
//! response is a token.
//!
//! A closed loop has an end, in which fewer and fewer requests are in flight. Speed is that of the time in which all of
//! them were.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The part of a profile export that is used.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Profile {
    experiments: [Experiment; 1],
}

#[derive(Debug, Clone, Deserialize)]
struct Experiment {
    requests: Vec<Request>,
}

/// Nanoseconds of one clock.
#[derive(Debug, Clone, Deserialize)]
struct Request {
    timestamp: u64,
    response_timestamps: Vec<u64>,
}

/// What one round of requests showed. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figures {
    /// Tokens a second while all places were taken.
    pub(super) rate: f64,
    /// From sending a request to its first token, each.
    pub(super) first_token: Vec<f64>,
    /// Between a token and the next, each.
    pub(super) gaps: Vec<f64>,
    /// Tokens of all requests.
    pub(super) tokens: usize,
}

impl Profile {
    /// Reads what perf_analyzer, or a client that writes the same, has written.
    pub(super) fn read(json: &str) -> Result<Self> {
        serde_json::from_str(json).context("not a profile export of perf_analyzer")
    }

    /// The figures of a round with `concurrency` requests in flight.
    ///
    /// # Errors
    /// A request has no response, or there never were so many in flight.
    pub(super) fn figures(&self, concurrency: usize) -> Result<Figures> {
        let requests = &self.experiments[0].requests;
        for request in requests {
            ensure!(!request.response_timestamps.is_empty(), "a request has no response");
        }
        let (begin, end) = full_load(requests, concurrency)
            .with_context(|| format!("there never were {concurrency} requests in flight"))?;
        let inside = |time: u64| begin < time && time <= end;
        let tokens = requests.iter().flat_map(|request| &request.response_timestamps);
        let counted = tokens.clone().filter(|&&time| inside(time)).count();
        let milliseconds = |from: u64, to: u64| to.saturating_sub(from) as f64 * 1e-6;
        Ok(Figures {
            rate: counted as f64 / (milliseconds(begin, end) * 1e-3),
            first_token: requests
                .iter()
                .map(|request| milliseconds(request.timestamp, request.response_timestamps[0]))
                .collect(),
            gaps: requests
                .iter()
                .flat_map(|request| request.response_timestamps.windows(2))
                .filter(|pair| inside(pair[1]))
                .map(|pair| milliseconds(pair[0], pair[1]))
                .collect(),
            tokens: tokens.count(),
        })
    }
}

/// From when `concurrency` requests were in flight for the first time to the end of the last time they were.
fn full_load(requests: &[Request], concurrency: usize) -> Option<(u64, u64)> {
    let mut changes: Vec<(u64, bool)> = Vec::with_capacity(2 * requests.len());
    for request in requests {
        let &last = request.response_timestamps.last()?;
        changes.push((request.timestamp, true));
        changes.push((last, false));
    }
    // An end comes before a start of the same time.
    changes.sort_unstable();
    let (mut open, mut begin, mut end) = (0_usize, None, None);
    for (time, starts) in changes {
        if starts {
            open += 1;
            if open == concurrency {
                begin = begin.or(Some(time));
            }
        } else {
            if open == concurrency {
                end = Some(time);
            }
            open = open.saturating_sub(1);
        }
    }
    Some((begin?, end?))
}

/// The value below which the share `quantile` of `values` lies; NaN of none.
pub(super) fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = quantile * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request sent at a millisecond, with a response at each of these.
    fn request(sent: u64, responses: &[u64]) -> String {
        let times: Vec<String> =
            responses.iter().map(|time| format!("{}", time * 1_000_000)).collect();
        let times = times.join(",");
        format!(r#"{{"timestamp":{},"response_timestamps":[{times}],"more":0}}"#, sent * 1_000_000)
    }

    fn profile(requests: &[String]) -> Profile {
        let list = requests.join(",");
        Profile::read(&format!(
            r#"{{"experiments":[{{"requests":[{list}],"window_boundaries":[]}}],"version":""}}"#
        ))
        .unwrap()
    }

    #[test]
    fn speed_is_that_of_the_time_with_all_in_flight() {
        // Two places; the first has one request, so the load is full from 5 to 100.
        let log = profile(&[
            request(0, &[20, 60, 100]),
            request(5, &[30, 55]),
            request(56, &[80, 120, 400, 900]),
        ]);
        let figures = log.figures(2).unwrap();
        // 20 30 55 60 80 100 in 95 ms.
        assert!((figures.rate - 6.0 / 0.095).abs() < 1e-9, "{figures:?}");
        assert_eq!(figures.first_token, [20.0, 25.0, 24.0]);
        assert_eq!(figures.gaps, [40.0, 40.0, 25.0]);
        assert_eq!(figures.tokens, 9);
    }

    #[test]
    fn one_at_a_time_counts_the_waits_between_requests() {
        let log = profile(&[request(0, &[10, 20]), request(30, &[40])]);
        assert!((log.figures(1).unwrap().rate - 3.0 / 0.040).abs() < 1e-9);
    }

    #[test]
    fn a_log_that_does_not_hold_what_was_asked_for_is_an_error() {
        let log = profile(&[request(0, &[10]), request(10, &[20])]);
        assert!(log.figures(2).unwrap_err().to_string().contains("2 requests in flight"));
        assert!(profile(&[request(0, &[])]).figures(1).is_err());
        assert!(Profile::read("{}").is_err());
    }

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!(quantile(&[3.0, 1.0], 0.5), 2.0);
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0, 5.0], 0.75), 4.0);
        assert_eq!(quantile(&[1.0, 2.0], 1.0), 2.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
