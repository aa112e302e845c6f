//! A loaded model and its instances.

use std::fmt;
use std::sync::Arc;

use rewind_serving::{AnyEngine, Device, Options, Processor};

use crate::answer::{Answer, Terms};
use crate::config::{Config, Scheduling};
use crate::decode::{Decoded, decode, request_error};
use crate::encode::Encoder;
use crate::exchange::Exchange;
use crate::ffi::{
    Code, Error, Holds, InstanceHandle, MemoryKind, ModelHandle, Request, Responder, now,
};
use crate::inflight::Inflight;
use crate::iterative::Iterative;
use crate::metrics::{Condition, Families, Metrics, Ticker};
use crate::placement;

/// A loaded model: one engine, however many instances point at it.
#[derive(Debug)]
pub(crate) struct Model {
    name: String,
    version: u64,
    /// The parameter `device`.
    device: Device,
    /// Where the engine is.
    processor: Processor,
    // In the order of shutdown: when the driver is gone, the ticker has nothing left to push. Shared
    // with the instances, which Triton finalizes before the model.
    driver: Arc<dyn Driver>,
    _ticker: Ticker,
}

/// What both drivers serve with.
#[derive(Debug)]
pub(crate) struct Service {
    model: Arc<rewind_serving::Model>,
    /// Whether tensors have a batch dimension.
    batched: bool,
    /// Where figures go.
    pub(crate) metrics: Arc<Metrics>,
}

/// A request that is ready for the engine, and its answer.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// For the engine.
    pub(crate) request: rewind_engine::Request,
    /// For the client.
    pub(crate) answer: Answer,
}

/// Whoever has the engine and decides when it is stepped. Dropping it waits for its threads.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// Takes over a batch; every request of it is answered and released, here or later.
    fn execute(&self, batch: Vec<Exchange>);

    /// Whether the engine still works. Cheap, as health checks ask often.
    fn is_alive(&self) -> bool;
}

/// One instance of a model.
#[derive(Debug)]
pub(crate) struct Instance {
    /// The model's name.
    model: String,
    driver: Arc<dyn Driver>,
    holds: Holds,
}

impl Model {
    /// Completes the configuration and loads the model.
    ///
    /// # Errors
    /// A setting, a file or a tensor that is wrong, by name.
    pub(crate) fn load(handle: &ModelHandle, families: &Families) -> Result<Self, Error> {
        let (name, version) = (handle.name()?, handle.version()?);
        let mut config = handle.config()?;
        let (read, changed) = Config::read(&mut config, handle.wants_completion()?)?;
        if changed {
            handle.set_config(&config)?;
        }
        let mut options = Options::from_parameters(&handle.folder()?, &read.parameters)
            .map_err(|error| Error::invalid(format!("config.pbtxt: {error}")))?;
        let device = options.device;
        options.device = placement::device(device, &read.instances)
            .map_err(|error| error.context("config.pbtxt"))?;
        let (model, engine) = rewind_serving::Model::load(options)
            .map_err(|error| Error::new(Code::InvalidArg, error.to_string()))?;
        report_memory(handle, &model)?;
        let processor = model.processor();
        let (driver, ticker) = start(&name, version, &read, model, engine, families)?;
        Ok(Self { name, version, device, processor, driver, _ticker: ticker })
    }

    /// Checks that an instance is where the engine is.
    ///
    /// # Errors
    /// It was put elsewhere after the model was loaded.
    pub(crate) fn check(&self, handle: &InstanceHandle) -> Result<(), Error> {
        placement::check(self.device, handle.kind()?, self.processor)
    }

    /// Its name in the repository.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its version.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// What executes its requests.
    pub(crate) fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver)
    }
}

/// Starts what serves a model.
fn start(
    name: &str,
    version: u64,
    config: &Config,
    model: Arc<rewind_serving::Model>,
    engine: AnyEngine,
    families: &Families,
) -> Result<(Arc<dyn Driver>, Ticker), Error> {
    let metrics = Arc::new(Metrics::new(families, name, version, engine.load(), model.memory())?);
    let service = Arc::new(Service {
        model: Arc::clone(&model),
        batched: config.batched,
        metrics: Arc::clone(&metrics),
    });
    let driver: Arc<dyn Driver> = match &config.scheduling {
        Scheduling::Inflight => Arc::new(Inflight::start(service, engine)?),
        Scheduling::Iterative { ready } => {
            Arc::new(Iterative::start(service, engine, ready.clone())?)
        }
    };
    let condition =
        move || Condition { thermal: model.thermal(), offset: model.threshold_offset() };
    let ticker = Ticker::start(metrics, condition)?;
    Ok((driver, ticker))
}

/// Tells Triton how much memory unloading the model would free, and where.
fn report_memory(handle: &ModelHandle, model: &rewind_serving::Model) -> Result<(), Error> {
    let memory = model.memory();
    match model.processor() {
        Processor::Cpu => handle.report_memory(&[(MemoryKind::Host, memory.host)]),
        Processor::Cuda(gpu) => handle.report_memory(&[
            (MemoryKind::Gpu(gpu), memory.gpu),
            (MemoryKind::PinnedHost, memory.host),
        ]),
    }
}

impl Service {
    /// Decodes, checks and tokenizes a request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn admit(&self, exchange: &Exchange) -> Result<Admitted, Error> {
        let Decoded { prompt, parameters, outputs } = decode(exchange.request()?, self.batched)?;
        let echo = parameters.echoes_prompt().map_err(request_error)?;
        let prepared = self.model.prepare(prompt, &parameters).map_err(request_error)?;
        let threshold = prepared.frozen.gate.threshold;
        // Else the prompt chooses it, and it is told then.
        if prepared.candidates.is_empty() {
            self.metrics.record(|record| record.threshold(threshold));
        }
        tracing::debug!(
            id = exchange.request()?.id()?,
            prompt_tokens = prepared.prompt_tokens,
            policy = %prepared.request.policy,
            profile = %prepared.frozen.profile,
            candidates = prepared.candidates.len(),
            threshold,
            seed = prepared.seed,
            "request admitted"
        );
        let answer = Answer::new(&parameters, &outputs, &prepared, echo, exchange.start());
        Ok(Admitted { request: prepared.request, answer })
    }

    /// Notes that a request has ended well.
    pub(crate) fn finished(&self, answer: &Answer) {
        self.model.finished(answer.tally());
    }

    /// What builds the responses of a request.
    pub(crate) fn encoder<'a>(
        &'a self,
        terms: &'a Terms,
    ) -> Encoder<'a, impl Fn(u32) -> String + 'a> {
        let token_text =
            |token| String::from_utf8_lossy(self.model.tokenizer().piece(token)).into_owned();
        Encoder { terms, batched: self.batched, token_text }
    }
}

impl Instance {
    /// An instance of the model of this name.
    ///
    /// # Errors
    /// The server does not tell its name or kind.
    pub(crate) fn new(
        handle: &InstanceHandle,
        model: &str,
        driver: Arc<dyn Driver>,
    ) -> Result<Self, Error> {
        let (name, kind) = (handle.name()?, handle.kind()?);
        tracing::info!("TRITONBACKEND_ModelInstanceInitialize: {name} ({kind})");
        Ok(Self { model: model.to_owned(), driver, holds: handle.holds() })
    }

    /// Takes over a batch; every request of it is answered and released, here or later.
    pub(crate) fn execute(&self, batch: Vec<(Request, Responder)>) {
        let start = now();
        let batch = batch
            .into_iter()
            .map(|(request, responder)| Exchange::new(request, responder, self.holds.hold(), start))
            .collect();
        self.driver.execute(batch);
    }

    /// Whether the engine can serve.
    ///
    /// # Errors
    /// Unavailable: it died of an internal error.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        if self.driver.is_alive() {
            Ok(())
        } else {
            Err(Error::unavailable(format!(
                "the engine of {} stopped after an internal error: reload the model",
                self.model
            )))
        }
    }

    /// Waits until no request needs the instance.
    pub(crate) fn finalize(self) {
        self.holds.wait();
    }
}
