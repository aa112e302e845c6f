//! Metrics on Triton's endpoint.
//!
//! Everything is first added to a [`Record`], which costs nanoseconds and takes no lock of Triton's,
//! and pushed later: before each last answer, so that a client which has its answer finds it counted,
//! and a few times a second for long answers and the chip temperature.
//!
//! Names follow the engines that clients and dashboards know: `vllm:*`, and TensorRT-LLM's block
//! metrics, from which Triton makes the ORCA headers of load balancers.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use rewind_engine::{Committed, Decision, Load, RewindReason, Step, Weights};
use rewind_serving::{Memory, Observer, ThermalReading};

use crate::ffi::{Error, Family, Metric, MetricKind};

/// How often figures are pushed that no last answer has pushed.
const PERIOD: Duration = Duration::from_millis(200);

/// Upper bounds in nats: finest where thresholds lie, and up to the entropy of guessing.
const ENTROPY_BOUNDS: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
/// Upper bounds in seconds of a pass.
const PASS_BOUNDS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0,
];
/// Upper bounds in seconds, as vLLM has them.
const FIRST_TOKEN_BOUNDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const LATER_TOKEN_BOUNDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const REQUEST_BOUNDS: &[f64] = &[1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0];

/// The families, made once for the process. Empty where the server has no metrics.
#[derive(Debug)]
pub(crate) struct Families(Option<All<Family>>);

/// One of everything, be it a family or, with labels, a metric.
#[derive(Debug)]
struct All<T> {
    tokens: T,
    rewinds: T,
    rewound_tokens: T,
    entropy: T,
    threshold: T,
    threshold_offset: T,
    thermal_coefficient: T,
    chip_celsius: T,
    pass_seconds: T,
    active_seconds: T,
    batch_rows: T,
    sequences: T,
    memory: T,
    kv_blocks: T,
    first_token: T,
    later_token: T,
    request: T,
    prompt_tokens: T,
    generation_tokens: T,
}

impl Families {
    /// Registers all families.
    ///
    /// # Errors
    /// A name is in use for another kind of metric.
    pub(crate) fn new() -> Result<Self, Error> {
        use MetricKind::{Counter, Gauge, Histogram};
        // The first family tells whether there are metrics at all.
        let Some(tokens) =
            Family::new("rewind_tokens_total", "Committed tokens by how they came to be", Counter)?
        else {
            tracing::info!("this server was built without metrics: none are reported");
            return Ok(Self(None));
        };
        let family = |name: &str, description: &str, kind| {
            Family::new(name, description, kind)?
                .ok_or_else(|| Error::internal(format!("the server refused the metric {name}")))
        };
        Ok(Self(Some(All {
            tokens,
            rewinds: family(
                "rewind_rewinds_total",
                "Times that draft KV was discarded, by reason",
                Counter,
            )?,
            rewound_tokens: family(
                "rewind_rewound_tokens_total",
                "Drafted tokens that a rewind threw away",
                Counter,
            )?,
            entropy: family(
                "rewind_entropy_nats",
                "Entropy of the next-token distribution, as judged, of committed tokens",
                Histogram(ENTROPY_BOUNDS),
            )?,
            threshold: family(
                "rewind_threshold",
                "Execution threshold frozen for the latest request, in the unit of its detector's score",
                Gauge,
            )?,
            threshold_offset: family(
                "rewind_threshold_offset",
                "How far the rewind budget has moved thresholds from the profile's own, in noise floors",
                Gauge,
            )?,
            thermal_coefficient: family(
                "rewind_thermal_coefficient",
                "Coefficient KT that the chip temperature puts on the noise floor",
                Gauge,
            )?,
            chip_celsius: family("rewind_chip_celsius", "Chip temperature", Gauge)?,
            pass_seconds: family(
                "rewind_pass_seconds",
                "Time of a pass over the weights",
                Histogram(PASS_BOUNDS),
            )?,
            active_seconds: family(
                "rewind_active_seconds_total",
                "Seconds in which the engine had a request to work on",
                Counter,
            )?,
            batch_rows: family(
                "rewind_batch_rows",
                "Rows in the passes of the latest iteration",
                Gauge,
            )?,
            sequences: family("rewind_sequences", "Sequences in the engine, by state", Gauge)?,
            memory: family("rewind_memory_bytes", "Memory of the model, by what it holds", Gauge)?,
            kv_blocks: family(
                "nv_trt_llm_kv_cache_block_metrics",
                "KV cache pages: how many there are, free and used, and tokens in each",
                Gauge,
            )?,
            first_token: family(
                "vllm:time_to_first_token_seconds",
                "Time from the arrival of a request to its first token",
                Histogram(FIRST_TOKEN_BOUNDS),
            )?,
            later_token: family(
                "vllm:time_per_output_token_seconds",
                "Time between tokens after the first",
                Histogram(LATER_TOKEN_BOUNDS),
            )?,
            request: family(
                "vllm:e2e_request_latency_seconds",
                "Time from the arrival of a request to its end",
                Histogram(REQUEST_BOUNDS),
            )?,
            prompt_tokens: family(
                "vllm:prompt_tokens_total",
                "Prompt tokens that were read",
                Counter,
            )?,
            generation_tokens: family(
                "vllm:generation_tokens_total",
                "Tokens that were committed",
                Counter,
            )?,
        })))
    }
}

/// Figures that were not pushed yet.
#[derive(Debug, Default)]
pub(crate) struct Record {
    decisions: [u64; Decision::ALL.len()],
    rewinds: [u64; RewindReason::ALL.len()],
    rewound_tokens: u64,
    prompt_tokens: u64,
    generation_tokens: u64,
    entropy: Vec<f32>,
    draft_seconds: Vec<f64>,
    full_seconds: Vec<f64>,
    active_seconds: f64,
    first_token: Vec<f64>,
    later_token: Vec<f64>,
    request: Vec<f64>,
    rows: Option<usize>,
    load: Option<Load>,
    threshold: Option<f32>,
}

impl Record {
    /// A token was committed.
    pub(crate) fn token(&mut self, committed: &Committed) {
        self.decisions[place(&Decision::ALL, &committed.decision)] += 1;
        self.generation_tokens += 1;
        if let Some(statistics) = committed.statistics.filter(|row| row.entropy.is_finite()) {
            self.entropy.push(statistics.entropy);
        }
    }

    /// The threshold of a request was frozen.
    pub(crate) fn threshold(&mut self, threshold: f32) {
        self.threshold = Some(threshold);
    }

    /// The threshold that is to be pushed.
    #[cfg(test)]
    pub(crate) fn latest_threshold(&self) -> Option<f32> {
        self.threshold
    }

    /// Draft KV was discarded.
    pub(crate) fn rewind(&mut self, reason: RewindReason, tokens: u32) {
        self.rewinds[place(&RewindReason::ALL, &reason)] += 1;
        self.rewound_tokens += u64::from(tokens);
    }

    /// The first token of a request came so long after its arrival.
    pub(crate) fn first_token(&mut self, seconds: f64, prompt_tokens: u32) {
        self.first_token.push(seconds);
        self.prompt_tokens += u64::from(prompt_tokens);
    }

    /// Another token came so long after the one before.
    pub(crate) fn later_token(&mut self, seconds: f64) {
        self.later_token.push(seconds);
    }

    /// A request ended well so long after its arrival.
    pub(crate) fn end(&mut self, seconds: f64) {
        self.request.push(seconds);
    }

    fn step(&mut self, step: &Step, load: &Load, active: Duration) {
        self.active_seconds += active.as_secs_f64();
        for pass in &step.passes {
            match pass.weights {
                Weights::Draft => self.draft_seconds.push(pass.time.as_secs_f64()),
                Weights::Full => self.full_seconds.push(pass.time.as_secs_f64()),
            }
        }
        if !step.passes.is_empty() {
            self.rows = Some(step.passes.iter().map(|pass| pass.rows).sum());
        }
        self.load = Some(*load);
    }
}

/// Index of a value in the list of all its kind.
fn place<T: PartialEq>(all: &[T], value: &T) -> usize {
    // Both enums list every variant, so there is always one; the last index keeps this total.
    all.iter().position(|known| known == value).unwrap_or(all.len() - 1)
}

/// The metrics of one model.
#[derive(Debug)]
pub(crate) struct Metrics {
    record: Mutex<Record>,
    /// `None` where the server has no metrics. Locked while pushing, so that gauges stay in order.
    metrics: Mutex<Option<Labelled>>,
}

/// Metrics with the labels of a model.
#[derive(Debug)]
struct Labelled {
    decisions: [Metric; Decision::ALL.len()],
    rewinds: [Metric; RewindReason::ALL.len()],
    rewound_tokens: Metric,
    entropy: Metric,
    /// Made with their first value: what was not measured yet is not 0.
    threshold: Late,
    threshold_offset: Late,
    chip_celsius: Late,
    thermal_coefficient: Late,
    draft_seconds: Metric,
    full_seconds: Metric,
    active_seconds: Metric,
    batch_rows: Metric,
    waiting: Metric,
    prefilling: Metric,
    drafting: Metric,
    verifying: Metric,
    /// Set once; kept, or they would vanish.
    _memory: Vec<Metric>,
    blocks_max: Metric,
    blocks_free: Metric,
    blocks_used: Metric,
    blocks_tokens_per: Metric,
    first_token: Metric,
    later_token: Metric,
    request: Metric,
    prompt_tokens: Metric,
    generation_tokens: Metric,
}

/// A gauge that exists while it has a value.
#[derive(Debug)]
struct Late {
    family: Family,
    labels: [(&'static str, String); 2],
    metric: Option<Metric>,
}

impl Late {
    /// Takes the gauge away until the next value.
    fn clear(&mut self) {
        self.metric = None;
    }

    fn set(&mut self, value: f64) {
        if self.metric.is_none() {
            let labels = self.labels.each_ref().map(|(name, value)| (*name, value.as_str()));
            self.metric = self.family.metric(&labels).ok();
        }
        if let Some(metric) = &self.metric {
            metric.set(value);
        }
    }
}

impl Metrics {
    /// The metrics of a model, with the memory it takes and what its empty engine holds.
    ///
    /// # Errors
    /// The server refuses one.
    pub(crate) fn new(
        families: &Families,
        model: &str,
        version: u64,
        load: Load,
        memory: Memory,
    ) -> Result<Self, Error> {
        let metrics = match &families.0 {
            Some(families) => Some(Labelled::new(families, model, version, memory)?),
            None => None,
        };
        let record = Record { load: Some(load), ..Record::default() };
        Ok(Self { record: Mutex::new(record), metrics: Mutex::new(metrics) })
    }

    /// Adds figures.
    pub(crate) fn record(&self, add: impl FnOnce(&mut Record)) {
        add(&mut lock(&self.record));
    }

    /// Shows Triton everything recorded so far.
    pub(crate) fn push(&self) {
        let mut metrics = lock(&self.metrics);
        let record = mem::take(&mut *lock(&self.record));
        if let Some(metrics) = &mut *metrics {
            metrics.push(&record);
        }
    }

    /// Shows Triton the temperature, and the offset of thresholds if there is a rewind budget.
    pub(crate) fn condition(&self, Condition { thermal: reading, offset }: Condition) {
        if let Some(metrics) = &mut *lock(&self.metrics) {
            if let Some(offset) = offset {
                metrics.threshold_offset.set(offset.into());
            }
            metrics.thermal_coefficient.set(reading.coefficient.into());
            match reading.celsius {
                Some(celsius) => metrics.chip_celsius.set(celsius.into()),
                None => metrics.chip_celsius.clear(),
            }
        }
    }
}

impl Labelled {
    fn new(
        families: &All<Family>,
        model: &str,
        version: u64,
        memory: Memory,
    ) -> Result<Self, Error> {
        let version = version.to_string();
        let plain = |family: &Family| family.metric(&[("model", model), ("version", &version)]);
        let with = |family: &Family, label: &str, value: &str| {
            family.metric(&[("model", model), ("version", &version), (label, value)])
        };
        let late = |family: &Family| Late {
            family: family.clone(),
            labels: [("model", model.to_owned()), ("version", version.clone())],
            metric: None,
        };
        let state = |name| with(&families.sequences, "state", name);
        let block = |name| with(&families.kv_blocks, "kv_cache_block_type", name);
        Ok(Self {
            decisions: each(&Decision::ALL, |decision| {
                with(&families.tokens, "decision", decision.name())
            })?,
            rewinds: each(&RewindReason::ALL, |reason| {
                with(&families.rewinds, "reason", reason.name())
            })?,
            rewound_tokens: plain(&families.rewound_tokens)?,
            entropy: plain(&families.entropy)?,
            threshold: late(&families.threshold),
            threshold_offset: late(&families.threshold_offset),
            chip_celsius: late(&families.chip_celsius),
            thermal_coefficient: late(&families.thermal_coefficient),
            draft_seconds: with(&families.pass_seconds, "pass", "draft")?,
            full_seconds: with(&families.pass_seconds, "pass", "full")?,
            active_seconds: plain(&families.active_seconds)?,
            batch_rows: plain(&families.batch_rows)?,
            waiting: state("waiting")?,
            prefilling: state("prefilling")?,
            drafting: state("drafting")?,
            verifying: state("verifying")?,
            _memory: memory
                .parts()
                .into_iter()
                .map(|(part, bytes)| {
                    let metric = with(&families.memory, "part", part)?;
                    metric.set(bytes as f64);
                    Ok(metric)
                })
                .collect::<Result<_, Error>>()?,
            blocks_max: block("max")?,
            blocks_free: block("free")?,
            blocks_used: block("used")?,
            blocks_tokens_per: block("tokens_per")?,
            first_token: plain(&families.first_token)?,
            later_token: plain(&families.later_token)?,
            request: plain(&families.request)?,
            prompt_tokens: plain(&families.prompt_tokens)?,
            generation_tokens: plain(&families.generation_tokens)?,
        })
    }

    fn push(&mut self, record: &Record) {
        for (metric, &count) in self.decisions.iter().zip(&record.decisions) {
            metric.add(count as f64);
        }
        for (metric, &count) in self.rewinds.iter().zip(&record.rewinds) {
            metric.add(count as f64);
        }
        self.rewound_tokens.add(record.rewound_tokens as f64);
        self.prompt_tokens.add(record.prompt_tokens as f64);
        self.generation_tokens.add(record.generation_tokens as f64);
        self.active_seconds.add(record.active_seconds);
        record.entropy.iter().for_each(|&value| self.entropy.observe(value.into()));
        for (metric, values) in [
            (&self.draft_seconds, &record.draft_seconds),
            (&self.full_seconds, &record.full_seconds),
            (&self.first_token, &record.first_token),
            (&self.later_token, &record.later_token),
            (&self.request, &record.request),
        ] {
            values.iter().for_each(|&value| metric.observe(value));
        }
        if let Some(rows) = record.rows {
            self.batch_rows.set(rows as f64);
        }
        if let Some(threshold) = record.threshold {
            self.threshold.set(threshold.into());
        }
        if let Some(load) = &record.load {
            self.waiting.set(load.waiting as f64);
            self.prefilling.set(load.prefilling as f64);
            self.drafting.set(load.drafting as f64);
            self.verifying.set(load.verifying as f64);
            self.blocks_max.set(load.pages.into());
            self.blocks_used.set(load.pages_used.into());
            self.blocks_free.set(load.pages.saturating_sub(load.pages_used).into());
            self.blocks_tokens_per.set(load.page_tokens.into());
        }
    }
}

/// What a model is like at a moment, whatever its requests are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    /// The chip's temperature and KT.
    pub(crate) thermal: ThermalReading,
    /// How far thresholds are from the profiles' own, in noise floors, if there is a rewind budget.
    pub(crate) offset: Option<f32>,
}

/// Sees every iteration of an engine, on the engine's thread.
#[derive(Debug)]
pub(crate) struct StepObserver(pub(crate) Arc<Metrics>);

impl Observer for StepObserver {
    fn step(&mut self, step: &Step, load: &Load, active: Duration) {
        self.0.record(|record| record.step(step, load, active));
    }
}

/// Pushes now and then, on a thread of its own, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the thread. `condition` reads what is to be shown that no request brings.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub(crate) fn start(
        metrics: Arc<Metrics>,
        condition: impl Fn() -> Condition + Send + 'static,
    ) -> Result<Self, Error> {
        let (stop, stopped) = bounded(0);
        let thread = std::thread::Builder::new()
            .name("rewind-metrics".into())
            .spawn(move || {
                loop {
                    metrics.condition(condition());
                    metrics.push();
                    if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
            .map_err(|error| Error::internal(format!("no thread for metrics: {error}")))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics thread panicked");
        }
    }
}

fn each<T, const N: usize>(
    all: &[T; N],
    make: impl Fn(&T) -> Result<Metric, Error>,
) -> Result<[Metric; N], Error> {
    let metrics = all.iter().map(make).collect::<Result<Vec<_>, _>>()?;
    metrics.try_into().map_err(|_| Error::internal("metrics were lost"))
}

/// A panic while holding one of these locks leaves figures that are at worst incomplete.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
