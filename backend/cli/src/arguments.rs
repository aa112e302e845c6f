//! Flags that several commands share.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use rewind_monitor::{DetectorName, ThermometerSetting};
use rewind_serving::{
    Device, Draft, Options, Parameters, PolicyName, ShadowPlacement, Value, parse_bytes,
};

/// Which model, in which form.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArguments {
    /// GGUF file or Hugging Face folder.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// Take the shadow weights from this checkpoint instead of the model's own.
    #[arg(long, value_name = "PATH")]
    pub(crate) shadow: Option<PathBuf>,
    /// Format of the draft weights, `stored` to keep the checkpoint's own, or a plan with a format for each layer.
    #[arg(long, value_name = "FORMAT|stored|plan:FILE", default_value = "int4-g32")]
    pub(crate) draft: Draft,
    /// Where to run: auto (the first GPU that can be used, else the CPU), cpu or cuda:N.
    #[arg(long, default_value = "auto")]
    pub(crate) device: Device,
    /// Where the shadow lies if a GPU runs it: gpu, or host to read it over the bus in each pass.
    #[arg(long, value_name = "gpu|host", default_value = "gpu")]
    pub(crate) shadow_placement: ShadowPlacement,
    /// Memory for keys and values, such as 512MiB.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) kv_memory: Option<u64>,
    /// Longest sequence, prompt and answer, in tokens.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=i64::from(i32::MAX)))]
    pub(crate) max_sequence_length: Option<u32>,
    /// Domain profile: a built-in name or one in --profiles, auto to have the prompt choose, or a .toml file.
    #[arg(long, default_value = "default")]
    pub(crate) profile: String,
    /// Folder of further profiles, .toml files.
    #[arg(long, value_name = "DIR")]
    pub(crate) profiles: Option<PathBuf>,
    /// Source of the chip temperature: auto, none, hwmon, nvml or fixed:T.
    #[arg(long, default_value = "auto")]
    pub(crate) thermometer: ThermometerSetting,
}

impl ModelArguments {
    /// `threads` is apart, since one command takes a list of them.
    pub(crate) fn options(&self, threads: Option<u16>) -> Options {
        Options {
            shadow: self.shadow.clone(),
            draft: self.draft.clone(),
            device: self.device,
            shadow_placement: self.shadow_placement,
            threads: threads.map(usize::from),
            kv_memory: self.kv_memory,
            max_sequence_length: self.max_sequence_length,
            profile: self.profile.clone(),
            profiles: self.profiles.clone(),
            thermometer: self.thermometer,
            ..Options::new(self.model.clone())
        }
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "expected bytes with an optional unit, such as 512MiB".into())
}

/// When to rewind.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct GateArguments {
    /// Tokens held back by the policies window and lossless.
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<u32>,
    /// Draft positions that a rewind writes anew, in the policies step and window.
    #[arg(long, value_name = "N")]
    pub(crate) refresh: Option<u32>,
    /// What is judged: entropy, top1, margin or fused.
    #[arg(long)]
    pub(crate) detector: Option<DetectorName>,
    /// Execution threshold, in the unit of the detector; the profile's if not given.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) threshold: Option<f32>,
}

impl GateArguments {
    pub(crate) fn apply(&self, parameters: &mut Parameters) -> Result<()> {
        set_number(parameters, "window", self.window)?;
        set_number(parameters, "refresh", self.refresh)?;
        set_double(parameters, "threshold", self.threshold)?;
        if let Some(detector) = self.detector {
            parameters.set("detector", Value::String(detector.to_string()))?;
        }
        Ok(())
    }
}

/// How tokens are chosen.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SamplingArguments {
    /// 0 is greedy.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Keep the smallest set of tokens with at least this probability.
    #[arg(long, value_name = "X")]
    pub(crate) top_p: Option<f32>,
    /// Keep this many tokens.
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<u32>,
    /// Key of the noise; drawn at random if not given.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

impl SamplingArguments {
    pub(crate) fn apply(&self, parameters: &mut Parameters) -> Result<()> {
        set_double(parameters, "temperature", Some(self.temperature))?;
        set_double(parameters, "top_p", self.top_p)?;
        set_number(parameters, "top_k", self.top_k)?;
        // As text, since a seed may exceed the signed range.
        if let Some(seed) = self.seed {
            parameters.set("seed", Value::String(seed.to_string()))?;
        }
        Ok(())
    }
}

pub(crate) fn set_number(parameters: &mut Parameters, key: &str, value: Option<u32>) -> Result<()> {
    if let Some(value) = value {
        parameters.set(key, Value::Int(value.into()))?;
    }
    Ok(())
}

fn set_double(parameters: &mut Parameters, key: &str, value: Option<f32>) -> Result<()> {
    if let Some(value) = value {
        parameters.set(key, Value::Double(value.into()))?;
    }
    Ok(())
}

pub(crate) fn set_policy(parameters: &mut Parameters, policy: PolicyName) -> Result<()> {
    parameters.set("policy", Value::String(policy.to_string()))?;
    Ok(())
}
