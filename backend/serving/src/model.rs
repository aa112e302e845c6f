//! A loaded model: everything about it but the engine.

use std::path::Path;
use std::sync::Arc;

use rewind_checkpoint::{ChatTemplate, Checkpoint, GenerationDefaults, ModelSpec, Tokenizer};
use rewind_engine::text::Vocabulary;
use rewind_engine::{Engine, Executor, Limits, Settings, Weights};
use rewind_monitor::{Celsius, ThermalWatch, choose_thermometer};

use crate::budget::{Budget, Tally};
use crate::device::{Choice, Processor, ShadowPlacement};
use crate::executor::AnyEngine;
use crate::load::{Loaded, Source, separate_shadow};
use crate::load_error::LoadError;
use crate::options::Options;
use crate::pairing::check_pair;
use crate::profiles::Profiles;
use crate::size::format_bytes;

/// A model with its tokenizer, profiles and thermometer; shared by all that prepare requests.
#[derive(Debug)]
pub struct Model {
    options: Options,
    device: Choice,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    generation: GenerationDefaults,
    fingerprint: String,
    limits: Limits,
    memory: Memory,
    kernels: Vec<String>,
    draft_identity: String,
    shadow_identity: String,
    profiles: Profiles,
    /// `None`: no budget is set.
    budget: Option<Budget>,
    thermometer: String,
    watch: ThermalWatch,
}

/// Memory of a model, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Draft weights, parts shared with the shadow included.
    pub draft: u64,
    /// Shadow weights, parts shared with the draft included.
    pub shadow: u64,
    /// What draft and shadow share.
    pub shared: u64,
    /// Keys and values, all pages. On the CPU the system hands it out when pages are first used.
    pub kv: u64,
    /// What passes compute in, where they run.
    pub buffers: u64,
    /// What of all this is in host memory, page-locked where passes run on a GPU.
    pub host: u64,
    /// What is in the GPU's memory.
    pub gpu: u64,
}

impl Memory {
    /// Parts that do not overlap, and their names: the weights of the draft alone, of the shadow alone,
    /// those of both, keys and values, buffers.
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        [
            ("draft", self.draft - self.shared),
            ("shadow", self.shadow - self.shared),
            ("shared", self.shared),
            ("kv", self.kv),
            ("buffers", self.buffers),
        ]
    }
}

/// The chip's temperature and what it does to thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThermalReading {
    /// Last temperature in °C; `None` without a sensor, or if it has failed for a while.
    pub celsius: Option<f32>,
    /// KT under the model's profile, ≥ 1.
    pub coefficient: f32,
}

impl Model {
    /// Loads a model and makes an engine for it.
    ///
    /// What the options leave open: the first GPU that can be used, else the CPU; one thread for each
    /// core; sequences of up to 4096 tokens or the model's own limit, whichever is less; 64 sequences
    /// at once; a row for each of them and 128 (on a GPU 512) more in a pass. On the CPU, KV memory for
    /// 8 sequences of full length, at most a quarter of the machine's (or the control group's) memory;
    /// on a GPU, for all sequences at full length, but for a twentieth of what weights and buffers
    /// leave, or 256 MiB if that is more, which stays free for the driver.
    ///
    /// # Errors
    /// Whatever is wrong with options or files; see [`LoadError`].
    pub fn load(options: Options) -> Result<(Arc<Self>, AnyEngine), LoadError> {
        Self::load_watched(options, |_| ())
    }

    /// As [`Model::load`], telling `progress` the share of the weights that are packed, 0 to 1.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_watched(
        options: Options,
        mut progress: impl FnMut(f32),
    ) -> Result<(Arc<Self>, AnyEngine), LoadError> {
        // Cheap checks come first: a mistyped setting should not cost the time of reading weights.
        let profiles = Profiles::load(&options.profile, options.profiles.as_deref())?;
        profiles.check(options.detector.unwrap_or_default())?;
        let budget = options.rewind_budget.map(Budget::new).transpose()?;
        let device = options.device.choose()?;
        match (&device.no_gpu, &device.gpu) {
            (Some(why), _) => tracing::info!("no GPU: {why}; serving on the CPU"),
            (None, Some(_)) => tracing::info!("serving on {}", device.describe()),
            (None, None) => {}
        }
        let processor = device.processor;
        let thermometer = choose_thermometer(options.thermometer, device.chip())?;
        let checkpoint = open("model", &options.model)?;
        let shadow = options.shadow.as_deref().map(|path| open("shadow", path)).transpose()?;
        if let Some(shadow) = &shadow {
            check_pair(&checkpoint, shadow)?;
        }
        let draft = options.draft.formats(checkpoint.spec().layers)?;
        let source = Source {
            model: &checkpoint,
            shadow: separate_shadow(&checkpoint, shadow.as_ref(), &draft),
            draft: &draft,
            options: &options,
        };
        source.check(processor)?;
        let Loaded { executor, limits, memory, kernels } = source.load(processor, &mut progress)?;
        // The files are unmapped here: see `Checkpoint`.
        drop(shadow);
        let fingerprint = checkpoint.fingerprint().to_owned();
        let (spec, tokenizer, chat_template, generation) = checkpoint.into_parts();
        let draft_identity = executor.identity(Weights::Draft);
        for profile in profiles.iter() {
            if let Some(warning) = profile.warn_if_fitted_elsewhere(&draft_identity) {
                tracing::warn!("{warning}");
            }
        }
        let model = Self {
            device,
            memory,
            kernels,
            shadow_identity: executor.identity(Weights::Full),
            draft_identity,
            thermometer: thermometer.name().to_owned(),
            watch: ThermalWatch::start(thermometer).map_err(LoadError::Thread)?,
            limits,
            profiles,
            budget,
            spec,
            tokenizer,
            chat_template,
            generation,
            fingerprint,
            options,
        };
        let pieces = (0..model.limits.vocabulary).map(|id| model.tokenizer.piece(id));
        let vocabulary = Vocabulary::new(pieces);
        let settings = Settings {
            max_queue: model.options.max_queue,
            max_batch_rows: model.limits.rows,
            verify_rows: model.options.verify_rows,
            verify_wait: model.options.verify_wait,
        };
        let engine = Engine::new(executor, vocabulary, settings);
        for (what, value) in model.describe() {
            tracing::info!("{what}: {value}");
        }
        Ok((Arc::new(model), engine))
    }

    /// The options that it was loaded with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Where its passes run.
    pub fn processor(&self) -> Processor {
        self.device.processor
    }

    /// Its shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Its chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Its end-of-sequence tokens and suggested settings.
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// Fingerprint of its weights; profiles name it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What the executor can hold.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Memory that it takes.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// What computes each copy of the weights, a line each, for people.
    pub fn kernels(&self) -> &[String] {
        &self.kernels
    }

    /// Numeric identity of one copy of the weights.
    pub fn identity(&self, weights: Weights) -> &str {
        match weights {
            Weights::Draft => &self.draft_identity,
            Weights::Full => &self.shadow_identity,
        }
    }

    /// The chip's temperature now, and KT under the model's profile; where prompts choose it, under the
    /// first that they can choose.
    pub fn thermal(&self) -> ThermalReading {
        let celsius = self.celsius();
        let default = self.profiles.select(None).ok();
        let profile = default.and_then(|default| default.all().first().copied());
        let coefficient = profile.map_or(1.0, |profile| profile.thermal_coefficient(celsius));
        ThermalReading { celsius: celsius.map(|celsius| celsius.0), coefficient }
    }

    /// Tells the controller of the rewind budget that a request has ended; without a budget, nothing.
    pub fn finished(&self, tally: &Tally) {
        if let Some(budget) = &self.budget {
            budget.finished(tally);
        }
    }

    /// How far the controller of the rewind budget has moved thresholds from the profiles' own, in noise
    /// floors; `None` without a budget.
    pub fn threshold_offset(&self) -> Option<f32> {
        self.budget.as_ref().map(Budget::noise_floors)
    }

    /// What was loaded and how, a line each, for logs and people.
    pub fn describe(&self) -> Vec<(String, String)> {
        let Limits { slots, rows, pages, page_tokens, positions, .. } = self.limits;
        let Options { policy, window, refresh, profile, .. } = &self.options;
        let mut lines = vec![
            ("model", self.options.model.display().to_string()),
            ("fingerprint", self.fingerprint.clone()),
            ("parameters", self.spec.parameters().to_string()),
            ("device", self.device.describe()),
            ("draft weights", format_bytes(self.memory.draft)),
            ("shadow weights", self.describe_shadow()),
        ];
        lines.extend(self.kernels.iter().map(|kernel| ("kernels", kernel.clone())));
        lines.extend([
            (
                "KV cache",
                format!(
                    "{} for {} tokens in {pages} pages of {page_tokens}",
                    format_bytes(self.memory.kv),
                    u64::from(pages) * u64::from(page_tokens)
                ),
            ),
            (
                "limits",
                format!(
                    "{positions} tokens a sequence, {slots} sequences and {rows} rows at once, \
                     {} waiting",
                    self.options.max_queue
                ),
            ),
            ("policy", policy.with(*window, *refresh).to_string()),
            ("profile", profile.clone()),
            ("thermometer", self.thermometer.clone()),
        ]);
        if let Some(share) = self.options.rewind_budget {
            lines.push(("rewind budget", share.to_string()));
        }
        lines.into_iter().map(|(what, value)| (what.to_owned(), value)).collect()
    }

    fn describe_shadow(&self) -> String {
        let size = format_bytes(self.memory.shadow);
        match (self.device.processor, self.options.shadow_placement) {
            (Processor::Cuda(_), ShadowPlacement::Host) => format!("{size}, in host memory"),
            (Processor::Cuda(_), ShadowPlacement::Gpu) | (Processor::Cpu, _) => size,
        }
    }

    pub(crate) fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    pub(crate) fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    pub(crate) fn celsius(&self) -> Option<Celsius> {
        self.watch.celsius()
    }

    /// Most bytes of a prompt: so many as the longest sequence of the longest pieces has.
    pub(crate) fn prompt_bytes(&self) -> usize {
        // Special tokens stand for texts that are no pieces, such as `<|im_start|>`.
        const LONGEST_SPECIAL: usize = 32;
        let longest = self.tokenizer.max_piece_len().max(LONGEST_SPECIAL);
        longest.saturating_mul(self.limits.positions as usize)
    }
}

fn open(key: &'static str, path: &Path) -> Result<Checkpoint, LoadError> {
    if !path.exists() {
        return Err(LoadError::Missing { key, path: path.to_owned() });
    }
    Checkpoint::open(path).map_err(|source| LoadError::Checkpoint { key, source })
}
