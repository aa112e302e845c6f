//! In what order layers are moved, and the plan that moves the first of them.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Part;

/// Random orders, by the seeds from 1.
const SEEDS: u64 = 5;
const QUICK_SEEDS: u64 = 2;

/// What random orders are called, before their seed.
pub(super) const RANDOM: &str = "random";

/// Where an order comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    Lim,
    /// LIM, the most important layers first: what ordering can spoil.
    LimReversed,
    Zd,
    ZdTwoSided,
    /// By this seed.
    Random(u64),
}

impl Measure {
    /// All that are compared.
    pub(super) fn all(quick: bool) -> Vec<Self> {
        let mut all = vec![Self::Lim, Self::Zd, Self::ZdTwoSided];
        let seeds = if quick { QUICK_SEEDS } else { SEEDS };
        all.extend((1..=seeds).map(Self::Random));
        all.push(Self::LimReversed);
        all
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Lim => "lim".into(),
            Self::LimReversed => "lim-reversed".into(),
            Self::Zd => "zd".into(),
            Self::ZdTwoSided => "zd-two-sided".into(),
            Self::Random(seed) => format!("{RANDOM}-{seed}"),
        }
    }

    /// Flags of `rewind quantize` that measure it.
    pub(super) fn arguments(self, text: &str, quick: bool) -> Vec<String> {
        let mut arguments = match self {
            Self::Lim | Self::LimReversed => vec!["--plan", "lim", "--text", text],
            Self::Zd => vec!["--plan", "zd"],
            Self::ZdTwoSided => vec!["--plan", "zd-two-sided"],
            Self::Random(seed) => {
                let seed = seed.to_string();
                return ["--plan", "random", "--seed", &seed].map(str::to_owned).to_vec();
            }
        };
        if quick && arguments.contains(&"--text") {
            arguments.extend(["--chunks", "2"]);
        }
        arguments.into_iter().map(str::to_owned).collect()
    }
}

/// An order of the layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) name: String,
    /// The first one moves first.
    pub(super) layers: Vec<usize>,
    /// Of each layer, first to last, as it was measured.
    pub(super) importance: Vec<f64>,
}

impl Order {
    /// The least important layers first; of equally important ones, the earlier, as `rewind quantize` has it.
    pub(super) fn new(measure: Measure, importance: &[f64]) -> Self {
        let mut layers: Vec<usize> = (0..importance.len()).collect();
        layers.sort_by(|&a, &b| importance[a].total_cmp(&importance[b]));
        if measure == Measure::LimReversed {
            layers.reverse();
        }
        Self { name: measure.name(), layers, importance: importance.to_vec() }
    }

    pub(super) fn is_random(&self) -> bool {
        self.name.starts_with(RANDOM)
    }

    /// Whether a part looks at it.
    pub(super) fn is_in(&self, part: Part) -> bool {
        match part {
            Part::Shares => true,
            Part::Pruning => self.name == "lim" || self.name == "zd",
            Part::Mild => self.name == "lim" || self.is_random(),
        }
    }
}

/// A plan file: `moved` layers in the format `low`, the other ones of `total` in `high`.
pub(super) fn plan(total: usize, moved: &[usize], low: &str, high: &str) -> String {
    let mut text =
        "version = 1\nembedding = \"int8-g32\"\nhead = \"int8-g32\"\nlayers = [\n".to_owned();
    for layer in 0..total {
        let format = if moved.contains(&layer) { low } else { high };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  \"{format}\",");
    }
    text + "]\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_important_layer_comes_first_and_the_earlier_of_two() {
        let importance = [0.5, -0.25, 0.75, 0.5];
        assert_eq!(Order::new(Measure::Lim, &importance).layers, [1, 0, 3, 2]);
        assert_eq!(Order::new(Measure::LimReversed, &importance).layers, [2, 3, 0, 1]);
    }

    #[test]
    fn plans_name_every_layer() {
        let text = plan(3, &[2, 0], "low", "high");
        assert!(text.ends_with("layers = [\n  \"low\",\n  \"high\",\n  \"low\",\n]\n"), "{text}");
    }

    #[test]
    fn orders_have_names_of_their_own() {
        let mut names: Vec<_> = Measure::all(false).into_iter().map(Measure::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(Order::new(Measure::Random(3), &[]).is_random());
    }
}
