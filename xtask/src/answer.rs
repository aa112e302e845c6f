//! What a streamed answer says, event by event, and what it adds up to.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One event of `/generate_stream` of a Rewind model: a piece of text, and what happened to its tokens if the request set
/// `return_rewind`.
///
/// Triton writes a tensor of one element as a bare value and any other as an array; both are read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Event {
    text_output: Items<String>,
    token_ids: Items<i64>,
    entropy: Items<f64>,
    score: Items<f64>,
    threshold: Items<f64>,
    decision: Items<String>,
    rewinds: Items<u64>,
    error: Option<String>,
}

/// What is known about one committed token.
#[derive(Debug, PartialEq)]
pub(crate) struct TokenRecord<'a> {
    pub(crate) id: i64,
    pub(crate) decision: &'a str,
    /// `None` under the policy `off`, which measures nothing.
    pub(crate) measured: Option<Measured>,
}

/// What the step of a token was judged by.
#[derive(Debug, PartialEq)]
pub(crate) struct Measured {
    /// Nats.
    pub(crate) entropy: f64,
    /// The detector's; suspect above `threshold`.
    pub(crate) score: f64,
    pub(crate) threshold: f64,
}

impl Event {
    /// Reads the data of one event.
    ///
    /// # Errors
    /// No JSON of this shape, arrays of different lengths, or an error the server reports in place of an answer.
    pub(crate) fn read(data: &str) -> Result<Self> {
        let event: Self = serde_json::from_str(data)
            .with_context(|| format!("the server sent something else than an answer: {data}"))?;
        if let Some(error) = event.error {
            bail!("the server answered: {error}");
        }
        let count = event.token_ids.0.len();
        let measured = if event.entropy.0.is_empty() { 0 } else { count };
        for (name, found, expected) in [
            ("decision", event.decision.0.len(), count),
            ("entropy", event.entropy.0.len(), measured),
            ("score", event.score.0.len(), measured),
            ("threshold", event.threshold.0.len(), measured),
        ] {
            if found != expected {
                bail!("an event has {count} token_ids and {found} of {name}: {data}");
            }
        }
        Ok(event)
    }

    /// The text this event adds.
    pub(crate) fn text(&self) -> String {
        self.text_output.0.concat()
    }

    /// The tokens this event adds.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = TokenRecord<'_>> {
        let measured = self.entropy.0.iter().zip(&self.score.0).zip(&self.threshold.0);
        let mut measured =
            measured.map(|((&entropy, &score), &threshold)| Measured { entropy, score, threshold });
        self.token_ids.0.iter().zip(&self.decision.0).map(move |(&id, decision)| TokenRecord {
            id,
            decision,
            measured: measured.next(),
        })
    }
}

/// Sums over an answer.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    tokens: usize,
    rewinds: u64,
    measured: usize,
    entropy: f64,
    decisions: BTreeMap<String, usize>,
    first: Option<(Instant, usize)>,
    last: Option<Instant>,
}

impl Totals {
    /// Adds an event that came in at `when`.
    pub(crate) fn add(&mut self, event: &Event, when: Instant) {
        let mut added = 0;
        for token in event.tokens() {
            added += 1;
            if let Some(measured) = token.measured {
                self.measured += 1;
                self.entropy += measured.entropy;
            }
            *self.decisions.entry(token.decision.to_owned()).or_default() += 1;
        }
        self.tokens += added;
        self.rewinds += event.rewinds.0.iter().sum::<u64>();
        if added > 0 {
            self.first.get_or_insert((when, added));
            self.last = Some(when);
        }
    }

    /// Tokens so far.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens a second after the first event, whose tokens waited for the prompt. `None` if nothing came after it.
    fn rate(&self) -> Option<f64> {
        let ((start, before), end) = (self.first?, self.last?);
        let seconds = end.duration_since(start).as_secs_f64();
        let after = self.tokens - before;
        (after > 0 && seconds > 0.0).then(|| after as f64 / seconds)
    }

    /// One line for a person.
    pub(crate) fn line(&self) -> String {
        if self.tokens == 0 {
            return "no tokens".to_owned();
        }
        let decisions: Vec<String> =
            self.decisions.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let rate = self.rate().map_or_else(|| "–".to_owned(), |rate| format!("{rate:.1}"));
        let entropy = match self.measured {
            0 => "–".to_owned(),
            count => format!("{:.2}", self.entropy / count as f64),
        };
        format!(
            "{} tokens ({}) · {} rewind{} · mean entropy {entropy} nats · {rate} tok/s",
            self.tokens,
            decisions.join(", "),
            self.rewinds,
            if self.rewinds == 1 { "" } else { "s" },
        )
    }
}

/// A tensor's elements.
#[derive(Debug, Deserialize)]
#[serde(from = "OneOrMany<T>")]
struct Items<T>(Vec<T>);

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> From<OneOrMany<T>> for Items<T> {
    fn from(tensor: OneOrMany<T>) -> Self {
        Self(match tensor {
            OneOrMany::One(item) => vec![item],
            OneOrMany::Many(items) => items,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: &str = r#"{"model_name":"smollm2","model_version":"1","text_output":" sky","token_ids":7,
        "entropy":1.5,"score":1.5,"threshold":2.0,"decision":"draft","rewinds":0}"#;
    const TWO: &str = r#"{"text_output":" is blue","token_ids":[8,9],"entropy":[0.5,4],"score":[0.5,4.0],
        "threshold":[2,2],"decision":["verified","rewound"],"rewinds":1}"#;

    #[test]
    fn bare_values_and_arrays_are_both_read() {
        let event = Event::read(ONE).unwrap();
        assert_eq!(event.text(), " sky");
        let measured = Some(Measured { entropy: 1.5, score: 1.5, threshold: 2.0 });
        let token = TokenRecord { id: 7, decision: "draft", measured };
        assert_eq!(event.tokens().collect::<Vec<_>>(), [token]);
        let decisions = |event: &Event| {
            event.tokens().map(|token| token.decision.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(decisions(&Event::read(TWO).unwrap()), ["verified", "rewound"]);
    }

    #[test]
    fn an_event_may_have_text_only_or_nothing() {
        let event = Event::read(r#"{"text_output":"."}"#).unwrap();
        assert_eq!((event.text().as_str(), event.tokens().count()), (".", 0));
        assert_eq!(Event::read(r#"{"text_output":[],"token_ids":[]}"#).unwrap().text(), "");
    }

    #[test]
    fn the_policy_off_measures_nothing() {
        let event =
            Event::read(r#"{"token_ids":[7,8],"decision":["draft","draft"],"rewinds":0}"#).unwrap();
        assert!(event.tokens().all(|token| token.measured.is_none()));
        let mut totals = Totals::default();
        totals.add(&event, Instant::now());
        assert_eq!(totals.line(), "2 tokens (2 draft) · 0 rewinds · mean entropy – nats · – tok/s");
    }

    #[test]
    fn errors_are_passed_on() {
        let told = |data: &str| format!("{:#}", Event::read(data).unwrap_err());
        assert!(told(r#"{"error":"temperature: NaN"}"#).contains("temperature: NaN"));
        assert!(told("<html>").contains("<html>"));
        assert!(
            told(r#"{"token_ids":[1,2],"decision":["a","b"],"entropy":1}"#)
                .contains("2 token_ids and 1 of entropy")
        );
    }

    #[test]
    fn totals_count_what_was_streamed() {
        let start = Instant::now();
        let mut totals = Totals::default();
        assert_eq!(totals.line(), "no tokens");
        totals.add(&Event::read(ONE).unwrap(), start);
        assert_eq!(totals.rate(), None);
        totals.add(&Event::read(TWO).unwrap(), start + Duration::from_millis(20));
        totals.add(&Event::read(r#"{"text_output":"."}"#).unwrap(), start + Duration::from_secs(9));
        assert_eq!(
            totals.line(),
            "3 tokens (1 draft, 1 rewound, 1 verified) · 1 rewind · mean entropy 2.00 nats · 100.0 tok/s"
        );
        assert_eq!(totals.tokens(), 3);
    }
}
