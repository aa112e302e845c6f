//! What every measurement tells, in one JSON object.

use rewind_engine::Weights;
use serde::{Deserialize, Serialize};

use crate::bandwidth::Bandwidth;
use crate::machine::Machine;
use crate::statistics::Summary;

/// A measurement with its circumstances. `D` are the fields that it adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report<D> {
    /// Name of the measurement.
    pub command: String,
    /// Version of Rewind.
    pub version: String,
    /// Where it ran.
    pub machine: Machine,
    /// What ran.
    pub model: ModelNames,
    /// Threads that computed.
    pub threads: usize,
    /// Of this machine's memory, in the same run; `None` where passes do not run on its processor.
    pub bandwidth: Option<Bandwidth>,
    /// The figures.
    #[serde(flatten)]
    pub details: D,
}

/// Names of the model and of its two copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNames {
    /// File or folder.
    pub path: String,
    /// Fingerprint of the checkpoint.
    pub fingerprint: String,
    /// Numeric identity of the draft: formats, activations, executor.
    pub draft: String,
    /// Numeric identity of the shadow.
    pub shadow: String,
}

/// The speed of one kind of pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// `decode`, `batch`, `prefill`.
    pub name: String,
    /// `draft` or `shadow`.
    pub weights: String,
    /// Format of the linear layers.
    pub format: String,
    /// Sequences side by side.
    pub batch: usize,
    /// Tokens that each generates from an empty cache, or of the prompt.
    pub context: usize,
    /// Whether statistics were asked for.
    pub statistics: bool,
    /// Of all sequences together, a sample for each round.
    pub tokens_per_second: Summary,
    /// A sample for each step, or for each prompt.
    pub step_seconds: Summary,
    /// Bytes of weights that a pass reads, the head included.
    pub step_bytes: u64,
    /// The same over the tokens that a pass makes.
    pub bytes_per_token: f64,
    /// Those of the LM head, of a pass.
    pub head_bytes: u64,
    /// Bytes of keys and values that a token's row reads, on average; not in `bytes_per_token`.
    pub cache_bytes_per_token: f64,
    /// Bytes of weights a second, of the bandwidth in the same run.
    pub bandwidth_fraction: Option<f64>,
}

/// Name of a copy of the weights in reports.
pub(crate) fn name_of(weights: Weights) -> &'static str {
    match weights {
        Weights::Draft => "draft",
        Weights::Full => "shadow",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandwidth::ThreadsBandwidth;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Speeds {
        measurements: Vec<Measurement>,
    }

    #[test]
    fn reports_survive_json() {
        // Numbers that decimal digits hold exactly: a reader may round others by one unit.
        let figure = Summary { median: 2.5, low: 1.25, high: 4.0, samples: vec![4.0, 2.5, 1.25] };
        let one = ThreadsBandwidth { threads: 2, gigabytes_per_second: figure.clone() };
        let measurement = Measurement {
            name: "batch".into(),
            weights: name_of(Weights::Full).into(),
            format: "f16".into(),
            batch: 2,
            context: 128,
            statistics: true,
            tokens_per_second: figure.clone(),
            step_seconds: figure.clone(),
            step_bytes: 1 << 40,
            bytes_per_token: 0.5,
            head_bytes: u64::from(u32::MAX),
            cache_bytes_per_token: 1.5,
            bandwidth_fraction: None,
        };
        let report = Report {
            command: "batch".into(),
            version: "0.1.0".into(),
            machine: Machine {
                cpu: "one".into(),
                cores: 2,
                last_level_cache_bytes: None,
                memory_bytes: Some(1 << 34),
                system: "two".into(),
                governor: None,
                huge_pages: Some("madvise".into()),
                load_average: Some([0.25, 0.5, 1.0]),
                kernels: vec!["three".into()],
            },
            model: ModelNames {
                path: "/four".into(),
                fingerprint: "5".into(),
                draft: "int4-g32".into(),
                shadow: "f16".into(),
            },
            threads: 2,
            bandwidth: Some(Bandwidth {
                threads: 2,
                gigabytes_per_second: figure,
                array_bytes: 1 << 30,
                by_threads: vec![one],
            }),
            details: Speeds { measurements: vec![measurement] },
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report<Speeds>>(&text).unwrap(), report);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let expected =
            ["bandwidth", "command", "machine", "measurements", "model", "threads", "version"];
        assert!(expected.iter().all(|field| fields.contains(field)), "{fields:?}");
        assert_eq!(value["measurements"][0]["tokens_per_second"]["low"], 1.25);
    }
}
