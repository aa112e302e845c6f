//! The operation suite on a device: every case is right, and comes out the same bits when run again.

use anyhow::Result;
use rewind_kernels::Device;
use rewind_kernels_suite::cases;

use crate::budget::Budget;
use crate::cases::each;
use crate::report::{Findings, Outcome};
use crate::witness::Witness;

/// Runs every case once against its reference.
///
/// # Errors
/// None; what goes wrong is in the outcome.
pub fn right(device: &mut dyn Device, budget: &Budget, findings: &mut Findings) -> Result<Outcome> {
    each(
        &cases(),
        |case| case.name,
        budget,
        findings,
        |case| rewind_kernels_suite::run(case, device),
    )
}

/// Runs every case three times and compares all bytes that come back.
///
/// # Errors
/// None; what goes wrong is in the outcome.
pub fn repeatable(
    device: &mut dyn Device,
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    each(
        &cases(),
        |case| case.name,
        budget,
        findings,
        |case| {
            let mut digest = || {
                let mut witness = Witness::new(&mut *device);
                rewind_kernels_suite::run(case, &mut witness)?;
                Ok(witness.digest())
            };
            let first: Result<[u8; 32]> = digest();
            let first = first?;
            for run in 2..=3 {
                anyhow::ensure!(digest()? == first, "run {run} gave other bits than the first");
            }
            Ok(())
        },
    )
}
