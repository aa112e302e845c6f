//! Which GPUs there are.

use std::ffi::CStr;

use cudarc::driver::{result, sys};
use rewind_kernels::Description;

use super::lost;
use crate::error::CudaError;

/// The GPUs of this machine, in the driver's order, which is that of `cuda:N`.
///
/// # Errors
/// What is missing: the driver, a GPU, kernels in this build.
pub fn gpus() -> Result<Vec<Description>, CudaError> {
    ready()?;
    let count = result::device::get_count().map_err(|error| CudaError::Driver(lost(error)))?;
    if count == 0 {
        return Err(CudaError::NoGpu);
    }
    (0..count).map(|ordinal| describe(ordinal as usize)).collect()
}

/// Whether the kernels are built for a GPU of this architecture: sm_80 (Ampere) and later.
pub fn is_supported(gpu: &Description) -> bool {
    const OLDEST: u32 = 80;
    let number = gpu.architecture.trim_start_matches("sm_").parse::<u32>();
    number.is_ok_and(|number| number >= OLDEST)
}

/// Starts the driver.
pub(super) fn ready() -> Result<(), CudaError> {
    // Asked before anything else: without the library, the first call of cudarc would panic.
    // SAFETY: opens a shared library, whose initializers are NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    match result::init() {
        // Last: where there is no GPU, kernels are not what is missing.
        Ok(()) => Ok(rewind_kernels::binary().map(drop)?),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(CudaError::NoGpu),
        Err(error) => Err(CudaError::Driver(lost(error))),
    }
}

/// What one GPU is. Its free memory is left 0: only a context can tell.
pub(super) fn describe(ordinal: usize) -> Result<Description, CudaError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let failed = |error| CudaError::Driver(lost(error));
    let device = result::device::get(ordinal as i32).map_err(failed)?;
    // SAFETY: the device is the driver's own answer.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }.map_err(failed)?;
    Ok(Description {
        name: result::device::get_name(device).map_err(failed)?,
        architecture: format!("sm_{}{}", major.map_err(failed)?, minor.map_err(failed)?),
        multiprocessors: multiprocessors.map_err(failed)?.max(1) as u32,
        memory: memory as u64,
        free_memory: 0,
        pci_bus_id: pci_bus_id(device),
    })
}

/// Where a GPU is on the bus; `None` where the driver does not say.
fn pci_bus_id(device: sys::CUdevice) -> Option<String> {
    // "domain:bus:device.function" and a zero, with room to spare.
    let mut text = [0_u8; 32];
    // SAFETY: the driver writes a text and its zero, no more than the length it is told.
    let status =
        unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, device) };
    status.result().ok()?;
    CStr::from_bytes_until_nul(&text).ok()?.to_str().ok().map(str::to_owned)
}
