//! The weights of a model in memory: draft, shadow, or both.
//!
//! Tensors arrive one at a time from any source, are packed by all threads and dropped, so loading
//! needs little more memory than the result. What draft and shadow have in common (norms, and
//! matrices of the same format) exists once.

use std::error::Error;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rewind_checkpoint::{LayerTensor, ModelSpec, Tensor, TensorData, TensorName};
use rewind_formats::{DraftFormats, Format, mixture};

use crate::arch::Isa;
use crate::error::CpuError;
use crate::matrix::{Elements, Matrix, PartMut, Storage};

/// What to load, and how fast.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Formats of the draft; `None` for no draft.
    pub draft: Option<DraftFormats>,
    /// Whether to keep the shadow, in the checkpoint's own precision.
    pub shadow: bool,
    /// Threads that pack; at least one is used.
    pub threads: usize,
    /// The instruction set that the weights are packed for.
    pub isa: Isa,
}

/// How far loading is, in weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Weights packed so far.
    pub done: u64,
    /// Weights in all.
    pub total: u64,
}

/// A model's weights, packed for the kernels of this crate. Immutable, so executors may share one.
#[derive(Debug)]
pub struct CpuModel {
    pub(crate) spec: ModelSpec,
    /// What the matrices are packed for.
    pub(crate) isa: Isa,
    pub(crate) draft: Option<Weights>,
    pub(crate) shadow: Option<Weights>,
    sizes: WeightMemory,
}

/// Memory of weights in bytes; matrices with their scales and padding, norms and biases included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightMemory {
    /// The draft, shared parts included; 0 if there is none.
    pub draft: usize,
    /// The shadow, shared parts included; 0 if there is none.
    pub shadow: usize,
    /// What draft and shadow share; counted in both above.
    pub shared: usize,
}

/// One copy of the weights.
#[derive(Debug)]
pub(crate) struct Weights {
    /// Formats of linear layers and of embedding and head, for people.
    pub(crate) formats: String,
    pub(crate) embedding: Arc<Matrix>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Arc<[f32]>,
    pub(crate) head: Arc<Matrix>,
}

/// Weights of one decoder block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) vectors: Arc<Vectors>,
    /// Query, key and value projections, one above the other.
    pub(crate) qkv: Arc<Matrix>,
    pub(crate) output: Arc<Matrix>,
    pub(crate) gate: Arc<Matrix>,
    pub(crate) up: Arc<Matrix>,
    pub(crate) down: Arc<Matrix>,
}

/// Norms and biases of a decoder block, in `f32`, the same for draft and shadow.
#[derive(Debug)]
pub(crate) struct Vectors {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) feed_forward_norm: Vec<f32>,
    /// Biases of query, key and value, one after the other; empty if there are none.
    pub(crate) qkv_bias: Vec<f32>,
    /// Norms of query and key heads; empty if there are none.
    pub(crate) query_norm: Vec<f32>,
    pub(crate) key_norm: Vec<f32>,
}

impl CpuModel {
    /// Loads a model.
    ///
    /// `source` gives each tensor of the model when asked for it, with the shape that
    /// [`ModelSpec::shape`] says. `progress` is called after each.
    ///
    /// # Errors
    /// Nothing to load; sizes that do not fit together; the source fails or gives another shape; a
    /// weight is not finite or does not fit the draft format. The tensor is named.
    pub fn load<E: Into<Box<dyn Error + Send + Sync>>>(
        spec: &ModelSpec,
        source: impl Fn(TensorName) -> Result<Tensor, E>,
        options: LoadOptions,
        mut progress: impl FnMut(Progress),
    ) -> Result<Self, CpuError> {
        if options.draft.is_none() && !options.shadow {
            return Err(CpuError::NoWeights);
        }
        if let Some(defect) = spec.defect() {
            return Err(CpuError::Spec(defect));
        }
        let formats = options.draft.clone();
        if let Some(plan) = formats.as_ref().and_then(DraftFormats::layers)
            && plan != spec.layers
        {
            return Err(CpuError::Layers { plan, model: spec.layers });
        }
        let mut done = 0;
        let mut get = |tensor: TensorName| {
            let found = source(tensor)
                .map_err(|source| CpuError::Source { tensor, source: source.into() })?;
            let expected = spec.shape(tensor).unwrap_or_default();
            let elements = found.data.len();
            if found.shape != expected || elements != expected.iter().product::<usize>() {
                return Err(CpuError::Shape { tensor, found: found.shape, elements, expected });
            }
            done += elements as u64;
            progress(Progress { done, total: spec.parameters() });
            let cols = expected.last().copied().unwrap_or(1);
            Ok(Named { name: tensor, cols, data: found.data })
        };
        let isa = options.isa;
        let mut pack = Packer { options, sizes: WeightMemory::default() };

        let draft = |tensor| formats.as_ref().map(|formats| Wanted::of(formats, tensor));
        let embedding =
            pack.matrix(&[get(TensorName::Embedding)?], draft(TensorName::Embedding))?;
        let mut layers = (Vec::new(), Vec::new());
        for number in 0..spec.layers {
            use LayerTensor as T;
            let name = |tensor| TensorName::Layer(number, tensor);
            let draft = draft(name(T::Query));
            let qkv = [get(name(T::Query))?, get(name(T::Key))?, get(name(T::Value))?];
            let qkv = pack.matrix(&qkv, draft)?;
            let mut matrix = |tensor| pack.matrix(&[get(name(tensor))?], draft);
            let output = matrix(T::Output)?;
            let gate = matrix(T::Gate)?;
            let up = matrix(T::Up)?;
            let down = matrix(T::Down)?;
            let mut vector = |tensor| get(name(tensor)).and_then(|tensor| pack.vector(&tensor));
            let mut vectors = Vectors {
                attention_norm: vector(T::AttentionNorm)?,
                feed_forward_norm: vector(T::FeedForwardNorm)?,
                qkv_bias: Vec::new(),
                query_norm: Vec::new(),
                key_norm: Vec::new(),
            };
            if spec.qkv_bias {
                for tensor in [T::QueryBias, T::KeyBias, T::ValueBias] {
                    vectors.qkv_bias.extend(vector(tensor)?);
                }
            }
            if spec.qk_norm {
                vectors.query_norm = vector(T::QueryNorm)?;
                vectors.key_norm = vector(T::KeyNorm)?;
            }
            let vectors = Arc::new(vectors);
            let layer = |side: fn(&Pair) -> &Option<Arc<Matrix>>| {
                let [qkv, output, gate, up, down] =
                    [&qkv, &output, &gate, &up, &down].map(|pair| side(pair).clone());
                let vectors = Arc::clone(&vectors);
                Some(Layer {
                    vectors,
                    qkv: qkv?,
                    output: output?,
                    gate: gate?,
                    up: up?,
                    down: down?,
                })
            };
            layers.0.extend(layer(|pair| &pair.draft));
            layers.1.extend(layer(|pair| &pair.shadow));
        }
        let final_norm: Arc<[f32]> = pack.vector(&get(TensorName::FinalNorm)?)?.into();
        let head = if spec.tied_head {
            embedding.clone()
        } else {
            pack.matrix(&[get(TensorName::Head)?], draft(TensorName::Head))?
        };

        let weights = |side: fn(&Pair) -> &Option<Arc<Matrix>>, layers: Vec<Layer>| {
            let (embedding, head) = (side(&embedding).clone()?, side(&head).clone()?);
            let final_norm = Arc::clone(&final_norm);
            let formats =
                mixture::describe(layers.iter().map(Layer::storage_names), head.storage_name());
            Some(Weights { formats, embedding, layers, final_norm, head })
        };
        Ok(Self {
            draft: weights(|pair| &pair.draft, layers.0),
            shadow: weights(|pair| &pair.shadow, layers.1),
            spec: spec.clone(),
            isa,
            sizes: pack.sizes,
        })
    }

    /// This model's draft with the shadow of `other`, which must be of the same shape: for a draft
    /// that comes from a checkpoint of its own, and packed for the same instruction set. Nothing is
    /// shared then.
    pub fn with_shadow_of(self, other: Self) -> Self {
        let sizes = WeightMemory { draft: self.sizes.draft, shadow: other.sizes.shadow, shared: 0 };
        Self { shadow: other.shadow, sizes, ..self }
    }

    /// Sizes and constants of the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Memory of the weights.
    pub fn memory(&self) -> WeightMemory {
        self.sizes
    }
}

impl Layer {
    /// Whether any of its matrices is multiplied with 8-bit activations.
    pub(crate) fn is_integer(&self) -> bool {
        self.matrices().into_iter().any(|matrix| matrix.is_integer())
    }

    /// Formats of its matrices, each once.
    fn storage_names(&self) -> String {
        mixture::each_once(self.matrices().map(|matrix| matrix.storage_name()))
    }

    fn matrices(&self) -> [&Matrix; 5] {
        [&self.qkv, &self.output, &self.gate, &self.up, &self.down].map(|matrix| &**matrix)
    }
}

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
}

struct Named {
    name: TensorName,
    /// Length of a row.
    cols: usize,
    data: TensorData,
}

/// The draft's and the shadow's form of a matrix; the same one if the formats are.
#[derive(Clone)]
struct Pair {
    draft: Option<Arc<Matrix>>,
    shadow: Option<Arc<Matrix>>,
}

struct Packer {
    options: LoadOptions,
    sizes: WeightMemory,
}

/// Rows that a thread packs at a time, whole panels of any width: enough to be worth a lock, few enough
/// to share evenly.
const RUN: usize = 64;

impl Packer {
    fn vector(&mut self, tensor: &Named) -> Result<Vec<f32>, CpuError> {
        check_finite(tensor, 0, Elements::of(&tensor.data, 0..tensor.data.len()))?;
        let values = tensor.data.to_f32();
        self.count(size_of_val::<[f32]>(&values), true, true);
        Ok(values)
    }

    /// Adds a part's bytes to the copies that have it.
    fn count(&mut self, bytes: usize, draft: bool, shadow: bool) {
        let (draft, shadow) =
            (draft && self.options.draft.is_some(), shadow && self.options.shadow);
        self.sizes.draft += if draft { bytes } else { 0 };
        self.sizes.shadow += if shadow { bytes } else { 0 };
        self.sizes.shared += if draft && shadow { bytes } else { 0 };
    }

    /// Packs matrices of equal width, one above the other.
    fn matrix(&mut self, tensors: &[Named], draft: Option<Wanted>) -> Result<Pair, CpuError> {
        let exact = exact_storage(tensors);
        let draft = draft.map(|wanted| match wanted {
            Wanted::Format(format) => Storage::Format(format),
            Wanted::Stored => kept_storage(tensors),
        });
        let same = draft == Some(exact);
        let make = |storage| self.pack(tensors, storage).map(Arc::new);
        let shadow = (self.options.shadow || same).then(|| make(exact)).transpose()?;
        let draft = match draft {
            Some(_) if same => shadow.clone(),
            Some(storage) => Some(make(storage)?),
            None => None,
        };
        if same {
            self.count(draft.as_ref().map_or(0, |m| m.bytes()), true, true);
        } else {
            self.count(draft.as_ref().map_or(0, |m| m.bytes()), true, false);
            self.count(shadow.as_ref().map_or(0, |m| m.bytes()), false, true);
        }
        Ok(Pair { draft, shadow: shadow.filter(|_| self.options.shadow) })
    }

    fn pack(&self, tensors: &[Named], storage: Storage) -> Result<Matrix, CpuError> {
        let cols = tensors[0].cols;
        let rows = tensors.iter().map(|tensor| tensor.data.len() / cols).sum();
        let exact = exact_storage(tensors) == storage;
        let mut matrix = Matrix::zeroed(storage, self.options.isa.panel_width(), rows, cols);
        let work = Mutex::new(matrix.parts_mut(RUN).into_iter());
        let failure = Mutex::new(None);
        let serve = || {
            loop {
                let next = work.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(mut part) = next else { break };
                let mut pieces = pieces(tensors, part.range());
                let packed = pieces.try_for_each(|piece| piece.pack(&mut part, storage, exact));
                if let Err(error) = packed {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    break;
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.options.threads.min(rows.div_ceil(RUN)) {
                scope.spawn(serve);
            }
            serve();
        });
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        failure.map_or(Ok(matrix), Err)
    }
}

/// The checkpoint's precision, or `f32` where tensors of different ones are joined. Packed tensors count as
/// `f16`, which holds what they stand for as well as the checkpoint itself gives it dequantized.
fn exact_storage(tensors: &[Named]) -> Storage {
    let exact = |tensor: &Named| match tensor.storage() {
        Storage::Format(Format::Bf16) => Storage::Format(Format::Bf16),
        Storage::Format(_) => Storage::Format(Format::F16),
        Storage::F32 => Storage::F32,
    };
    let first = exact(&tensors[0]);
    if tensors.iter().all(|tensor| exact(tensor) == first) { first } else { Storage::F32 }
}

/// What keeps tensors that are joined as they come. Where their formats differ, it is that of their dequantized
/// weights, since to quantize some of them again would change them.
fn kept_storage(tensors: &[Named]) -> Storage {
    let first = tensors[0].storage();
    let one = tensors.iter().all(|tensor| tensor.storage() == first);
    if one { first } else { exact_storage(tensors) }
}

impl Named {
    /// How it comes.
    fn storage(&self) -> Storage {
        match &self.data {
            TensorData::F32(_) => Storage::F32,
            TensorData::F16(_) => Storage::Format(Format::F16),
            TensorData::Bf16(_) => Storage::Format(Format::Bf16),
            TensorData::Packed(packed) => Storage::Format(packed.format()),
        }
    }
}

/// Some rows of a tensor that go into a part of a matrix.
struct Piece<'a> {
    tensor: &'a Named,
    first: usize,
    rows: usize,
    /// The part's row that the first one becomes.
    at: usize,
}

/// The pieces that these rows of the joined tensors are.
fn pieces(tensors: &[Named], range: Range<usize>) -> impl Iterator<Item = Piece<'_>> {
    let mut above = 0;
    tensors.iter().filter_map(move |tensor| {
        let own = above..above + tensor.data.len() / tensor.cols;
        above = own.end;
        let (start, end) = (range.start.max(own.start), range.end.min(own.end));
        let piece = || Piece {
            tensor,
            first: start - own.start,
            rows: end - start,
            at: start - range.start,
        };
        (start < end).then(piece)
    })
}

impl Piece<'_> {
    fn pack(&self, part: &mut PartMut<'_>, storage: Storage, exact: bool) -> Result<(), CpuError> {
        let cols = self.tensor.cols;
        let range = self.first * cols..(self.first + self.rows) * cols;
        let elements = Elements::of(&self.tensor.data, range);
        check_finite(self.tensor, self.first, elements)?;
        let named =
            |source| CpuError::Quantize { tensor: self.tensor.name, first_row: self.first, source };
        match (storage, elements) {
            (Storage::Format(format), Elements::Packed(rows)) => {
                if rows.format() == format {
                    part.keep(self.at, &rows.cut().map_err(named)?);
                    return Ok(());
                }
                part.quantize(self.at, format, elements).map_err(named)
            }
            (Storage::Format(format), _) if !exact => {
                part.quantize(self.at, format, elements).map_err(named)
            }
            _ => {
                part.copy(self.at, elements);
                Ok(())
            }
        }
    }
}

fn check_finite(tensor: &Named, first_row: usize, elements: Elements<'_>) -> Result<(), CpuError> {
    let cols = tensor.cols;
    elements.first_not_finite().map_or(Ok(()), |(at, value)| {
        let (row, col) = (first_row + at / cols, at % cols);
        Err(CpuError::NotFinite { tensor: tensor.name, row, col, value })
    })
}
