//! What the owner of a model sets: `parameters` of config.pbtxt, flags of the command line.
//!
//! Values arrive as strings, because that is all config.pbtxt has. Each key is parsed once, here, and
//! every error names the key, the value and what is allowed. Rejected: deserializing with serde. Its
//! errors name types ("expected u32"), not what a person should write.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rewind_engine::Weights;
use rewind_formats::{FORMAT_NAMES, Format, Group};
use rewind_monitor::{DetectorName, ThermometerSetting};

use crate::device::{Device, ShadowPlacement};
use crate::draft::Draft;
use crate::nearest::{hint, nearest};
use crate::policy::{POLICY_NAMES, PolicyName};
use crate::size::parse_bytes;

/// Window of the policies `window` and `lossless` unless something else is asked for, in tokens.
pub const DEFAULT_WINDOW: u32 = 4;
/// Draft positions rewritten by a rewind unless something else is asked for.
pub const DEFAULT_REFRESH: u32 = 8;
/// Largest window and refresh: beyond it a rewind costs more than the tokens it protects.
pub const MAX_WINDOW: u32 = 64;

/// Settings of one model, before anything is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// A GGUF file or a Hugging Face folder.
    pub model: PathBuf,
    /// Checkpoint of the shadow weights, where it is not `model` itself.
    pub shadow: Option<PathBuf>,
    /// What the draft is stored in. Default `int4-g32`.
    pub draft: Draft,
    /// Policy of requests that name none. Default `step`.
    pub policy: PolicyName,
    /// Tokens held back by `window` and `lossless`, 1 ..= [`MAX_WINDOW`].
    pub window: u32,
    /// Draft positions rewritten by a rewind of `step` and `window`, 0 ..= [`MAX_WINDOW`].
    pub refresh: u32,
    /// Detector of requests that name none; `None`: `entropy`.
    pub detector: Option<DetectorName>,
    /// Profile of requests that name none: a built-in name or that of one in `profiles`, `auto`, or a path
    /// ending in `.toml`.
    pub profile: String,
    /// Folder of further profiles, `.toml` files that requests pick by the name in them.
    pub profiles: Option<PathBuf>,
    /// Rewinds per token that a controller holds by moving the threshold, above 0 and below 1; `None`: the
    /// threshold is the profile's.
    pub rewind_budget: Option<f64>,
    /// Where passes run. Default `auto`.
    pub device: Device,
    /// Where the shadow lies, if passes run on a GPU. Default `gpu`.
    pub shadow_placement: ShadowPlacement,
    /// Compute threads, ≥ 1; `None`: one for each core this process may use.
    pub threads: Option<usize>,
    /// Memory for keys and values, in bytes; `None`: see [`crate::Model::load`].
    pub kv_memory: Option<u64>,
    /// Longest sequence, prompt and answer, in tokens, ≥ 2; `None`: see [`crate::Model::load`].
    pub max_sequence_length: Option<u32>,
    /// Sequences that run at once, ≥ 1; `None`: see [`crate::Model::load`].
    pub max_sequences: Option<u32>,
    /// Rows of a pass, ≥ 1; `None`: see [`crate::Model::load`].
    pub max_batch_rows: Option<u32>,
    /// Requests that may wait; one more is refused.
    pub max_queue: usize,
    /// Weights that read the prompt; `None`: the policy's own, see [`PolicyName::prefill`].
    pub prefill: Option<Weights>,
    /// Rows that start a pooled shadow pass, ≥ 1.
    pub verify_rows: u32,
    /// Iterations after which a waiting row starts a pooled shadow pass.
    pub verify_wait: u32,
    /// Seed of requests that bring none; `None`: a fresh one is drawn for each.
    pub seed: Option<u64>,
    /// Where the chip temperature comes from.
    pub thermometer: ThermometerSetting,
}

/// Keys of [`Options::from_parameters`].
pub const OPTION_KEYS: [&str; 23] = [
    "model",
    "shadow",
    "draft",
    "policy",
    "window",
    "refresh",
    "detector",
    "profile",
    "profiles",
    "rewind_budget",
    "device",
    "shadow_placement",
    "threads",
    "kv_memory",
    "max_sequence_length",
    "max_sequences",
    "max_batch_rows",
    "max_queue",
    "prefill",
    "verify_rows",
    "verify_wait",
    "seed",
    "thermometer",
];

impl Options {
    /// Defaults for the model at this path.
    pub fn new(model: PathBuf) -> Self {
        let engine = rewind_engine::Settings::default();
        Self {
            model,
            shadow: None,
            draft: Format::Int4Group(Group::G32).into(),
            policy: PolicyName::Step,
            window: DEFAULT_WINDOW,
            refresh: DEFAULT_REFRESH,
            detector: None,
            profile: "default".into(),
            profiles: None,
            rewind_budget: None,
            device: Device::Auto,
            shadow_placement: ShadowPlacement::Gpu,
            threads: None,
            kv_memory: None,
            max_sequence_length: None,
            max_sequences: None,
            max_batch_rows: None,
            max_queue: engine.max_queue,
            prefill: None,
            verify_rows: engine.verify_rows,
            verify_wait: engine.verify_wait,
            seed: None,
            thermometer: ThermometerSetting::Auto,
        }
    }

    /// Reads config.pbtxt `parameters`. Paths are relative to `folder`, the version folder.
    ///
    /// # Errors
    /// The first unknown key (with the nearest known one), missing `model`, or bad value. Whether the
    /// files exist is found out by [`crate::Model::load`].
    pub fn from_parameters(
        folder: &Path,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Self, OptionsError> {
        for key in parameters.keys() {
            if !OPTION_KEYS.contains(&key.as_str()) {
                return Err(OptionsError::UnknownKey {
                    key: key.clone(),
                    nearest: nearest(key, OPTION_KEYS),
                });
            }
        }
        let model = parameters.get("model").ok_or(OptionsError::NoModel)?;
        let mut options = Self::new(relative(folder, "model", model)?);
        for (key, value) in parameters {
            options.set(folder, key, value.trim())?;
        }
        if let Some(weights) = options.prefill {
            options
                .policy
                .check_prefill(weights)
                .map_err(|allowed| bad("prefill", "draft", allowed))?;
        }
        Ok(options)
    }

    fn set(&mut self, folder: &Path, key: &str, value: &str) -> Result<(), OptionsError> {
        let told = |allowed: &str| bad(key, value, allowed);
        match key {
            "model" => {}
            "shadow" => self.shadow = Some(relative(folder, key, value)?),
            "draft" => {
                let draft: Result<Draft, _> = value.parse();
                let allowed = || told(&format!("one of {FORMAT_NAMES}, or plan: and a file"));
                self.draft = draft.map_err(|_| allowed())?.within(folder);
            }
            "policy" => self.policy = value.parse().map_err(|_| told(POLICY_NAMES))?,
            "window" => self.window = integer(key, value, 1, MAX_WINDOW)?,
            "refresh" => self.refresh = integer(key, value, 0, MAX_WINDOW)?,
            "detector" => {
                self.detector = Some(value.parse().map_err(|_| told(DetectorName::ALLOWED))?);
            }
            "profile" => {
                // A file is named by its ending, so that a mistyped name is never taken for a path.
                self.profile = if value.ends_with(".toml") {
                    relative(folder, key, value)?.display().to_string()
                } else if value.is_empty() {
                    return Err(told("the name of a profile, auto, or the path of a .toml file"));
                } else {
                    value.into()
                };
            }
            "profiles" => self.profiles = Some(relative(folder, key, value)?),
            "rewind_budget" => {
                let share = value.parse().ok().filter(|&share| share > 0.0 && share < 1.0);
                let allowed =
                    "a number above 0 and below 1, the share of tokens that may be rewound";
                self.rewind_budget = Some(share.ok_or_else(|| told(allowed))?);
            }
            "device" => self.device = value.parse()?,
            "shadow_placement" => self.shadow_placement = value.parse()?,
            "threads" => self.threads = Some(integer(key, value, 1, 1024)?),
            "kv_memory" => {
                self.kv_memory = Some(parse_bytes(value).ok_or_else(|| {
                    told("bytes above 0, with an optional unit: 2GiB, 512MB, 1073741824")
                })?);
            }
            "max_sequence_length" => {
                self.max_sequence_length = Some(integer(key, value, 2, i32::MAX as u32)?);
            }
            "max_sequences" => self.max_sequences = Some(integer(key, value, 1, 65_536)?),
            "max_batch_rows" => self.max_batch_rows = Some(integer(key, value, 1, 65_536)?),
            "max_queue" => self.max_queue = integer(key, value, 1, i32::MAX as usize)?,
            "prefill" => {
                self.prefill = Some(match value {
                    "draft" => Weights::Draft,
                    "full" => Weights::Full,
                    _ => return Err(told("draft or full")),
                });
            }
            "verify_rows" => self.verify_rows = integer(key, value, 1, 65_536)?,
            "verify_wait" => self.verify_wait = integer(key, value, 0, 1024)?,
            "seed" => self.seed = Some(integer(key, value, 0, u64::MAX)?),
            "thermometer" => {
                let allowed = "auto, none, hwmon, nvml, or fixed:T with T in °C, such as fixed:45";
                self.thermometer = value.parse().map_err(|_| told(allowed))?;
            }
            _ => unreachable!("the caller let known keys through only"),
        }
        Ok(())
    }
}

/// Why settings of a model were not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No such key.
    #[error("unknown parameter {key:?}{}", hint(*.nearest))]
    UnknownKey {
        /// As written.
        key: String,
        /// Most similar known key.
        nearest: Option<&'static str>,
    },
    /// There is nothing to load.
    #[error(
        "the parameter \"model\" is missing: give a GGUF file or a Hugging Face folder, relative to \
         the version folder"
    )]
    NoModel,
    /// The value does not fit its key.
    #[error("parameter {key:?} is {value:?}: expected {allowed}")]
    BadValue {
        /// The key.
        key: String,
        /// As written.
        value: String,
        /// What would be right.
        allowed: String,
    },
    /// One model over several GPUs.
    #[error("device {value:?}: one model over several devices is not supported yet, name one")]
    SeveralDevices {
        /// As written.
        value: String,
    },
}

fn bad(key: &str, value: &str, allowed: impl Into<String>) -> OptionsError {
    OptionsError::BadValue { key: key.into(), value: value.into(), allowed: allowed.into() }
}

fn integer<T>(key: &str, value: &str, low: T, high: T) -> Result<T, OptionsError>
where
    T: FromStr + PartialOrd + fmt::Display + Copy,
{
    match value.parse::<T>() {
        Ok(n) if n >= low && n <= high => Ok(n),
        _ => Err(bad(key, value, format!("a whole number from {low} to {high}"))),
    }
}

fn relative(folder: &Path, key: &str, value: &str) -> Result<PathBuf, OptionsError> {
    if value.trim().is_empty() {
        return Err(bad(key, value, "a path, absolute or relative to the version folder"));
    }
    Ok(folder.join(value.trim()))
}

#[cfg(test)]
mod tests {
    use rewind_monitor::Celsius;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Options, OptionsError> {
        let parameters =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Options::from_parameters(Path::new("/models/m/1"), &parameters)
    }

    #[test]
    fn every_key_is_read() {
        let options = read(&[
            ("model", "weights.gguf"),
            ("shadow", "/elsewhere/original"),
            ("draft", "int8-g64"),
            ("policy", "lossless"),
            ("window", "6"),
            ("refresh", "0"),
            ("detector", "margin"),
            ("profile", "medical.toml"),
            ("profiles", "profiles"),
            ("rewind_budget", "0.2"),
            ("device", "cuda:1"),
            ("shadow_placement", "host"),
            ("threads", "3"),
            ("kv_memory", "2GiB"),
            ("max_sequence_length", "512"),
            ("max_sequences", "7"),
            ("max_batch_rows", "64"),
            ("max_queue", "9"),
            ("prefill", "full"),
            ("verify_rows", "5"),
            ("verify_wait", "0"),
            ("seed", "18446744073709551615"),
            ("thermometer", "fixed:45"),
        ])
        .unwrap();
        let expected = Options {
            model: "/models/m/1/weights.gguf".into(),
            shadow: Some("/elsewhere/original".into()),
            draft: Format::Int8Group(Group::G64).into(),
            policy: PolicyName::Lossless,
            window: 6,
            refresh: 0,
            detector: Some(DetectorName::Margin),
            profile: "/models/m/1/medical.toml".into(),
            profiles: Some("/models/m/1/profiles".into()),
            rewind_budget: Some(0.2),
            device: Device::Cuda(1),
            shadow_placement: ShadowPlacement::Host,
            threads: Some(3),
            kv_memory: Some(2 << 30),
            max_sequence_length: Some(512),
            max_sequences: Some(7),
            max_batch_rows: Some(64),
            max_queue: 9,
            prefill: Some(Weights::Full),
            verify_rows: 5,
            verify_wait: 0,
            seed: Some(u64::MAX),
            thermometer: ThermometerSetting::Fixed(Celsius(45.0)),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn only_the_model_is_needed() {
        assert_eq!(read(&[("model", "m")]).unwrap(), Options::new("/models/m/1/m".into()));
        assert_eq!(read(&[("draft", "int8")]), Err(OptionsError::NoModel));
        assert!(matches!(read(&[("model", " ")]), Err(OptionsError::BadValue { .. })));
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        for (key, expected) in [
            ("polici", "policy"),
            ("max_seq_length", "max_sequence_length"),
            ("kv-memory", "kv_memory"),
            ("Draft", "draft"),
        ] {
            let error = read(&[("model", "m"), (key, "1")]).unwrap_err();
            let wanted = OptionsError::UnknownKey { key: key.into(), nearest: Some(expected) };
            assert_eq!(error, wanted);
            assert!(error.to_string().contains(&format!("did you mean \"{expected}\"")), "{error}");
        }
        let error = read(&[("model", "m"), ("xyzzy", "1")]).unwrap_err();
        assert_eq!(error.to_string(), "unknown parameter \"xyzzy\"");
    }

    #[test]
    fn bad_values_name_key_value_and_what_is_allowed() {
        for (key, value, allowed) in [
            ("draft", "int3", "int4-g32"),
            ("policy", "never", "lossless"),
            ("window", "0", "from 1 to 64"),
            ("window", "four", "from 1 to 64"),
            ("refresh", "-1", "from 0 to 64"),
            ("detector", "vibes", "margin or fused"),
            ("profile", "", "auto"),
            ("profiles", "", "a path"),
            ("rewind_budget", "0", "above 0 and below 1"),
            ("rewind_budget", "20%", "above 0 and below 1"),
            ("rewind_budget", "1", "above 0 and below 1"),
            ("device", "tpu", "cuda:N"),
            ("device", "cuda:", "cuda:N"),
            ("shadow_placement", "disk", "gpu or host"),
            ("threads", "0", "from 1"),
            ("kv_memory", "lots", "2GiB"),
            ("max_sequence_length", "1", "from 2"),
            ("max_batch_rows", "0", "from 1"),
            ("max_queue", "0", "from 1"),
            ("prefill", "both", "draft or full"),
            ("verify_rows", "", "from 1"),
            ("verify_wait", "1.5", "from 0"),
            ("seed", "-3", "from 0"),
            ("thermometer", "", "auto"),
        ] {
            let error = read(&[("model", "m"), (key, value)]).unwrap_err().to_string();
            for part in [key, &format!("{value:?}"), allowed] {
                assert!(error.contains(part), "{key}={value}: {error} lacks {part}");
            }
        }
    }

    #[test]
    fn several_devices_are_for_a_later_version() {
        let error = read(&[("model", "m"), ("device", "cuda:0,1")]).unwrap_err().to_string();
        assert!(error.contains("\"cuda:0,1\"") && error.contains("not supported yet"), "{error}");
    }

    #[test]
    fn a_draft_prefill_cannot_be_lossless() {
        for policy in ["lossless", "shadow"] {
            let error = read(&[("model", "m"), ("policy", policy), ("prefill", "draft")]);
            assert!(error.unwrap_err().to_string().contains("\"prefill\""));
        }
        read(&[("model", "m"), ("policy", "step"), ("prefill", "draft")]).unwrap();
    }
}
