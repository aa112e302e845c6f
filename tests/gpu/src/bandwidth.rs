//! How fast the device copies its own memory: the yardstick for everything that streams weights.

use std::time::Instant;

use anyhow::Result;
use rewind_kernels::{Device, Fill};

/// Sizes in bytes; the last is far beyond any cache.
pub const SIZES: [usize; 3] = [64 << 20, 256 << 20, 1 << 30];

/// Copies in one timed run, and runs; the fastest counts.
const COPIES: usize = 16;
const RUNS: usize = 5;

/// Bytes read and written a second by a copy of `bytes` within the device.
///
/// # Errors
/// Two buffers of that size cannot be had, or the device fails.
pub fn copy_rate(device: &mut dyn Device, bytes: usize) -> Result<f64> {
    let from = device.allocate(bytes, Fill::Zeros)?;
    let to = device.allocate(bytes, Fill::Zeros)?;
    let mut best: f64 = 0.0;
    // The first run warms up.
    for _ in 0..=RUNS {
        settle(device, to.address)?;
        let started = Instant::now();
        for _ in 0..COPIES {
            device.copy(from.address, to.address, bytes)?;
        }
        settle(device, to.address)?;
        let rate = (2 * bytes * COPIES) as f64 / started.elapsed().as_secs_f64();
        best = best.max(rate);
    }
    device.free(to)?;
    device.free(from)?;
    Ok(best)
}

/// Waits until everything queued has run.
fn settle(device: &mut dyn Device, at: rewind_kernels::arguments::Address) -> Result<()> {
    let download = device.download(at, 4)?;
    device.finish(download, &mut Vec::new())?;
    Ok(())
}
