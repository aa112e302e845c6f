//! `libtriton_rewind.so`: Rewind as a backend of Triton Inference Server.
//!
//! The server looks up the functions of `ffi::entry`, which end here, on the safe side. From there:
//! [`config`] says what the model's configuration means, [`placement`] on which device it goes, [`model`]
//! loads it, a driver ([`inflight`] or
//! [`iterative`]) takes requests, [`decode`] reads them, [`answer`] follows their events, [`encode`]
//! writes responses, [`exchange`] makes sure that each request is answered, counted and released once.

#![deny(unsafe_code)]

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
mod outbox;
mod placement;

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

fn model_initialize(handle: &ModelHandle, families: &Families) -> Result<Model, Error> {
    let model = Model::load(handle, families)?;
    tracing::info!("TRITONBACKEND_ModelInitialize: {} (version {})", model.name(), model.version());
    Ok(model)
}

fn model_finalize(model: Model) {
    tracing::info!("TRITONBACKEND_ModelFinalize: {} (version {})", model.name(), model.version());
    // The instances are gone, so nobody else has the driver: its threads end in here.
    drop(model);
}

fn instance_initialize(handle: &InstanceHandle, model: &Model) -> Result<Instance, Error> {
    model.check(handle)?;
    Instance::new(handle, model.name(), model.driver())
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
