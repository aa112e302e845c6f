//! [`Device`] on an NVIDIA GPU.
//!
//! Two streams: one for everything, one for [`prefetch`](Device::prefetch) beside it. All memory is
//! taken by plain allocation, at load, and nothing of cudarc's tracking of slices is used: order is
//! the stream's. Host copies go through page-locked memory, a ring of buffers up and a stock of them
//! down, so that no call waits for the device but [`finish`](Device::finish), or an upload that finds
//! the whole ring in flight.

mod gpus;
mod pinned;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};
use rewind_kernels::arguments::Address;
use rewind_kernels::{
    Description, Device, DeviceError, Download, Fill, Graph, HostMemory, Launch, Mark, Memory,
};

pub use gpus::{gpus, is_supported};

use crate::error::CudaError;
use pinned::Pinned;

/// An NVIDIA GPU with the kernels loaded.
#[derive(Debug)]
pub struct Driver {
    description: Description,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Runs prefetches.
    beside: Arc<CudaStream>,
    modules: Vec<sys::CUmodule>,
    /// Kernels that were launched before.
    functions: HashMap<&'static str, Function>,
    /// Dynamic shared memory that a block can opt in to, bytes.
    shared_limit: u32,
    allocated: BTreeMap<Address, usize>,
    ring: VecDeque<(Pinned, Option<CudaEvent>)>,
    /// Downloads in flight, by number.
    downloads: HashMap<u64, InFlight>,
    next_download: u64,
    /// Buffers of finished downloads, to be used again.
    stock: Vec<Pinned>,
    graphs: Vec<sys::CUgraphExec>,
    host: Vec<Pinned>,
    marks: HashMap<u64, CudaEvent>,
    next_mark: u64,
}

#[derive(Clone, Copy, Debug)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory it may be launched with.
    shared: u32,
}

#[derive(Debug)]
struct InFlight {
    buffer: Pinned,
    bytes: usize,
    done: CudaEvent,
}

// SAFETY: the raw handles (modules, functions, graphs) belong to this value alone, and the driver
// takes them from any thread that has bound the context, which every method does first.
unsafe impl Send for Driver {}

/// Size of a buffer of the upload ring.
const RING_BYTES: usize = 4 << 20;
/// Buffers of the upload ring.
const RING_LEN: usize = 4;
/// Marks that are kept, as [`Mark`] promises.
const KEPT_MARKS: u64 = 256;
/// Dynamic shared memory that needs no opting in.
const DEFAULT_SHARED: u32 = 48 << 10;

impl Driver {
    /// Opens GPU `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// What is missing, as [`gpus`] says it; no such GPU; one that is too old.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let all = gpus()?;
        let Some(found) = all.get(ordinal) else {
            return Err(CudaError::NoSuchGpu { ordinal, count: all.len() });
        };
        let mut description = found.clone();
        if !is_supported(&description) {
            let Description { name, architecture, .. } = description;
            return Err(CudaError::Architecture { name, architecture });
        }
        let failed = |error| CudaError::Driver(lost(error));
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: no slice of cudarc's is ever made here; the order of all work is this module's.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed)?;
        let beside = context.new_stream().map_err(failed)?;
        let modules = load_modules()?;
        let shared =
            sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared_limit = context.attribute(shared).map_err(failed)?.max(0) as u32;
        description.free_memory = result::mem_get_info().map_err(failed)?.0 as u64;
        let mut ring = VecDeque::new();
        for _ in 0..RING_LEN {
            ring.push_back((Pinned::new(&context, RING_BYTES)?, None));
        }
        Ok(Self {
            description,
            context,
            stream,
            beside,
            modules,
            functions: HashMap::new(),
            shared_limit,
            allocated: BTreeMap::new(),
            ring,
            downloads: HashMap::new(),
            next_download: 0,
            stock: Vec::new(),
            graphs: Vec::new(),
            host: Vec::new(),
            marks: HashMap::new(),
            next_mark: 0,
        })
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|error| DeviceError::Lost(lost(error)))
    }

    fn function(&mut self, launch: &Launch<'_>) -> Result<Function, DeviceError> {
        let refused = |message| DeviceError::Refused { what: launch.kernel.to_owned(), message };
        let known = self.functions.get(launch.kernel).copied();
        let mut function = match known {
            Some(function) => function,
            None => Function { handle: self.find(launch.kernel)?, shared: DEFAULT_SHARED },
        };
        if launch.shared > function.shared {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
            if launch.shared > self.shared_limit {
                let (wanted, limit) = (launch.shared, self.shared_limit);
                return Err(refused(format!(
                    "{wanted} bytes of shared memory; {limit} can be had"
                )));
            }
            // SAFETY: the function belongs to a module that is loaded as long as this value lives.
            let set = unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    SHARED,
                    launch.shared as i32,
                )
            };
            set.map_err(|error| refused(lost(error)))?;
            function.shared = launch.shared;
        }
        self.functions.insert(launch.kernel, function);
        Ok(function)
    }

    fn find(&self, kernel: &'static str) -> Result<sys::CUfunction, DeviceError> {
        let none = DeviceError::NoKernel(kernel);
        let Ok(name) = CString::new(kernel) else { return Err(none) };
        let found = self.modules.iter().find_map(|&module| {
            // SAFETY: the module is loaded as long as this value lives.
            unsafe { result::module::get_function(module, name.clone()) }.ok()
        });
        found.ok_or(none)
    }

    fn new_mark(&mut self, stream: &CudaStream) -> Result<Mark, DeviceError> {
        let event = stream.record_event(None).map_err(|error| DeviceError::Lost(lost(error)))?;
        let number = self.next_mark;
        self.next_mark += 1;
        self.marks.insert(number, event);
        self.marks.retain(|&mark, _| mark + KEPT_MARKS > number);
        Ok(Mark(number))
    }
}

fn load_modules() -> Result<Vec<sys::CUmodule>, CudaError> {
    let load = |module: &rewind_kernels::Module| {
        // SAFETY: a whole fat binary as the build made it, aligned; the driver copies what it needs.
        let loaded = unsafe { result::module::load_data(module.image.as_ptr().cast()) };
        let what = |error| format!("the kernels of {} do not load: {}", module.file, lost(error));
        loaded.map_err(|error| CudaError::Driver(what(error)))
    };
    rewind_kernels::binary()?.iter().map(load).collect()
}

/// What the driver says of an error.
fn lost(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, _>| {
        text.map_or_else(|_: DriverError| String::new(), |text| text.to_string_lossy().into_owned())
    };
    match (text(error.error_name()), text(error.error_string())) {
        (name, _) if name.is_empty() => format!("CUDA error {}", error.0 as u32),
        (name, what) => format!("{name}: {what}"),
    }
}

fn gone(error: DriverError) -> DeviceError {
    DeviceError::Lost(lost(error))
}

impl Device for Driver {
    fn description(&self) -> &Description {
        &self.description
    }

    fn allocate(&mut self, bytes: usize, fill: Fill) -> Result<Memory, DeviceError> {
        self.bind()?;
        // SAFETY: what it holds is said by `fill`, and heeded by whoever asked.
        let start =
            unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    DeviceError::OutOfMemory { wanted: bytes, place: "device" }
                }
                _ => gone(error),
            })?;
        let memory = Memory { address: Address(start), bytes };
        self.allocated.insert(memory.address, bytes);
        if fill == Fill::Zeros {
            // SAFETY: so many bytes were just handed out here.
            unsafe { result::memset_d8_async(start, 0, bytes, self.stream.cu_stream()) }
                .map_err(gone)?;
        }
        Ok(memory)
    }

    fn free(&mut self, memory: Memory) -> Result<(), DeviceError> {
        self.bind()?;
        if self.allocated.remove(&memory.address).is_none() {
            let what = format!("freeing {:#x}", memory.address.0);
            return Err(DeviceError::Refused { what, message: "it is not allocated".into() });
        }
        self.stream.synchronize().map_err(gone)?;
        self.beside.synchronize().map_err(gone)?;
        // SAFETY: it was allocated, is freed once, and nothing in flight uses it.
        unsafe { result::free_sync(memory.address.0) }.map_err(gone)
    }

    fn upload(&mut self, bytes: &[u8], to: Address) -> Result<(), DeviceError> {
        self.bind()?;
        for (number, piece) in bytes.chunks(RING_BYTES).enumerate() {
            let Some((mut buffer, used)) = self.ring.pop_front() else {
                return Err(DeviceError::Lost("the upload ring is gone after an error".into()));
            };
            if let Some(used) = used {
                used.synchronize().map_err(gone)?;
            }
            buffer.as_mut_slice()[..piece.len()].copy_from_slice(piece);
            let to = to.offset(number * RING_BYTES);
            // SAFETY: the destination is allocated (the caller's duty); the source stays as it is
            // until the event below, which the next use of this buffer waits for.
            let copied = unsafe {
                let source = &buffer.as_slice()[..piece.len()];
                result::memcpy_htod_async(to.0, source, self.stream.cu_stream())
            };
            copied.map_err(gone)?;
            let used = self.stream.record_event(None).map_err(gone)?;
            self.ring.push_back((buffer, Some(used)));
        }
        Ok(())
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: both ranges are allocated and do not overlap (the caller's duty).
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream.cu_stream()) }
            .map_err(gone)
    }

    fn launch(&mut self, launch: Launch<'_>) -> Result<(), DeviceError> {
        self.bind()?;
        let function = self.function(&launch)?;
        let [x, y, z] = launch.grid;
        // Arguments are read as the struct they are: 8-byte fields want alignment.
        let mut aligned = [0_u64; MAX_ARGUMENTS / size_of::<u64>()];
        let room: &mut [u8] = bytemuck::cast_slice_mut(&mut aligned);
        let Some(room) = room.get_mut(..launch.arguments.len()) else {
            let message = format!("{} bytes of arguments", launch.arguments.len());
            return Err(DeviceError::Refused { what: launch.kernel.to_owned(), message });
        };
        room.copy_from_slice(launch.arguments);
        let mut parameters = [aligned.as_mut_ptr().cast::<c_void>()];
        // SAFETY: the function is loaded, takes one struct of that size, which is copied during the
        // call; the memory it names is allocated as long as the caller keeps it.
        let launched = unsafe {
            result::launch_kernel(
                function.handle,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared,
                self.stream.cu_stream(),
                &mut parameters,
            )
        };
        launched.map_err(|error| DeviceError::Refused {
            what: launch.kernel.to_owned(),
            message: lost(error),
        })
    }

    fn download(&mut self, from: Address, bytes: usize) -> Result<Download, DeviceError> {
        self.bind()?;
        let fits = self.stock.iter().position(|buffer| buffer.len() >= bytes);
        let mut buffer = match fits {
            Some(index) => self.stock.swap_remove(index),
            None => Pinned::new(&self.context, bytes.next_power_of_two())?,
        };
        // SAFETY: the source is allocated (the caller's duty); the buffer is kept until the event.
        let copied = unsafe {
            let into = &mut buffer.as_mut_slice()[..bytes];
            result::memcpy_dtoh_async(into, from.0, self.stream.cu_stream())
        };
        copied.map_err(gone)?;
        let done = self.stream.record_event(None).map_err(gone)?;
        let number = self.next_download;
        self.next_download += 1;
        self.downloads.insert(number, InFlight { buffer, bytes, done });
        Ok(Download(number))
    }

    fn finish(&mut self, download: Download, into: &mut Vec<u8>) -> Result<(), DeviceError> {
        self.bind()?;
        let Some(InFlight { buffer, bytes, done }) = self.downloads.remove(&download.0) else {
            let what = format!("download {}", download.0);
            return Err(DeviceError::Refused { what, message: "it is not in flight".into() });
        };
        done.synchronize().map_err(gone)?;
        into.extend_from_slice(&buffer.as_slice()[..bytes]);
        self.stock.push(buffer);
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        self.bind()?;
        // Thread-local: what other threads do with other models must not spoil the recording.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this value's own.
        unsafe { result::stream::begin_capture(self.stream.cu_stream(), mode) }.map_err(gone)
    }

    fn end_capture(&mut self) -> Result<Graph, DeviceError> {
        self.bind()?;
        // SAFETY: the stream is this value's own and captures; the graph is used below only.
        let exec = unsafe {
            let graph = result::stream::end_capture(self.stream.cu_stream()).map_err(gone)?;
            if graph.is_null() {
                return Err(DeviceError::Lost("the recording was invalidated".into()));
            }
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).and(exec).map_err(gone)?
        };
        self.graphs.push(exec);
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.bind()?;
        let Some(&exec) = self.graphs.get(graph.0) else {
            let what = format!("graph {}", graph.0);
            return Err(DeviceError::Refused { what, message: "it was never recorded".into() });
        };
        // SAFETY: instantiated here, destroyed with this value only.
        unsafe { result::graph::launch(exec, self.stream.cu_stream()) }.map_err(gone)
    }

    fn keep_on_host(&mut self, bytes: &[u8]) -> Result<HostMemory, DeviceError> {
        self.bind()?;
        let mut memory = Pinned::new(&self.context, bytes.len())?;
        memory.as_mut_slice().copy_from_slice(bytes);
        self.host.push(memory);
        Ok(HostMemory(self.host.len() - 1))
    }

    fn prefetch(
        &mut self,
        from: HostMemory,
        to: Address,
        after: Option<Mark>,
    ) -> Result<Mark, DeviceError> {
        self.bind()?;
        let beside = Arc::clone(&self.beside);
        // A mark that is no longer kept was reached long ago.
        if let Some(event) = after.and_then(|mark| self.marks.get(&mark.0)) {
            beside.wait(event).map_err(gone)?;
        }
        let Some(source) = self.host.get(from.0) else {
            let what = format!("host memory {}", from.0);
            return Err(DeviceError::Refused { what, message: "nothing is kept there".into() });
        };
        // SAFETY: the destination is allocated and free once `after` is reached (the caller's duty);
        // the source is kept, and never written again, as long as this value lives.
        unsafe { result::memcpy_htod_async(to.0, source.as_slice(), beside.cu_stream()) }
            .map_err(gone)?;
        self.new_mark(&beside)
    }

    fn mark(&mut self) -> Result<Mark, DeviceError> {
        self.bind()?;
        let stream = Arc::clone(&self.stream);
        self.new_mark(&stream)
    }

    fn wait_for(&mut self, mark: Mark) -> Result<(), DeviceError> {
        self.bind()?;
        match self.marks.get(&mark.0) {
            Some(event) => self.stream.wait(event).map_err(gone),
            None => Ok(()),
        }
    }
}

/// Most bytes of an argument struct.
const MAX_ARGUMENTS: usize = 512;

impl Drop for Driver {
    fn drop(&mut self) {
        // A failure here has nobody to tell, and the process may be ending.
        if self.bind().is_err() {
            return;
        }
        let _ = self.stream.synchronize();
        let _ = self.beside.synchronize();
        for &exec in &self.graphs {
            // SAFETY: instantiated here, destroyed once, and nothing runs any more.
            let _ = unsafe { result::graph::exec_destroy(exec) };
        }
        for address in self.allocated.keys() {
            // SAFETY: allocated here and not freed yet; nothing runs any more.
            let _ = unsafe { result::free_sync(address.0) };
        }
        for &module in &self.modules {
            // SAFETY: loaded here, unloaded once; its functions go with this value.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}
