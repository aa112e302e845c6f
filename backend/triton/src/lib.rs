//! `libtriton_rewind.so`: Rewind as a backend of Triton Inference Server.
//!
//! The server looks up the functions of `ffi::entry`, which end here, on the safe side. From there:
//! [`config`] says what the model's configuration means, [`model`] loads it, a driver ([`inflight`] or
//! [`iterative`]) takes requests, [`decode`] reads them, [`answer`] follows their events, [`encode`]
//! writes responses, [`exchange`] makes sure that each request is answered, counted and released once.

mod answer;
mod config;
mod decode;
mod encode;
mod exchange;
mod ffi;
mod inflight;
mod iterative;
mod metrics;
mod model;

use std::sync::Arc;

use ffi::{BackendHandle, Error, InstanceHandle, ModelHandle, Request, Responder};
use metrics::Families;
use model::{Instance, Model};

fn initialize(backend: &BackendHandle) -> Result<Box<Families>, Error> {
    ffi::install_log();
    let (major, minor) = backend.check_version()?;
    tracing::info!(
        "TRITONBACKEND_Initialize: {} {}, server speaks backend API {major}.{minor}",
        backend.name()?,
        env!("CARGO_PKG_VERSION"),
    );
    Ok(Box::new(Families::new()?))
}

fn finalize(families: Box<Families>) {
    drop(families);
}

fn model_initialize(handle: &ModelHandle, families: &Families) -> Result<Box<Arc<Model>>, Error> {
    let model = Model::load(handle, families)?;
    tracing::info!("TRITONBACKEND_ModelInitialize: {} (version {})", model.name(), model.version());
    Ok(Box::new(Arc::new(model)))
}

fn model_finalize(model: Arc<Model>) {
    tracing::info!("TRITONBACKEND_ModelFinalize: {} (version {})", model.name(), model.version());
    // The instances are gone, so this is the last reference: the driver's threads end in here.
    drop(model);
}

fn instance_initialize(handle: &InstanceHandle, model: &Arc<Model>) -> Result<Instance, Error> {
    Instance::new(handle, model)
}

fn instance_finalize(instance: Instance) {
    instance.finalize();
}

fn execute(instance: &Instance, batch: Vec<(Request, Responder)>) {
    instance.execute(batch);
}

fn instance_ready(instance: &Instance) -> Result<(), Error> {
    instance.ready()
}
