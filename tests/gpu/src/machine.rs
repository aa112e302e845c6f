//! The GPU under test.

use std::process::{Command, Stdio};

use rewind_cuda::{CudaError, Driver, gpus};

/// Opens a GPU.
///
/// # Errors
/// One line for a person: what is missing.
pub fn open(ordinal: usize) -> Result<Driver, String> {
    let refused = |error: CudaError| match error {
        CudaError::NoKernels(_) => error.to_string(),
        _ => format!("no GPU: {error}"),
    };
    gpus().map_err(refused)?;
    Driver::open(ordinal).map_err(refused)
}

/// What the driver's own tool says about the GPU, where it is installed: driver, clocks, power limit.
pub fn particulars(ordinal: usize) -> Option<String> {
    let fields = "driver_version,clocks.max.sm,clocks.max.memory,power.limit";
    let output = Command::new("nvidia-smi")
        .arg(format!("--id={ordinal}"))
        .arg(format!("--query-gpu={fields}"))
        .arg("--format=csv,noheader")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut values = text.lines().next()?.split(", ");
    let (driver, sm, memory, power) =
        (values.next()?, values.next()?, values.next()?, values.next()?);
    Some(format!("driver {driver}, at most {sm} (memory {memory}), power limit {power}"))
}
