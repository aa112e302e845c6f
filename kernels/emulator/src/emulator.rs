//! The emulator as a device: one stream on which everything has happened when a call returns.
//!
//! A prefetch, too, is done at once. So that a missing wait is seen all the same, its bytes count as not
//! written until something waits for it, and it is refused where a launch that it does not wait for uses
//! what it overwrites.

use std::collections::HashMap;
use std::mem;
use std::pin::Pin;

use cxx::UniquePtr;
use rewind_kernels::arguments::Address;
use rewind_kernels::{
    Description, Device, DeviceError, Download, Fill, Graph, HostMemory, Launch, Mark, Memory,
};

use crate::bridge::{self, Machine, Order, Wrong};

/// Dynamic shared memory that a block may have, as on sm_90.
const MOST_SHARED: u32 = 227 << 10;

/// How to run kernels.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// In which order blocks and threads go.
    pub order: Order,
    /// For [`Order::Shuffled`].
    pub seed: u64,
    /// Whether to look for races and for reads of what nobody wrote. Without, launches are several times
    /// as fast; bounds, alignment and collectives are checked all the same.
    pub checks: bool,
    /// Bytes that can be allocated. With what checks remember, the host needs about 10 times as much for
    /// memory that kernels touch in words, and 40 times in bytes.
    pub memory: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { order: Order::Ascending, seed: 0, checks: true, memory: 256 << 20 }
    }
}

/// What a kernel did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of mistake.
    pub wrong: Wrong,
    /// The kernel.
    pub kernel: &'static str,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// The thread in the block that was running.
    pub thread: u32,
    /// A second thread that the mistake involves: the one it raced with, or that waits elsewhere.
    pub other: Option<u32>,
    /// All of it in words, with the places in the source.
    pub message: String,
}

/// Runs kernels on the host, thread by thread.
///
/// After a [`Fault`] the device is lost, as a GPU would be: every further call fails with the same words.
/// Calls of the host that make no sense are [`DeviceError::Refused`] and change nothing.
pub struct Emulator {
    machine: UniquePtr<Machine>,
    description: Description,
    /// Bytes that are not allocated.
    free: usize,
    kernels: HashMap<String, Signature>,
    fault: Option<Fault>,
    downloads: HashMap<u64, Downloaded>,
    next_download: u64,
    capture: Option<Vec<Step>>,
    graphs: Vec<Vec<Step>>,
    host: Vec<Vec<u8>>,
    marks: Vec<Point>,
    /// Time up to which the host knows the stream to have come.
    known: u64,
}

/// Bytes on their way to the host.
struct Downloaded {
    bytes: Vec<u8>,
    /// When the stream came by.
    at: u64,
}

/// What a mark stands for.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// A time of the stream.
    Stream(u64),
    /// The end of a prefetch.
    Arrival { to: Address, bytes: usize },
}

/// What a launch of a kernel must look like.
#[derive(Clone, Copy, Debug)]
struct Signature {
    arguments: usize,
    threads: u32,
}

/// Something recorded.
#[derive(Clone, Debug)]
enum Step {
    Launch { kernel: &'static str, grid: [u32; 3], threads: u32, shared: u32, arguments: Vec<u8> },
    Copy { from: Address, to: Address, bytes: usize },
}

impl Emulator {
    /// An emulator with no memory in use.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn new(settings: Settings) -> Result<Self, DeviceError> {
        let machine = bridge::new_machine(settings.order, settings.seed, settings.checks)
            .map_err(|error| refused("emulator", &error))?;
        let kernels = bridge::signatures()
            .into_iter()
            .map(|one| (one.name, Signature { arguments: one.arguments, threads: one.threads }))
            .collect();
        let description = Description {
            name: "Rewind's emulator".into(),
            architecture: "emulator".into(),
            multiprocessors: 4,
            memory: settings.memory as u64,
            free_memory: settings.memory as u64,
            pci_bus_id: None,
        };
        Ok(Self {
            machine,
            description,
            free: settings.memory,
            kernels,
            fault: None,
            downloads: HashMap::new(),
            next_download: 0,
            capture: None,
            graphs: Vec::new(),
            host: Vec::new(),
            marks: Vec::new(),
            known: 0,
        })
    }

    /// What a kernel did wrong, if one did.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Names of all kernels, sorted.
    #[must_use]
    pub fn kernels(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Kernel files that the compiler refused when this crate was built, without `.cu`; none, unless one is
    /// being written. Their kernels are missing, the others are here.
    #[must_use]
    pub fn refused_kernel_files() -> Vec<&'static str> {
        env!("REFUSED_KERNEL_FILES").split_whitespace().collect()
    }

    fn alive(&self) -> Result<(), DeviceError> {
        match &self.fault {
            None => Ok(()),
            Some(fault) => Err(DeviceError::Lost(fault.message.clone())),
        }
    }

    /// The machine, for what must not happen while launches are recorded.
    fn outside_capture(&mut self, what: &str) -> Result<Pin<&mut Machine>, DeviceError> {
        self.alive()?;
        if self.capture.is_some() {
            return Err(refused(what, &"launches are being recorded"));
        }
        Ok(self.machine.pin_mut())
    }

    fn new_mark(&mut self, point: Point) -> Mark {
        self.marks.push(point);
        Mark(self.marks.len() as u64 - 1)
    }

    fn point(&self, mark: Mark) -> Result<Point, DeviceError> {
        let index = usize::try_from(mark.0).ok();
        index
            .and_then(|index| self.marks.get(index))
            .copied()
            .ok_or_else(|| refused("mark", &"this device has made no such mark"))
    }

    fn accept(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let kernel = self.kernels.get(launch.kernel).ok_or(DeviceError::NoKernel(launch.kernel))?;
        let refuse = |message: String| Err(refused(launch.kernel, &message));
        if launch.arguments.len() != kernel.arguments {
            let (given, wanted) = (launch.arguments.len(), kernel.arguments);
            return refuse(format!("{given} bytes of arguments; it takes {wanted}"));
        }
        if launch.threads == 0
            || !launch.threads.is_multiple_of(32)
            || launch.threads > kernel.threads
        {
            let (given, most) = (launch.threads, kernel.threads);
            return refuse(format!("{given} threads; a multiple of 32 up to {most} can be had"));
        }
        if launch.shared > MOST_SHARED {
            let given = launch.shared;
            return refuse(format!("{given} bytes of shared memory; {MOST_SHARED} can be had"));
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 0xffff || z > 0xffff {
            return refuse(format!("a grid of {x} × {y} × {z} blocks"));
        }
        Ok(())
    }

    fn run(&mut self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let Launch { kernel, grid, threads, shared, arguments } = *launch;
        let failure = self
            .machine
            .pin_mut()
            .launch(kernel, grid, threads, shared, arguments)
            .map_err(|error| refused(kernel, &error))?;
        if failure.wrong != Wrong::Nothing {
            self.fault = Some(Fault {
                wrong: failure.wrong,
                kernel,
                block: failure.block,
                thread: failure.thread,
                other: (failure.other != u32::MAX).then_some(failure.other),
                message: failure.message,
            });
        }
        self.alive()
    }
}

impl Device for Emulator {
    fn description(&self) -> &Description {
        &self.description
    }

    fn allocate(&mut self, bytes: usize, fill: Fill) -> Result<Memory, DeviceError> {
        let none = DeviceError::OutOfMemory { wanted: bytes, place: "device" };
        let left = self.free.checked_sub(bytes);
        let machine = self.outside_capture("allocate")?;
        let left = left.ok_or_else(|| none.clone())?;
        let address = machine.allocate(bytes, fill == Fill::Zeros).map_err(|_| none)?;
        self.free = left;
        Ok(Memory { address: Address(address), bytes })
    }

    fn free(&mut self, memory: Memory) -> Result<(), DeviceError> {
        self.outside_capture("free")?
            .release(memory.address.0)
            .map_err(|error| refused("free", &error))?;
        self.free += memory.bytes;
        Ok(())
    }

    fn upload(&mut self, bytes: &[u8], to: Address) -> Result<(), DeviceError> {
        self.outside_capture("upload")?
            .upload(bytes, to.0)
            .map_err(|error| refused("upload", &error))
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.alive()?;
        if let Some(steps) = &mut self.capture {
            steps.push(Step::Copy { from, to, bytes });
            return Ok(());
        }
        self.machine.pin_mut().copy(from.0, to.0, bytes).map_err(|error| refused("copy", &error))
    }

    fn launch(&mut self, launch: Launch<'_>) -> Result<(), DeviceError> {
        self.alive()?;
        self.accept(&launch)?;
        match &mut self.capture {
            None => self.run(&launch),
            Some(steps) => {
                let Launch { kernel, grid, threads, shared, arguments } = launch;
                let arguments = arguments.to_vec();
                steps.push(Step::Launch { kernel, grid, threads, shared, arguments });
                Ok(())
            }
        }
    }

    fn download(&mut self, from: Address, bytes: usize) -> Result<Download, DeviceError> {
        let mut into = vec![0; bytes];
        let mut machine = self.outside_capture("download")?;
        machine
            .as_mut()
            .download(from.0, &mut into)
            .map_err(|error| refused("download", &error))?;
        let downloaded = Downloaded { bytes: into, at: machine.mark() };
        let name = self.next_download;
        self.next_download += 1;
        self.downloads.insert(name, downloaded);
        Ok(Download(name))
    }

    fn finish(&mut self, download: Download, into: &mut Vec<u8>) -> Result<(), DeviceError> {
        self.outside_capture("finish")?;
        let Downloaded { bytes, at } = self
            .downloads
            .remove(&download.0)
            .ok_or_else(|| refused("finish", &"this device has no such download"))?;
        self.known = self.known.max(at);
        into.extend_from_slice(&bytes);
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        self.outside_capture("begin_capture")?;
        self.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph, DeviceError> {
        self.alive()?;
        let steps = self
            .capture
            .take()
            .ok_or_else(|| refused("end_capture", &"nothing is being recorded"))?;
        self.graphs.push(steps);
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.outside_capture("replay")?;
        let steps = self
            .graphs
            .get_mut(graph.0)
            .map(mem::take)
            .ok_or_else(|| refused("replay", &"this device has no such graph"))?;
        let result = steps.iter().try_for_each(|step| match step {
            Step::Launch { kernel, grid, threads, shared, arguments } => self.run(&Launch {
                kernel,
                grid: *grid,
                threads: *threads,
                shared: *shared,
                arguments,
            }),
            Step::Copy { from, to, bytes } => self.copy(*from, *to, *bytes),
        });
        self.graphs[graph.0] = steps;
        result
    }

    fn keep_on_host(&mut self, bytes: &[u8]) -> Result<HostMemory, DeviceError> {
        self.outside_capture("keep_on_host")?;
        self.host.push(bytes.to_vec());
        Ok(HostMemory(self.host.len() - 1))
    }

    fn prefetch(
        &mut self,
        from: HostMemory,
        to: Address,
        after: Option<Mark>,
    ) -> Result<Mark, DeviceError> {
        self.outside_capture("prefetch")?;
        let after = match after.map(|mark| self.point(mark)).transpose()? {
            Some(Point::Stream(time)) => time,
            Some(Point::Arrival { .. }) | None => self.known,
        };
        let bytes = self
            .host
            .get(from.0)
            .ok_or_else(|| refused("prefetch", &"this device keeps no such host memory"))?;
        self.machine
            .pin_mut()
            .prefetch(bytes, to.0, after)
            .map_err(|error| refused("prefetch", &error))?;
        let bytes = bytes.len();
        Ok(self.new_mark(Point::Arrival { to, bytes }))
    }

    fn mark(&mut self) -> Result<Mark, DeviceError> {
        let time = self.outside_capture("mark")?.mark();
        Ok(self.new_mark(Point::Stream(time)))
    }

    fn wait_for(&mut self, mark: Mark) -> Result<(), DeviceError> {
        self.outside_capture("wait_for")?;
        match self.point(mark)? {
            Point::Stream(_) => Ok(()),
            Point::Arrival { to, bytes } => self
                .machine
                .pin_mut()
                .arrive(to.0, bytes)
                .map_err(|error| refused("wait_for", &error)),
        }
    }
}

/// `sizeof` of every argument struct in C++, by name.
#[must_use]
pub fn struct_sizes() -> Vec<(String, usize)> {
    bridge::sizes().into_iter().map(|one| (one.name, one.bytes)).collect()
}

fn refused(what: &str, why: &impl ToString) -> DeviceError {
    DeviceError::Refused { what: what.into(), message: why.to_string() }
}
