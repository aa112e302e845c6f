//! What runs kernels.

use crate::arguments::Address;

/// A machine that runs the kernels: an NVIDIA GPU, or the emulator.
///
/// There is one stream: uploads, copies, launches and downloads happen in the order of the calls,
/// asynchronously where the machine can. [`prefetch`](Device::prefetch) alone runs beside it.
/// Everything that is allocated is freed with the device at the latest.
pub trait Device {
    /// What it is; constant.
    fn description(&self) -> &Description;

    /// Memory, aligned to 256 bytes.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn allocate(&mut self, bytes: usize, fill: Fill) -> Result<Memory, DeviceError>;

    /// Gives memory back, once everything queued so far has run.
    ///
    /// # Errors
    /// The device is lost.
    fn free(&mut self, memory: Memory) -> Result<(), DeviceError>;

    /// Copies bytes to the device; they may be changed when the call returns.
    ///
    /// # Errors
    /// The device is lost, or the destination is not allocated.
    fn upload(&mut self, bytes: &[u8], to: Address) -> Result<(), DeviceError>;

    /// Copies within the device; the ranges do not overlap.
    ///
    /// # Errors
    /// The device is lost, or a range is not allocated.
    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError>;

    /// Queues a kernel.
    ///
    /// # Errors
    /// No kernel of that name, arguments of another size, or the launch is refused. What a kernel
    /// does wrong while it runs may show in any later call.
    fn launch(&mut self, launch: Launch<'_>) -> Result<(), DeviceError>;

    /// Queues a copy to the host.
    ///
    /// # Errors
    /// The device is lost, or the source is not allocated.
    fn download(&mut self, from: Address, bytes: usize) -> Result<Download, DeviceError>;

    /// Waits for a download and appends its bytes to `into`.
    ///
    /// # Errors
    /// The device is lost.
    fn finish(&mut self, download: Download, into: &mut Vec<u8>) -> Result<(), DeviceError>;

    /// Starts to record: launches and copies within the device are not run but kept until
    /// [`end_capture`](Device::end_capture). Nothing else may be called in between.
    ///
    /// # Errors
    /// The device is lost.
    fn begin_capture(&mut self) -> Result<(), DeviceError>;

    /// Ends recording.
    ///
    /// # Errors
    /// Something in between cannot be recorded.
    fn end_capture(&mut self) -> Result<Graph, DeviceError>;

    /// Queues everything that was recorded, with the arguments of then.
    ///
    /// # Errors
    /// The device is lost.
    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError>;

    /// Keeps bytes in host memory that the device can copy from at full speed.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn keep_on_host(&mut self, bytes: &[u8]) -> Result<HostMemory, DeviceError>;

    /// Copies host memory to the device beside the stream, once `after` is reached.
    ///
    /// # Errors
    /// The device is lost, or the destination is not allocated.
    fn prefetch(
        &mut self,
        from: HostMemory,
        to: Address,
        after: Option<Mark>,
    ) -> Result<Mark, DeviceError>;

    /// A point of the stream: reached when everything queued so far has run.
    ///
    /// # Errors
    /// The device is lost.
    fn mark(&mut self) -> Result<Mark, DeviceError>;

    /// Holds the stream until `mark`, the end of a [`prefetch`](Device::prefetch), is reached.
    ///
    /// # Errors
    /// The device is lost.
    fn wait_for(&mut self, mark: Mark) -> Result<(), DeviceError>;
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Product name, such as "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Architecture as kernels are built for it, such as `sm_90`.
    pub architecture: String,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Memory in all, bytes.
    pub memory: u64,
    /// Memory that was free when the device was opened, bytes.
    pub free_memory: u64,
    /// Where it is on the bus, `domain:bus:device.function` in hexadecimal, such as `0000:3B:00.0`:
    /// what other libraries know it by. `None` if it is on none.
    pub pci_bus_id: Option<String>,
}

/// Device memory that was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Memory {
    /// Where it starts.
    pub address: Address,
    /// Its length.
    pub bytes: usize,
}

/// What new memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Anything; it must be written before it is read.
    Nothing,
    /// Zeros.
    Zeros,
}

/// A kernel over a grid.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks, in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, a multiple of 32.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    /// The argument struct's bytes.
    pub arguments: &'a [u8],
}

/// Names a queued copy to the host.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Download(pub u64);

/// Names a recorded sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub usize);

/// Names bytes kept on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostMemory(pub usize);

/// Names a point of the stream or the end of a prefetch; good until 256 later ones were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark(pub u64);

/// Why a device could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Memory was refused.
    #[error("{wanted} bytes of {place} memory cannot be had")]
    OutOfMemory {
        /// Bytes asked for.
        wanted: usize,
        /// `device` or `pinned host`.
        place: &'static str,
    },
    /// The kernels have none of that name.
    #[error("there is no kernel {0:?}")]
    NoKernel(&'static str),
    /// A launch or copy was refused; nothing was queued.
    #[error("{what}: {message}")]
    Refused {
        /// The kernel or copy.
        what: String,
        /// What is wrong with it.
        message: String,
    },
    /// A kernel or copy failed; the device answers nothing any more.
    #[error("{0}")]
    Lost(String),
}
