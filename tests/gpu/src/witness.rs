//! A device that remembers what came back from another one.

use rewind_kernels::arguments::Address;
use rewind_kernels::{
    Description, Device, DeviceError, Download, Fill, Graph, HostMemory, Launch, Mark, Memory,
};
use sha2::{Digest, Sha256};

/// Hands every call on, and digests all bytes that came back to the host.
pub(crate) struct Witness<'a> {
    device: &'a mut dyn Device,
    seen: Sha256,
}

impl<'a> Witness<'a> {
    pub(crate) fn new(device: &'a mut dyn Device) -> Self {
        Self { device, seen: Sha256::new() }
    }

    /// The digest of what came back, in the order in which it came.
    pub(crate) fn digest(self) -> [u8; 32] {
        self.seen.finalize().into()
    }
}

impl Device for Witness<'_> {
    fn finish(&mut self, download: Download, into: &mut Vec<u8>) -> Result<(), DeviceError> {
        let before = into.len();
        self.device.finish(download, into)?;
        let new = into.get(before..).unwrap_or_default();
        self.seen.update((new.len() as u64).to_le_bytes());
        self.seen.update(new);
        Ok(())
    }

    fn description(&self) -> &Description {
        self.device.description()
    }

    fn allocate(&mut self, bytes: usize, fill: Fill) -> Result<Memory, DeviceError> {
        self.device.allocate(bytes, fill)
    }

    fn free(&mut self, memory: Memory) -> Result<(), DeviceError> {
        self.device.free(memory)
    }

    fn upload(&mut self, bytes: &[u8], to: Address) -> Result<(), DeviceError> {
        self.device.upload(bytes, to)
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.device.copy(from, to, bytes)
    }

    fn launch(&mut self, launch: Launch<'_>) -> Result<(), DeviceError> {
        self.device.launch(launch)
    }

    fn download(&mut self, from: Address, bytes: usize) -> Result<Download, DeviceError> {
        self.device.download(from, bytes)
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        self.device.begin_capture()
    }

    fn end_capture(&mut self) -> Result<Graph, DeviceError> {
        self.device.end_capture()
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.device.replay(graph)
    }

    fn keep_on_host(&mut self, bytes: &[u8]) -> Result<HostMemory, DeviceError> {
        self.device.keep_on_host(bytes)
    }

    fn prefetch(
        &mut self,
        from: HostMemory,
        to: Address,
        after: Option<Mark>,
    ) -> Result<Mark, DeviceError> {
        self.device.prefetch(from, to, after)
    }

    fn mark(&mut self) -> Result<Mark, DeviceError> {
        self.device.mark()
    }

    fn wait_for(&mut self, mark: Mark) -> Result<(), DeviceError> {
        self.device.wait_for(mark)
    }
}
