//! The executor as the engine sees it: whole passes over small random models.

mod batching;
mod loading;
mod outputs;
mod reference;
mod refusals;
mod tiny;
