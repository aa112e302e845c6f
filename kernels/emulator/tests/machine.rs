//! The emulator itself: that it computes what a GPU computes, that each check fires on a kernel that makes the
//! mistake, and that none fires on the same kernel without it.

use bytemuck::{Pod, Zeroable};
use half::f16;
use rewind_kernels::arguments::Address;
use rewind_kernels::{Device, DeviceError, Fill, Launch};
use rewind_kernels_emulator::{Emulator, Fault, Order, Settings, Wrong};

#[path = "machine/arithmetic.rs"]
mod arithmetic;
#[path = "machine/device.rs"]
mod device;
#[path = "machine/mistakes.rs"]
mod mistakes;
#[path = "machine/races.rs"]
mod races;
#[path = "machine/structs.rs"]
mod structs;

const ORDERS: [Order; 3] = [Order::Ascending, Order::Descending, Order::Shuffled];

fn emulator(order: Order) -> Emulator {
    Emulator::new(Settings { order, seed: 7, ..Settings::default() }).unwrap()
}

/// Puts words on the device.
fn put(emulator: &mut Emulator, words: &[u32]) -> Address {
    let memory = emulator.allocate(4 * words.len(), Fill::Nothing).unwrap();
    emulator.upload(bytemuck::cast_slice(words), memory.address).unwrap();
    memory.address
}

fn get(emulator: &mut Emulator, from: Address, words: usize) -> Vec<u32> {
    let download = emulator.download(from, 4 * words).unwrap();
    let mut bytes = Vec::new();
    emulator.finish(download, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

fn launch<A: Pod>(
    emulator: &mut Emulator,
    kernel: &'static str,
    blocks: u32,
    threads: u32,
    arguments: &A,
) -> Result<(), DeviceError> {
    let arguments = bytemuck::bytes_of(arguments);
    emulator.launch(Launch { kernel, grid: [blocks, 1, 1], threads, shared: 1 << 10, arguments })
}
