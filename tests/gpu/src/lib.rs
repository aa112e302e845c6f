//! Checks and measurements on a GPU.
//!
//! Two programs, `gpu-check` and `gpu-bench`, that need nothing but a driver and stop after a given time,
//! because a GPU is often lent: `cargo xtask gpu-check` builds them here, and the folder it makes can be
//! carried to where a GPU is. Both print a short table last and write all they found as Markdown and JSON.
#![forbid(unsafe_code)]

pub mod bandwidth;
pub mod budget;
mod cases;
mod child;
pub mod demo;
pub mod executor;
pub mod machine;
pub mod peer;
pub mod report;
pub mod rig;
pub mod sanitizer;
pub mod shapes;
pub mod speed;
pub mod suite;
pub mod traffic;
mod witness;
