//! A model's weights on a device.
//!
//! Tensors arrive one at a time from any source, are packed by all threads, uploaded and dropped, so
//! loading needs little more host memory than the largest matrix. What draft and shadow have in
//! common (norms, and matrices of the same format) exists once. Layers of a shadow that does not fit
//! beside the draft stay on the host, each as one run of bytes, and are copied in while the layer
//! before them computes.

use std::error::Error;

use rewind_checkpoint::{LayerTensor, ModelSpec, Tensor, TensorName};
use rewind_formats::{DraftFormats, Format, mixture};
use rewind_kernels::arguments::{
    Address, FORMAT_BF16, FORMAT_F16, FORMAT_F32, FORMAT_FP8, FORMAT_INT4_AFFINE,
    FORMAT_INT6_GROUP, FORMAT_INT8, FORMAT_INT8_GROUP, FORMAT_NF4, Matrix,
};
use rewind_kernels::packing::Order;
use rewind_kernels::{Device, DeviceError, Fill, HostMemory, Memory};

use crate::driver::Driver;
use crate::error::CudaError;
use crate::pack::{
    Named, Storage, Tiles, check_finite, exact_storage, kept_storage, kept_storages, pack,
};
use crate::plan::{Placement, WeightMemory};

/// What to load, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Formats of the draft; `None` for no draft.
    pub draft: Option<DraftFormats>,
    /// Whether to keep the shadow, in the checkpoint's own precision.
    pub shadow: bool,
    /// Threads that pack; at least one is used.
    pub threads: usize,
    /// Where the shadow lives.
    pub placement: Placement,
}

/// How far loading is, in weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Weights packed so far.
    pub done: u64,
    /// Weights in all.
    pub total: u64,
}

/// A model on a device.
#[derive(Debug)]
pub struct CudaModel<D: Device = Driver> {
    pub(crate) device: D,
    pub(crate) spec: ModelSpec,
    pub(crate) draft: Option<Weights>,
    pub(crate) shadow: Option<Weights>,
    pub(crate) memory: WeightMemory,
    /// Device memory that was taken so far, bytes.
    pub(crate) taken: u64,
}

/// One copy of the weights.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    /// Formats of linear layers and of embedding and head, for people.
    pub(crate) formats: String,
    /// Whether the LM head's products take f16 activations, else f32.
    pub(crate) half_head: bool,
    pub(crate) embedding: Matrix,
    pub(crate) layers: Layers,
    pub(crate) final_norm: Address,
    pub(crate) head: Matrix,
}

/// The layers of a copy of the weights.
#[derive(Clone, Debug)]
pub(crate) enum Layers {
    /// On the device.
    Device(Vec<Layer>),
    /// On the host, but for the vectors.
    Host {
        layers: Vec<HostLayer>,
        /// Two places on the device that layers are copied to by turns.
        staging: [Address; 2],
    },
}

/// A layer of which the matrices are on the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostLayer {
    /// Addresses of matrices relative to the start of `memory`.
    pub(crate) layer: Layer,
    pub(crate) memory: HostMemory,
}

/// Weights of one decoder block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    pub(crate) vectors: Vectors,
    /// Query, key and value projections, one above the other.
    pub(crate) qkv: Matrix,
    pub(crate) output: Matrix,
    /// Tiles of gate and up projection by turns.
    pub(crate) gate_up: Matrix,
    pub(crate) down: Matrix,
}

/// Norms and biases of a decoder block, in `f32`, the same for draft and shadow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vectors {
    pub(crate) attention_norm: Address,
    pub(crate) feed_forward_norm: Address,
    /// Biases of query, key and value, one after the other; null if there are none.
    pub(crate) qkv_bias: Address,
    /// Norms of query and key heads; null if there are none.
    pub(crate) query_norm: Address,
    pub(crate) key_norm: Address,
}

impl Layer {
    /// Whether any of its products takes f16 activations.
    pub(crate) fn half(&self) -> bool {
        self.matrices().into_iter().any(takes_half)
    }

    /// Formats of its matrices, each once.
    fn format_names(&self) -> String {
        mixture::each_once(self.matrices().map(format_name))
    }

    fn matrices(&self) -> [&Matrix; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }
}

impl HostLayer {
    /// The layer with its matrices at `base`.
    pub(crate) fn at(&self, base: Address) -> Layer {
        let at = |matrix: Matrix| {
            let moved = |address: Address| Address(address.0 + base.0);
            // Codes come first, so only a matrix without scales has them at 0.
            let scales =
                if matrix.scales == Address::NULL { Address::NULL } else { moved(matrix.scales) };
            Matrix { codes: moved(matrix.codes), scales, ..matrix }
        };
        let Layer { vectors, qkv, output, gate_up, down } = self.layer;
        Layer { vectors, qkv: at(qkv), output: at(output), gate_up: at(gate_up), down: at(down) }
    }
}

impl<D: Device> CudaModel<D> {
    /// A model without weights yet.
    ///
    /// # Errors
    /// Sizes that the kernels cannot do.
    pub fn new(device: D, spec: &ModelSpec) -> Result<Self, CudaError> {
        check(spec)?;
        let (draft, shadow) = (None, None);
        let memory = WeightMemory::default();
        Ok(Self { device, spec: spec.clone(), draft, shadow, memory, taken: 0 })
    }

    /// Loads weights. May be called twice, for a draft and a shadow of different checkpoints, which
    /// then share nothing.
    ///
    /// `source` gives each tensor of the model when asked for it, with the shape that
    /// [`ModelSpec::shape`] says. `progress` is called after each.
    ///
    /// # Errors
    /// Nothing to load; the source fails or gives another shape; a weight is not finite or does not
    /// fit the draft format; the memory cannot be had.
    pub fn load<E: Into<Box<dyn Error + Send + Sync>>>(
        &mut self,
        source: impl Fn(TensorName) -> Result<Tensor, E>,
        options: LoadOptions,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), CudaError> {
        if options.draft.is_none() && !options.shadow {
            return Err(CudaError::NoWeights);
        }
        let spec = self.spec.clone();
        let formats = options.draft.clone();
        if let Some(plan) = formats.as_ref().and_then(DraftFormats::layers)
            && plan != spec.layers
        {
            return Err(CudaError::Layers { plan, model: spec.layers });
        }
        let draft = |tensor| formats.as_ref().map(|formats| Wanted::of(formats, tensor));
        let (has_draft, has_shadow) = (options.draft.is_some(), options.shadow);
        let mut done = 0;
        let mut get = |tensor: TensorName| {
            let found = source(tensor)
                .map_err(|source| CudaError::Source { tensor, source: source.into() })?;
            let expected = spec.shape(tensor).unwrap_or_default();
            let elements = found.data.len();
            if found.shape != expected || elements != expected.iter().product::<usize>() {
                return Err(CudaError::Shape { tensor, found: found.shape, elements, expected });
            }
            done += elements as u64;
            progress(Progress { done, total: spec.parameters() });
            let cols = expected.last().copied().unwrap_or(1);
            Ok(Named { name: tensor, cols, data: found.data })
        };
        let (mut draft_layers, mut shadow_layers) =
            (Vec::new(), ShadowLayers::new(options.placement));
        let mut loader = Loader { model: self, options };

        let embedding =
            loader.matrix(&[get(TensorName::Embedding)?], draft(TensorName::Embedding))?;
        for number in 0..spec.layers {
            use LayerTensor as T;
            let name = |tensor| TensorName::Layer(number, tensor);
            let mut vectors = |tensors: &[T]| {
                let all = tensors.iter().map(|&tensor| get(name(tensor)));
                loader.vector(&all.collect::<Result<Vec<_>, _>>()?)
            };
            let mut vectors_if = |wanted: bool, tensors: &[T]| match wanted {
                true => vectors(tensors),
                false => Ok(Address::NULL),
            };
            let vectors = Vectors {
                attention_norm: vectors_if(true, &[T::AttentionNorm])?,
                feed_forward_norm: vectors_if(true, &[T::FeedForwardNorm])?,
                qkv_bias: vectors_if(spec.qkv_bias, &[T::QueryBias, T::KeyBias, T::ValueBias])?,
                query_norm: vectors_if(spec.qk_norm, &[T::QueryNorm])?,
                key_norm: vectors_if(spec.qk_norm, &[T::KeyNorm])?,
            };
            let mut draft_matrices = Vec::new();
            let wanted = draft(name(T::Query));
            let mut read = |tensors: &[T]| {
                let tensors = tensors.iter().map(|&tensor| get(name(tensor)));
                tensors.collect::<Result<Vec<_>, _>>()
            };
            if let Some(Wanted::Stored) = wanted {
                // What one product writes the next must be able to read, so all are looked at first.
                let tensors = PRODUCTS.iter().map(|(tensors, _)| read(tensors));
                let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
                let come: Vec<Vec<_>> =
                    tensors.iter().map(|all| all.iter().map(Named::storage).collect()).collect();
                let kept = kept_storages(&come);
                for ((tensors, (_, order)), storage) in tensors.iter().zip(PRODUCTS).zip(kept) {
                    let storage = Some(storage);
                    draft_matrices.extend(loader.layer_matrix(
                        tensors,
                        *order,
                        storage,
                        &mut shadow_layers,
                    )?);
                }
            } else {
                for &(tensors, order) in PRODUCTS {
                    let tensors = read(tensors)?;
                    let storage = wanted.map(|wanted| wanted.storage(&tensors));
                    draft_matrices.extend(loader.layer_matrix(
                        &tensors,
                        order,
                        storage,
                        &mut shadow_layers,
                    )?);
                }
            }
            let layer = |matrices: &[Matrix]| {
                let &[qkv, output, gate_up, down] = matrices else { return None };
                Some(Layer { vectors, qkv, output, gate_up, down })
            };
            draft_layers.extend(layer(&draft_matrices));
            shadow_layers.end_layer(loader.model, layer)?;
        }
        let final_norm = loader.vector(&[get(TensorName::FinalNorm)?])?;
        let head = match spec.tied_head {
            true => embedding,
            false => loader.matrix(&[get(TensorName::Head)?], draft(TensorName::Head))?,
        };

        let weights = |embedding: Option<Matrix>, head: Option<Matrix>, layers: Layers| {
            Some(Weights::new(embedding?, head?, layers, final_norm))
        };
        if has_draft {
            let layers = Layers::Device(draft_layers);
            self.draft = weights(embedding.draft, head.draft, layers);
        }
        if has_shadow {
            let layers = shadow_layers.finish(self)?;
            self.shadow = weights(embedding.shadow, head.shadow, layers);
        }
        Ok(())
    }

    /// Sizes and constants of the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The device that it is on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Memory of the weights.
    pub fn memory(&self) -> WeightMemory {
        self.memory
    }

    /// Device memory that is left after the weights, bytes.
    pub fn free_memory(&self) -> u64 {
        self.device.description().free_memory.saturating_sub(self.taken)
    }

    /// Takes device memory for `what`.
    pub(crate) fn take(
        &mut self,
        what: &'static str,
        bytes: usize,
        fill: Fill,
    ) -> Result<Memory, CudaError> {
        match self.device.allocate(bytes, fill) {
            Ok(memory) => {
                self.taken += bytes as u64;
                Ok(memory)
            }
            Err(DeviceError::OutOfMemory { wanted, place: "device" }) => Err(CudaError::Memory {
                what,
                wanted: wanted as u64,
                free: self.free_memory(),
                hint: HINT,
            }),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<Address, CudaError> {
        if bytes.is_empty() {
            return Ok(Address::NULL);
        }
        let memory = self.take("weights", bytes.len(), Fill::Nothing)?;
        self.device.upload(bytes, memory.address)?;
        Ok(memory.address)
    }

    fn put_tiles(&mut self, tiles: &Tiles) -> Result<Matrix, CudaError> {
        let (codes, scales) = (self.put(&tiles.codes)?, self.put(&tiles.scales)?);
        Ok(tiles.matrix(codes, scales))
    }
}

const HINT: &str =
    "; a smaller kv_memory, or the shadow kept on the host (shadow_placement), may make it fit";

/// The products of a layer: which tensors are joined, and how.
pub(crate) const PRODUCTS: &[(&[LayerTensor], Order)] = &[
    (&[LayerTensor::Query, LayerTensor::Key, LayerTensor::Value], Order::Stacked),
    (&[LayerTensor::Output], Order::Stacked),
    (&[LayerTensor::Gate, LayerTensor::Up], Order::Interleaved),
    (&[LayerTensor::Down], Order::Stacked),
];

/// The name of a matrix's format, as in configuration files.
fn format_name(matrix: &Matrix) -> String {
    match matrix.format {
        FORMAT_F32 => "f32".to_owned(),
        FORMAT_F16 => Format::F16.to_string(),
        FORMAT_BF16 => Format::Bf16.to_string(),
        FORMAT_INT8 => Format::Int8.to_string(),
        FORMAT_FP8 => Format::Fp8.to_string(),
        FORMAT_NF4 => Format::Nf4.to_string(),
        FORMAT_INT8_GROUP => format!("int8-g{}", matrix.group),
        FORMAT_INT6_GROUP => format!("int6-g{}", matrix.group),
        FORMAT_INT4_AFFINE => format!("int4a-g{}", matrix.group),
        _ => format!("int4-g{}", matrix.group),
    }
}

/// Whether products with this matrix take f16 activations (formats below 16 bits), else f32.
pub(crate) fn takes_half(matrix: &Matrix) -> bool {
    !matches!(matrix.format, FORMAT_F32 | FORMAT_F16 | FORMAT_BF16)
}

impl Weights {
    pub(crate) fn new(
        embedding: Matrix,
        head: Matrix,
        layers: Layers,
        final_norm: Address,
    ) -> Self {
        let names: Vec<_> = match &layers {
            Layers::Device(layers) => layers.iter().map(Layer::format_names).collect(),
            Layers::Host { layers, .. } => layers.iter().map(|l| l.layer.format_names()).collect(),
        };
        let formats = mixture::describe(names, format_name(&head));
        let half_head = takes_half(&head);
        Self { formats, half_head, embedding, layers, final_norm, head }
    }
}

/// Checks what kernels and executor rely on.
pub(crate) fn check(spec: &ModelSpec) -> Result<(), CudaError> {
    if let Some(defect) = spec.defect() {
        return Err(CudaError::Spec(defect));
    }
    if spec.head_dim > MAX_HEAD_DIM {
        let dim = spec.head_dim;
        return Err(CudaError::Spec(format!("head size is {dim}, not in 2..={MAX_HEAD_DIM}")));
    }
    Ok(())
}

/// Largest head that the attention kernels hold in shared memory.
const MAX_HEAD_DIM: usize = 256;

/// What a matrix of the draft is to be stored in.
#[derive(Clone, Copy)]
enum Wanted {
    Format(Format),
    /// As it comes.
    Stored,
}

impl Wanted {
    fn of(formats: &DraftFormats, tensor: TensorName) -> Self {
        let DraftFormats::Mixture(mixture) = formats else { return Self::Stored };
        Self::Format(match tensor {
            TensorName::Layer(number, _) => mixture.layer(number),
            TensorName::Head => mixture.head(),
            TensorName::Embedding | TensorName::FinalNorm => mixture.embedding(),
        })
    }

    fn storage(self, tensors: &[Named]) -> Storage {
        match self {
            Self::Format(format) => Storage::Format(format),
            Self::Stored => kept_storage(tensors.iter().map(Named::storage)),
        }
    }
}

/// The draft's and the shadow's form of a matrix; the same one if the formats are.
#[derive(Clone, Copy, Default)]
struct Pair {
    draft: Option<Matrix>,
    shadow: Option<Matrix>,
}

/// The shadow's layers while they are loaded.
enum ShadowLayers {
    Device { layers: Vec<Layer>, current: Vec<Matrix> },
    Host { layers: Vec<HostLayer>, current: Vec<Matrix>, bytes: Vec<u8>, longest: usize },
}

impl ShadowLayers {
    fn new(placement: Placement) -> Self {
        let current = Vec::new();
        match placement {
            Placement::Device => Self::Device { layers: Vec::new(), current },
            Placement::Host => {
                Self::Host { layers: Vec::new(), current, bytes: Vec::new(), longest: 0 }
            }
        }
    }

    fn end_layer<D: Device>(
        &mut self,
        model: &mut CudaModel<D>,
        layer: impl Fn(&[Matrix]) -> Option<Layer>,
    ) -> Result<(), CudaError> {
        match self {
            Self::Device { layers, current } => {
                layers.extend(layer(current));
                current.clear();
            }
            Self::Host { layers, current, bytes, longest } => {
                if let Some(layer) = layer(current) {
                    let memory = model.device.keep_on_host(bytes)?;
                    layers.push(HostLayer { layer, memory });
                    *longest = bytes.len().max(*longest);
                }
                current.clear();
                bytes.clear();
            }
        }
        Ok(())
    }

    fn finish<D: Device>(self, model: &mut CudaModel<D>) -> Result<Layers, CudaError> {
        match self {
            Self::Device { layers, .. } => Ok(Layers::Device(layers)),
            Self::Host { layers, longest, .. } => {
                let mut place = || model.take("staging buffers", longest, Fill::Nothing);
                let staging = [place()?.address, place()?.address];
                Ok(Layers::Host { layers, staging })
            }
        }
    }
}

struct Loader<'a, D: Device> {
    model: &'a mut CudaModel<D>,
    options: LoadOptions,
}

impl<D: Device> Loader<'_, D> {
    /// Puts vectors on the device, one after the other.
    fn vector(&mut self, tensors: &[Named]) -> Result<Address, CudaError> {
        let mut values = Vec::new();
        for tensor in tensors {
            let part = tensor.data.to_f32();
            check_finite(tensor, 0, &part)?;
            values.extend(part);
        }
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        self.count(bytes.len(), true, true);
        self.model.put(bytes)
    }

    /// Adds a part's bytes to the copies that have it.
    fn count(&mut self, bytes: usize, draft: bool, shadow: bool) {
        let (draft, shadow) =
            (draft && self.options.draft.is_some(), shadow && self.options.shadow);
        let memory = &mut self.model.memory;
        memory.draft += if draft { bytes } else { 0 };
        memory.shadow += if shadow { bytes } else { 0 };
        memory.shared += if draft && shadow { bytes } else { 0 };
    }

    fn pack(&self, tensors: &[Named], storage: Storage, order: Order) -> Result<Tiles, CudaError> {
        pack(tensors, storage, order, self.options.threads)
    }

    /// Loads a matrix of both copies to the device.
    fn matrix(&mut self, tensors: &[Named], draft: Option<Wanted>) -> Result<Pair, CudaError> {
        let exact = exact_storage(tensors);
        let draft = draft.map(|wanted| wanted.storage(tensors));
        let same = draft == Some(exact);
        let mut pair = Pair::default();
        if self.options.shadow || same {
            let tiles = self.pack(tensors, exact, Order::Stacked)?;
            self.count(tiles.bytes(), same, true);
            pair.shadow = Some(self.model.put_tiles(&tiles)?);
        }
        if let Some(storage) = draft {
            if same {
                pair.draft = pair.shadow;
            } else {
                let tiles = self.pack(tensors, storage, Order::Stacked)?;
                self.count(tiles.bytes(), true, false);
                pair.draft = Some(self.model.put_tiles(&tiles)?);
            }
        }
        Ok(pair)
    }

    /// Loads a matrix of a layer; the draft's is returned, the shadow's goes where its layers go.
    fn layer_matrix(
        &mut self,
        tensors: &[Named],
        order: Order,
        storage: Option<Storage>,
        shadow: &mut ShadowLayers,
    ) -> Result<Option<Matrix>, CudaError> {
        let exact = exact_storage(tensors);
        let on_device = matches!(shadow, ShadowLayers::Device { .. });
        let same = on_device && storage == Some(exact);
        let mut draft = None;
        if self.options.shadow || same {
            let tiles = self.pack(tensors, exact, order)?;
            self.count(tiles.bytes(), same, true);
            match shadow {
                ShadowLayers::Device { current, .. } => {
                    let matrix = self.model.put_tiles(&tiles)?;
                    current.push(matrix);
                    draft = same.then_some(matrix);
                }
                ShadowLayers::Host { current, bytes, .. } => {
                    let mut append = |part: &[u8]| {
                        let start = bytes.len().next_multiple_of(HOST_ALIGNMENT);
                        bytes.resize(start, 0);
                        bytes.extend_from_slice(part);
                        Address(start as u64)
                    };
                    let codes = append(&tiles.codes);
                    let scales = match tiles.scales.is_empty() {
                        true => Address::NULL,
                        false => append(&tiles.scales),
                    };
                    current.push(tiles.matrix(codes, scales));
                }
            }
        }
        if let Some(storage) = storage.filter(|_| draft.is_none()) {
            let tiles = self.pack(tensors, storage, order)?;
            self.count(tiles.bytes(), true, false);
            draft = Some(self.model.put_tiles(&tiles)?);
        }
        Ok(draft)
    }
}

/// Matrices in a run of host bytes start at multiples of this, as device memory does.
const HOST_ALIGNMENT: usize = 256;
