//! Host memory that the GPU copies from and to at full speed.

use std::ffi::c_uint;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result};
use rewind_kernels::DeviceError;

/// Page-locked host memory, zeroed.
#[derive(Debug)]
pub(super) struct Pinned {
    start: NonNull<u8>,
    bytes: usize,
    /// Kept alive, since freeing needs it.
    context: Arc<CudaContext>,
}

// SAFETY: the memory belongs to this value alone, and CUDA may be called from any thread that has
// bound the context, which every use does.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Takes memory. Write-combining is off: the host reads what downloads leave here.
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DeviceError> {
        const FLAGS: c_uint = 0;
        let refused = DeviceError::OutOfMemory { wanted: bytes, place: "pinned host" };
        // SAFETY: the context is bound by the caller; the memory is written below before it is read.
        let start = unsafe { result::malloc_host(bytes.max(1), FLAGS) };
        let start = start.ok().and_then(|start| NonNull::new(start.cast::<u8>())).ok_or(refused)?;
        // SAFETY: so many bytes were just handed out here.
        unsafe { start.write_bytes(0, bytes.max(1)) };
        Ok(Self { start, bytes, context: Arc::clone(context) })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// The bytes. The caller has waited for whatever the device writes here.
    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` initialized bytes that this value owns.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The bytes, to be changed. The caller has waited for whatever the device reads or writes here.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: it came from `malloc_host` and is freed once. A failure has nobody to tell.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
        }
    }
}
