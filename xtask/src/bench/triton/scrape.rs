//! What a server's metrics say about a round.

use anyhow::{Context, Result, ensure};

use crate::server::{self, Server};

/// Counters of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scrape {
    /// Committed tokens.
    pub(super) tokens: f64,
    /// Passes over the weights.
    passes: f64,
    /// Time of these.
    pass_seconds: f64,
    /// Time in which there was work.
    active_seconds: f64,
}

impl Scrape {
    /// As they are now.
    pub(super) fn of(server: &Server, model: &str) -> Result<Self> {
        let url = format!("http://127.0.0.1:{}/metrics", server.ports().metrics);
        let text = server::agent(Some(std::time::Duration::from_secs(10)))
            .get(&url)
            .call()
            .and_then(|answer| answer.into_body().read_to_string())
            .with_context(|| format!("cannot read {url}"))?;
        Self::read(&text, model)
    }

    fn read(text: &str, model: &str) -> Result<Self> {
        let total = |name: &str| total(text, name, model);
        Ok(Self {
            tokens: total("vllm:generation_tokens_total")?,
            passes: total("rewind_pass_seconds_count")?,
            pass_seconds: total("rewind_pass_seconds_sum")?,
            active_seconds: total("rewind_active_seconds_total")?,
        })
    }

    /// What has come since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            tokens: self.tokens - before.tokens,
            passes: self.passes - before.passes,
            pass_seconds: self.pass_seconds - before.pass_seconds,
            active_seconds: self.active_seconds - before.active_seconds,
        }
    }

    /// Share of the time with work in which no pass ran.
    pub(super) fn idle(&self) -> f64 {
        1.0 - self.pass_seconds / self.active_seconds
    }

    /// Tokens that a pass brought, in the mean.
    pub(super) fn rows(&self) -> f64 {
        self.tokens / self.passes
    }
}

/// Sum of the samples of a metric that belong to a model, whatever their other labels.
fn total(text: &str, name: &str, model: &str) -> Result<f64> {
    let label = format!("model=\"{model}\"");
    let mut sum = None;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')) else {
            continue;
        };
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        if labels.split(',').any(|known| known == label) {
            let value: f64 = value.trim().parse().with_context(|| format!("no number: {line}"))?;
            sum = Some(sum.unwrap_or(0.0) + value);
        }
    }
    ensure!(sum.is_some(), "the server has no {name} of {model}");
    Ok(sum.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# HELP rewind_pass_seconds Time of a pass over the weights
vllm:generation_tokens_total{model="a",version="1"} 96.000000
rewind_pass_seconds_count{model="a",pass="draft",version="1"} 10
rewind_pass_seconds_count{model="a",pass="full",version="1"} 2
rewind_pass_seconds_sum{model="a",pass="draft",version="1"} 1.5
rewind_pass_seconds_sum{model="a",pass="full",version="1"} 0.25
rewind_pass_seconds_sum{model="ab",pass="draft",version="1"} 9
rewind_active_seconds_total{version="1",model="a"} 2
"#;

    #[test]
    fn samples_of_a_model_are_added_up() {
        let scrape = Scrape::read(TEXT, "a").unwrap();
        assert_eq!(scrape.pass_seconds, 1.75);
        assert_eq!(scrape.rows(), 8.0);
        assert_eq!(scrape.idle(), 0.125);
        let nothing = scrape.since(&scrape);
        assert_eq!((nothing.tokens, nothing.active_seconds), (0.0, 0.0));
    }

    #[test]
    fn a_metric_that_is_not_there_is_an_error() {
        let error = Scrape::read(TEXT, "b").unwrap_err().to_string();
        assert!(error.contains("vllm:generation_tokens_total of b"), "{error}");
    }
}
