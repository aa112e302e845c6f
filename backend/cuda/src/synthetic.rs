//! Weights made on the device, to measure with.
//!
//! What a pass costs does not depend on what the weights say, so a benchmark needs no checkpoint. A slab
//! of random rows is packed as any model's are, uploaded, and copied over the rest of its matrix within
//! the device; so a model of billions of weights is there in seconds. Every layer has memory of its own,
//! with the same contents.
//!
//! Rejected: random bytes straight into codes and scales. Each format would need care of its own to stay
//! finite, and would not be made the way the format is.

use std::thread;

use rewind_checkpoint::{LayerTensor, ModelSpec, TensorData, TensorName};
use rewind_formats::Format;
use rewind_kernels::arguments::{Address, Matrix};
use rewind_kernels::packing::{Order, PANEL_ROWS, TILE_ROWS};
use rewind_kernels::{Device, Fill};

use crate::error::CudaError;
use crate::model::{CudaModel, Layer, Layers, PRODUCTS, Vectors, Weights};
use crate::pack::{Named, Storage, Tiles, pack};
use crate::plan::WeightMemory;

/// Panels of a slab: few enough to be packed in no time, many enough that rows differ.
const SLAB_PANELS: usize = 8;

impl<D: Device> CudaModel<D> {
    /// A model of random weights: a draft in this format, a `bf16` shadow, or both. Norms are 1, biases 0.
    ///
    /// The rows of a matrix repeat every 256, so tokens that far apart have the same logit. All logits
    /// are finite, of about the size of a standard normal distribution.
    ///
    /// # Errors
    /// Nothing to make; sizes that the kernels cannot do; the memory cannot be had.
    pub fn synthetic(
        device: D,
        spec: &ModelSpec,
        draft: Option<Format>,
        shadow: bool,
        seed: u64,
    ) -> Result<Self, CudaError> {
        if draft.is_none() && !shadow {
            return Err(CudaError::NoWeights);
        }
        let mut model = Self::new(device, spec)?;
        let mut maker = Maker { model: &mut model, state: seed };
        let vectors = (0..spec.layers).map(|_| maker.vectors()).collect::<Result<Vec<_>, _>>()?;
        let final_norm = maker.constant(spec.hidden_size, 1.0)?;
        let vector_bytes = maker.model.taken;

        let mut bytes = WeightMemory::default();
        if shadow {
            let weights = maker.weights(Format::Bf16, &vectors, final_norm)?;
            bytes.shadow = maker.model.taken as usize;
            maker.model.shadow = Some(weights);
        }
        if let Some(format) = draft {
            let shared = maker.model.shadow.clone().filter(|_| format == Format::Bf16);
            if let Some(weights) = shared {
                (bytes.draft, bytes.shared) = (bytes.shadow, bytes.shadow);
                maker.model.draft = Some(weights);
            } else {
                let before = maker.model.taken - vector_bytes;
                let weights = maker.weights(format, &vectors, final_norm)?;
                bytes.draft = (maker.model.taken - before) as usize;
                bytes.shared = if shadow { vector_bytes as usize } else { 0 };
                maker.model.draft = Some(weights);
            }
        }
        model.memory = bytes;
        Ok(model)
    }
}

struct Maker<'a, D: Device> {
    model: &'a mut CudaModel<D>,
    /// Of the random numbers.
    state: u64,
}

/// The first panels of a matrix.
struct Slab {
    tiles: Tiles,
    /// Panels that are there.
    panels: usize,
    /// Panels that the matrix has.
    all: usize,
    /// Rows that the matrix has, without padding.
    rows: usize,
}

impl<D: Device> Maker<'_, D> {
    fn constant(&mut self, len: usize, value: f32) -> Result<Address, CudaError> {
        self.model.put(bytemuck::cast_slice(&vec![value; len]))
    }

    /// Norms and biases of a layer.
    fn vectors(&mut self) -> Result<Vectors, CudaError> {
        let ModelSpec { hidden_size, heads, kv_heads, head_dim, .. } = self.model.spec;
        // An empty vector has the null address.
        let per_head = if self.model.spec.qk_norm { head_dim } else { 0 };
        let biases = if self.model.spec.qkv_bias { (heads + 2 * kv_heads) * head_dim } else { 0 };
        Ok(Vectors {
            attention_norm: self.constant(hidden_size, 1.0)?,
            feed_forward_norm: self.constant(hidden_size, 1.0)?,
            qkv_bias: self.constant(biases, 0.0)?,
            query_norm: self.constant(per_head, 1.0)?,
            key_norm: self.constant(per_head, 1.0)?,
        })
    }

    /// A copy of the weights.
    fn weights(
        &mut self,
        format: Format,
        vectors: &[Vectors],
        final_norm: Address,
    ) -> Result<Weights, CudaError> {
        let (vocabulary, hidden) = (self.model.spec.vocab_size, self.model.spec.hidden_size);
        let ends = self.slab(&[vocabulary], hidden, format.ends(), Order::Stacked)?;
        let embedding = self.matrix(&ends)?;
        let head = if self.model.spec.tied_head { embedding } else { self.matrix(&ends)? };
        let mut slabs = Vec::new();
        for &(tensors, order) in PRODUCTS {
            let (rows, cols) = self.sizes(tensors);
            slabs.push(self.slab(&rows, cols, format, order)?);
        }
        let mut layers = Vec::new();
        for &vectors in vectors {
            let matrices = slabs.iter().map(|slab| self.matrix(slab));
            let matrices = matrices.collect::<Result<Vec<_>, _>>()?;
            if let [qkv, output, gate_up, down] = matrices[..] {
                layers.push(Layer { vectors, qkv, output, gate_up, down });
            }
        }
        Ok(Weights::new(embedding, head, Layers::Device(layers), final_norm))
    }

    /// Rows of each of a layer's matrices, and their columns.
    fn sizes(&self, tensors: &[LayerTensor]) -> (Vec<usize>, usize) {
        let shape =
            |&tensor| self.model.spec.shape(TensorName::Layer(0, tensor)).unwrap_or_default();
        let shapes: Vec<_> = tensors.iter().map(shape).collect();
        let rows = shapes.iter().filter_map(|shape| shape.first().copied()).collect();
        (rows, shapes.first().and_then(|shape| shape.last().copied()).unwrap_or(0))
    }

    /// Packs the first panels of matrices that are joined, of `rows` rows each.
    fn slab(
        &mut self,
        rows: &[usize],
        cols: usize,
        format: Format,
        order: Order,
    ) -> Result<Slab, CudaError> {
        let sum: usize = rows.iter().sum();
        let all = match order {
            Order::Stacked => sum.div_ceil(PANEL_ROWS),
            Order::Interleaved => rows[0].div_ceil(TILE_ROWS),
        };
        let panels = all.min(SLAB_PANELS);
        // Padding rows become random too; kernels write nothing for them.
        let parts: Vec<_> = match order {
            Order::Stacked => vec![self.random(panels * PANEL_ROWS, cols)],
            Order::Interleaved => {
                rows.iter().map(|_| self.random(panels * TILE_ROWS, cols)).collect()
            }
        };
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        let tiles = pack(&parts, Storage::Format(format), order, threads)?;
        Ok(Slab { tiles, panels, all, rows: sum })
    }

    /// Rows of a size that keeps sums over `cols` inputs where the inputs are.
    fn random(&mut self, rows: usize, cols: usize) -> Named {
        let most = (3.0 / cols as f32).sqrt();
        let number = || {
            // Knuth's constants; the upper bits are the random ones.
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            most * ((self.state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        let data = std::iter::repeat_with(number).take(rows * cols).collect();
        // The name is for error messages; nothing here can be wrong with a weight.
        Named { name: TensorName::Head, cols, data: TensorData::F32(data) }
    }

    /// A matrix that a slab is the start of.
    fn matrix(&mut self, slab: &Slab) -> Result<Matrix, CudaError> {
        let Slab { ref tiles, panels, all, rows } = *slab;
        let mut whole = |part: &[u8]| self.repeat(part, part.len() / panels * all);
        let (codes, scales) = (whole(&tiles.codes)?, whole(&tiles.scales)?);
        // `CudaModel::new` has seen that rows are few enough.
        Ok(Matrix { rows: rows as u32, ..tiles.matrix(codes, scales) })
    }

    /// Memory of `bytes` bytes that starts with `start` and goes on with what it has so far.
    fn repeat(&mut self, start: &[u8], bytes: usize) -> Result<Address, CudaError> {
        if bytes == 0 {
            return Ok(Address::NULL);
        }
        let memory = self.model.take("weights", bytes, Fill::Nothing)?.address;
        self.model.device.upload(start, memory)?;
        let mut filled = start.len();
        while filled < bytes {
            let part = filled.min(bytes - filled);
            self.model.device.copy(memory, memory.offset(filled), part)?;
            filled += part;
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rewind_checkpoint::Architecture;
    use rewind_engine::{
        Executor, Input, Outputs, PageId, PageTable, Pass, Row, RowClass, Slot, Weights,
    };
    use rewind_executor_suite::small_spec;
    use rewind_kernels_emulator::{Emulator, Settings};

    use super::*;
    use crate::{Config, CudaExecutor, Exact, Placement, plan};

    fn emulator() -> Emulator {
        Emulator::new(Settings::default()).unwrap()
    }

    #[test]
    fn a_pass_gives_finite_logits_that_differ() {
        // Each with another block shape; rows of matrices that are no multiple of a panel, and beyond a slab.
        let cases = [
            (Architecture::Llama, "int4-g32"),
            (Architecture::Qwen2, "int8"),
            (Architecture::Qwen3, "bf16"),
        ];
        for (architecture, draft) in cases {
            let spec = small_spec(architecture, 610);
            let draft = draft.parse().ok();
            let model = CudaModel::synthetic(emulator(), &spec, draft, true, 7).unwrap();
            let config = Config { slots: 1, rows: 4, pages: 1, positions: 32 };
            let mut executor = CudaExecutor::new(model, config).unwrap();
            for weights in [Weights::Draft, Weights::Full] {
                let row = |position| Row {
                    slot: Slot(0),
                    position,
                    class: RowClass::Prompt,
                    input: Input::Token(600 - position),
                    outputs: Outputs { logits: true, ..Outputs::default() },
                    gate: None,
                    adapter: None,
                };
                let table = PageTable { slot: Slot(0), pages: Arc::new([PageId(0)]) };
                let pass = Pass {
                    weights,
                    layers: 0..spec.layers as u16,
                    copies: Vec::new(),
                    tables: vec![table],
                    rows: (0..4).map(row).collect(),
                };
                let ticket = executor.submit(pass).unwrap();
                for result in executor.wait(ticket).unwrap() {
                    let logits = result.logits.unwrap();
                    let squares: f32 = logits.iter().map(|x| x * x).sum();
                    let size = (squares / logits.len() as f32).sqrt();
                    assert!((0.2..5.0).contains(&size), "{architecture:?} {weights:?}: {size}");
                    assert_eq!(logits[0], logits[256], "rows repeat");
                    assert_ne!(logits[0], logits[255]);
                }
            }
        }
    }

    #[test]
    fn it_takes_the_memory_that_a_loaded_one_would() {
        for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
            let spec = small_spec(architecture, 610);
            for draft in rewind_formats::FORMAT_NAMES.split(", ") {
                let format = draft.parse().ok();
                let model = CudaModel::synthetic(emulator(), &spec, format, true, 1).unwrap();
                let mixture = format.map(rewind_formats::Mixture::from);
                let plan = plan(&spec, mixture.as_ref(), Exact::Bf16, Placement::Device);
                let WeightMemory { draft, shadow, shared } = model.memory();
                let found = [draft, shadow, shared].map(|bytes| bytes as u64);
                assert_eq!(found, [plan.draft, plan.shadow, plan.shared], "{format:?}");
                assert_eq!(model.taken, plan.device, "{format:?}");
            }
        }
    }

    #[test]
    fn nothing_to_make_is_an_error() {
        let spec = small_spec(Architecture::Llama, 64);
        let made = CudaModel::synthetic(emulator(), &spec, None, false, 1);
        assert!(matches!(made, Err(CudaError::NoWeights)));
    }
}
