//! A device with what a case has put on it.

use std::f32::consts::TAU;
use std::fmt::Debug;

use anyhow::{Context, Result, bail, ensure};
use bytemuck::{Pod, Zeroable};
use rewind_kernels::arguments::Address;
use rewind_kernels::geometry::Geometry;
use rewind_kernels::{Device, Fill, Launch, Memory};

/// A device, and the memory that a case took on it.
pub struct Lab<'a> {
    device: &'a mut dyn Device,
    taken: Vec<Memory>,
}

impl<'a> Lab<'a> {
    pub(crate) fn new(device: &'a mut dyn Device) -> Self {
        Self { device, taken: Vec::new() }
    }

    /// Frees what the case took.
    pub(crate) fn close(self) -> Result<()> {
        self.taken.into_iter().try_for_each(|memory| Ok(self.device.free(memory)?))
    }

    /// Puts values on the device, in memory of exactly their size.
    pub fn put<T: Pod>(&mut self, values: &[T]) -> Result<Address> {
        let bytes = bytemuck::cast_slice(values);
        let address = self.room_of(bytes.len(), Fill::Nothing)?;
        self.device.upload(bytes, address)?;
        Ok(address)
    }

    /// Room for `len` values that nobody has written.
    pub fn room<T: Pod>(&mut self, len: usize) -> Result<Address> {
        self.room_of(len * size_of::<T>(), Fill::Nothing)
    }

    /// Room for `len` values, all bits zero.
    pub fn zeros<T: Pod>(&mut self, len: usize) -> Result<Address> {
        self.room_of(len * size_of::<T>(), Fill::Zeros)
    }

    fn room_of(&mut self, bytes: usize, fill: Fill) -> Result<Address> {
        let memory = self.device.allocate(bytes.max(1), fill)?;
        self.taken.push(memory);
        Ok(memory.address)
    }

    /// Runs a kernel.
    pub fn launch<A: Pod>(
        &mut self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: &A,
    ) -> Result<()> {
        let arguments = bytemuck::bytes_of(arguments);
        let launch = Launch { kernel, grid, threads, shared, arguments };
        self.device.launch(launch).with_context(|| format!("kernel {kernel}"))
    }

    /// Runs a kernel as its geometry says.
    pub fn run<A: Pod>(&mut self, geometry: Geometry, arguments: &A) -> Result<()> {
        let Geometry { kernel, grid, threads, shared } = geometry;
        self.launch(kernel, grid, threads, shared, arguments)
    }

    /// Reads values back.
    pub fn get<T: Pod + Zeroable>(&mut self, from: Address, len: usize) -> Result<Vec<T>> {
        let download = self.device.download(from, len * size_of::<T>())?;
        let mut bytes = Vec::new();
        self.device.finish(download, &mut bytes)?;
        ensure!(bytes.len() == len * size_of::<T>(), "{} bytes came back", bytes.len());
        // Collected one by one: a byte vector need not be aligned for T.
        Ok(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect())
    }
}

/// Compares two slices bit for bit and names the first element that differs.
pub(crate) fn same_bits<T: Pod + Debug>(what: &str, got: &[T], expected: &[T]) -> Result<()> {
    ensure!(got.len() == expected.len(), "{what}: {} elements, not {}", got.len(), expected.len());
    let differs = |(a, b): (&T, &T)| bytemuck::bytes_of(a) != bytemuck::bytes_of(b);
    if let Some(i) = got.iter().zip(expected).position(differs) {
        bail!("{what}: element {i} is {:?}, not {:?}", got[i], expected[i]);
    }
    Ok(())
}

/// Numbers from a seed; the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    /// A uniform word.
    pub fn word(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Uniform in 0 .. 1.
    pub fn unit(&mut self) -> f32 {
        (self.word() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in 0 .. bound.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u64::from(self.word()) * bound as u64) >> 32) as usize
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }

    /// `len` normal numbers times `scale`.
    pub fn normals(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.normal() * scale).collect()
    }
}
