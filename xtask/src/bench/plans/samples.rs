//! All that was measured, as it is kept beside the document.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fmt, fs, io};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::orders::Order;
use super::{LOW, MILD, Part};

/// The file of samples. The document is written from it alone.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Found {
    /// Of the shadow, then of drafts in one format each.
    pub(super) sizes: Vec<Size>,
    pub(super) orders: Vec<Order>,
    pub(super) parts: BTreeMap<Part, Measured>,
}

/// How large a copy of the weights is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Size {
    pub(super) format: String,
    pub(super) bytes: u64,
    pub(super) bits_per_weight: f64,
}

/// A part as it was measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Measured {
    /// On what day, and at what state of the project.
    pub(super) when: String,
    pub(super) command: String,
    /// What computed it.
    pub(super) identity: String,
    pub(super) samples: Vec<Sample>,
}

/// One run of `rewind perplexity`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sample {
    /// None where it makes no difference.
    pub(super) order: Option<String>,
    /// How many, the first of the order.
    pub(super) layers: usize,
    pub(super) treatment: Treatment,
    pub(super) tokens: u64,
    pub(super) perplexity: f64,
    pub(super) perplexity_error: f64,
    /// Perplexity of the shadow on the same tokens, if it was read.
    pub(super) shadow: Option<f64>,
    /// Share of the tokens whose most likely one is the shadow's.
    pub(super) agreement: Option<f64>,
    /// KL(shadow ‖ draft), nats.
    pub(super) divergence: Option<f64>,
}

/// What becomes of the layers that are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Treatment {
    Low,
    Mild,
    Removed,
}

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Low => write!(f, "to {LOW}"),
            Self::Mild => write!(f, "to {MILD}"),
            Self::Removed => f.write_str("removed"),
        }
    }
}

impl Found {
    /// What a run before this one found, if there was one.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("{} is not of this bench: remove it", path.display()))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot write JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Layers of the model.
    pub(super) fn layers(&self) -> usize {
        self.orders.first().map_or(0, |order| order.layers.len())
    }
}

impl Measured {
    /// Whether this was measured already.
    pub(super) fn has(&self, order: Option<&str>, layers: usize, treatment: Treatment) -> bool {
        self.samples.iter().any(|sample| {
            (sample.order.as_deref(), sample.layers, sample.treatment) == (order, layers, treatment)
        })
    }

    /// Counts of layers that were looked at under a treatment, ascending.
    pub(super) fn counts(&self, treatment: Treatment) -> Vec<usize> {
        let of = self.samples.iter().filter(|sample| sample.treatment == treatment);
        let mut counts: Vec<_> = of.map(|sample| sample.layers).collect();
        counts.sort_unstable();
        counts.dedup();
        counts
    }

    /// The samples of this many layers by the orders whose name begins so; those without an order count for
    /// all of them.
    pub(super) fn of<'a>(
        &'a self,
        treatment: Treatment,
        order: &'a str,
        layers: usize,
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            let name = sample.order.as_deref();
            (sample.treatment, sample.layers) == (treatment, layers)
                && name.is_none_or(|name| {
                    name == order || name.strip_prefix(order).is_some_and(is_seed)
                })
        })
    }

    /// A figure's mean over these samples; `None` without any.
    pub(super) fn mean(
        &self,
        treatment: Treatment,
        order: &str,
        layers: usize,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<f64> {
        let values: Vec<f64> = self.of(treatment, order, layers).filter_map(figure).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }
}

/// Whether what follows the name of an order tells it from others by a seed alone.
fn is_seed(rest: &str) -> bool {
    rest.strip_prefix('-').is_some_and(|seed| seed.parse::<u64>().is_ok())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::orders::Measure;
    use super::*;

    pub(in super::super) fn sample(
        order: Option<&str>,
        layers: usize,
        treatment: Treatment,
        perplexity: f64,
    ) -> Sample {
        Sample {
            order: order.map(str::to_owned),
            layers,
            treatment,
            tokens: 510,
            perplexity,
            perplexity_error: 0.5,
            shadow: Some(20.0),
            agreement: Some(0.75),
            divergence: Some(perplexity / 100.0),
        }
    }

    /// Four layers, one, two and all of which were moved; 8 bits read 20, 4 bits 40.
    pub(in super::super) fn found() -> Found {
        let orders = Measure::all(true).into_iter();
        let orders: Vec<_> =
            orders.map(|measure| Order::new(measure, &[0.5, 0.25, 1.0, 0.75])).collect();
        let size = |format: &str, bits| Size {
            format: format.into(),
            bytes: 1_000_000 * bits as u64,
            bits_per_weight: bits,
        };
        let low = Treatment::Low;
        let mut shares = vec![sample(None, 0, low, 20.0), sample(None, 4, low, 40.0)];
        for (name, perplexities) in [
            ("lim", [20.25, 22.0]),
            ("zd", [20.75, 24.0]),
            ("zd-two-sided", [21.0, 26.0]),
            ("random-1", [23.0, 30.0]),
            ("random-2", [25.0, 32.0]),
            ("lim-reversed", [30.0, 35.0]),
        ] {
            let of = [1, 2].into_iter().zip(perplexities);
            shares.extend(of.map(|(layers, each)| sample(Some(name), layers, low, each)));
        }
        let pruning = vec![
            sample(None, 0, low, 20.0),
            sample(Some("lim"), 1, low, 20.25),
            sample(Some("lim"), 1, Treatment::Removed, 60.0),
        ];
        let part = |samples| Measured {
            when: "2026-01-02, commit abc".into(),
            command: "cargo xtask bench plans --only x".into(),
            identity: "a processor".into(),
            samples,
        };
        let parts = [(Part::Shares, part(shares)), (Part::Pruning, part(pruning))].into();
        let sizes = vec![
            size("f16", 16.0),
            size("int8", 8.0),
            size("int6-g128", 6.0),
            size("int4-g128", 4.0),
        ];
        Found { sizes, orders, parts }
    }

    #[test]
    fn samples_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plans.json");
        assert!(Found::read(&path).unwrap().is_none());
        found().write(&path).unwrap();
        let read = Found::read(&path).unwrap().unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", found()));
        fs::write(&path, "{}").unwrap();
        assert!(Found::read(&path).unwrap_err().to_string().contains("plans.json"));
    }

    #[test]
    fn seeds_are_one_order_and_ends_belong_to_all() {
        let found = found();
        let shares = &found.parts[&Part::Shares];
        let mean = |order, layers| {
            shares.mean(Treatment::Low, order, layers, |sample| Some(sample.perplexity))
        };
        assert_eq!(mean("random", 1), Some(24.0));
        assert_eq!(mean("zd", 1), Some(20.75));
        assert_eq!((mean("zd", 0), mean("lim", 4)), (Some(20.0), Some(40.0)));
        assert_eq!(mean("lim", 3), None);
        assert!(shares.has(Some("zd"), 1, Treatment::Low) && shares.has(None, 4, Treatment::Low));
        assert!(!shares.has(Some("zd"), 3, Treatment::Low));
        assert_eq!(shares.counts(Treatment::Low), [0, 1, 2, 4]);
    }
}
