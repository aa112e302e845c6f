//! One generated suite for every kernel.
//!
//! A case makes inputs from a seed, runs a kernel on whatever [`Device`] it is given and compares
//! with a naive reference in plain Rust that stands beside it. The emulator's tests run all cases
//! without a GPU; `gpu-check` runs the same on one.
#![forbid(unsafe_code)]

mod attend;
mod choose;
mod embed;
mod finish;
mod head;
mod lab;
mod logprobs;
mod norm;
mod pages;
mod product;
mod rotate;
mod sampling;
mod tile;
mod weights;

use rewind_kernels::Device;

pub use lab::{Lab, Random};

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Operation, then what is special, such as `norm: odd widths`.
    pub name: &'static str,
    /// Runs it; an error says what differs.
    pub run: fn(&mut Lab<'_>) -> anyhow::Result<()>,
}

/// All cases.
pub fn cases() -> Vec<Case> {
    [
        embed::CASES,
        norm::CASES,
        product::CASES,
        rotate::CASES,
        attend::CASES,
        pages::CASES,
        head::CASES,
        choose::CASES,
        finish::CASES,
        logprobs::CASES,
    ]
    .concat()
}

/// Runs one case on a device.
///
/// # Errors
/// What differs from the reference, or what the device could not do.
pub fn run(case: &Case, device: &mut dyn Device) -> anyhow::Result<()> {
    let mut lab = Lab::new(device);
    let result = (case.run)(&mut lab);
    let freed = lab.close();
    result.and(freed)
}
