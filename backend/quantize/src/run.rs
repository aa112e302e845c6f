//! From a checkpoint to a quantized folder, a layer at a time.
//!
//! Each finished layer is a file in `FOLDER/.parts` whose header has a hash of the settings. A run that was
//! interrupted finds them and goes on after the last; GPTQ's hidden states are then computed again from what those
//! layers have become. At the end the parts are joined in a stream. So memory is that of one layer, or of the
//! embedding, and of the hidden states of the calibration text.

use std::fs;
use std::path::{Path, PathBuf};

use rewind_checkpoint::{LayerTensor, TensorName};
use rewind_formats::{Mixture, Packed};
use serde_json::json;

use crate::archive::{self, Entry, Metadata, Place};
use crate::error::QuantizeError;
use crate::forward::{Forward, Weights};
use crate::manifest::{Calibrated, Formats, Manifest, MethodSettings, Origin};
use crate::method::{GptqError, Hessian, compensated, rounded};
use crate::source::Source;
use crate::{average_bits, folder, names};

/// How weights become codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Each weight to the nearest code.
    Rtn,
    /// Errors compensated by the statistics of inputs.
    Gptq,
}

/// Text that a method sees inputs of.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Name of the text.
    pub text: String,
    /// BLAKE3 of its bytes, hexadecimal.
    pub blake3: String,
    /// Token ids of each chunk, a sequence of its own.
    pub chunks: Vec<Vec<u32>>,
}

impl Calibration {
    /// Hash of a text.
    pub fn hash(text: &[u8]) -> String {
        blake3::hash(text).to_hex().to_string()
    }
}

/// What to make of what.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// GGUF file or Hugging Face folder.
    pub model: &'a Path,
    /// `tokenizer.json` to take in place of the model's; a GGUF file has none.
    pub tokenizer: Option<&'a Path>,
    /// How weights become codes.
    pub method: Method,
    /// Formats of all matrices.
    pub formats: Mixture,
    /// Read by [`Method::Gptq`].
    pub calibration: Option<Calibration>,
    /// Threads that compute; the result does not depend on them.
    pub threads: usize,
    /// Folder to write.
    pub out: &'a Path,
}

/// Where parts are until they are joined.
const PARTS: &str = ".parts";

/// Key of the hash in the header of a part.
const SETTINGS: &str = "settings";

/// Makes the folder. `progress` is called with the number of parts that are done, of `layers + 1`: embedding,
/// final norm and head are the first.
///
/// # Errors
/// See [`QuantizeError`]. What is done by then stays, and the same job goes on from there.
pub fn quantize(job: &Job<'_>, mut progress: impl FnMut(usize)) -> Result<Manifest, QuantizeError> {
    let mut source = Source::open(job.model)?;
    let spec = source.checkpoint().spec().clone();
    if let Some(formats) = job.formats.layers().filter(|&formats| formats != spec.layers) {
        return Err(QuantizeError::Layers { formats, layers: spec.layers });
    }
    let calibration = match job.method {
        Method::Rtn => None,
        Method::Gptq => {
            let given = job.calibration.as_ref();
            Some(
                given
                    .filter(|c| c.chunks.iter().any(|c| !c.is_empty()))
                    .ok_or(QuantizeError::NoText)?,
            )
        }
    };
    let tokens = calibration.iter().flat_map(|c| c.chunks.iter().flatten());
    if let Some(&token) = tokens.clone().find(|&&token| token as usize >= spec.vocab_size) {
        return Err(QuantizeError::Token { token, vocabulary: spec.vocab_size });
    }
    let files = folder::files(source.checkpoint(), job.tokenizer)?;
    let parts = job.out.join(PARTS);
    prepare(job.out, &parts)?;
    let [layer_bits, all_bits] = average_bits(&spec, &job.formats);
    let mut manifest = Manifest {
        version: Manifest::VERSION,
        source: Origin { name: source.name(), blake3: source.hash()? },
        method: MethodSettings::of(job.method),
        calibration: calibration.map(|c| Calibrated {
            text: c.text.clone(),
            blake3: c.blake3.clone(),
            chunks: c.chunks.len(),
            tokens: tokens.count(),
        }),
        formats: Formats::of(&job.formats, spec.layers, spec.tied_head),
        layer_bits,
        all_bits,
        tensors: Default::default(),
    };
    // Whatever the bytes of a part depend on. The tokens, since they are made of the text in other ways.
    let chunks = calibration.map(|c| &c.chunks);
    let settings = blake3::hash(json!([&manifest, chunks]).to_string().as_bytes());
    let mut writer = Parts { folder: parts, settings: settings.to_hex().to_string() };

    let ends = writer.path(None);
    if !writer.done(&ends)? {
        writer.write(&ends, ends_of(&mut source, job)?)?;
    }
    progress(1);
    let positions = chunks.into_iter().flatten().map(Vec::len).max().unwrap_or(0);
    let forward = Forward::new(&spec, positions, job.threads);
    let mut states = match chunks {
        None => None,
        Some(chunks) => Some(embedded(&writer.matrix(&ends, TensorName::Embedding)?, chunks)),
    };
    for layer in 0..spec.layers {
        let path = writer.path(Some(layer));
        let done = writer.done(&path)?;
        let mut weights = Weights::new();
        if !done || states.is_some() {
            for tensor in LayerTensor::ALL {
                let name = TensorName::Layer(layer, tensor);
                let Some(shape) = spec.shape(name) else { continue };
                // Of a layer that is done, matrices come out of the part.
                let read = match done && shape.len() == 2 {
                    true => dequantized(&writer.matrix(&path, name)?),
                    false => source.tensor(name)?,
                };
                weights.insert(tensor, read);
            }
        }
        if done {
            if let Some(states) = &mut states {
                forward.block(states, &weights);
            }
        } else {
            let mut work = Layer { job, layer, weights, forward: &forward, part: Part::default() };
            match &mut states {
                None => work.round()?,
                Some(states) => work.compensate(states)?,
            }
            writer.write(&path, work.finish())?;
        }
        progress(layer + 2);
    }

    fs::create_dir_all(job.out).map_err(QuantizeError::file(job.out))?;
    for (name, content) in files {
        folder::write(&job.out.join(name), &content)?;
    }
    manifest.tensors = writer.join(&job.out.join("model.safetensors"), spec.layers)?;
    folder::check(job.out, source.checkpoint())?;
    let text = folder::pretty(&json!(manifest));
    folder::write(&job.out.join("manifest.json"), &text)?;
    fs::remove_dir_all(&writer.folder).map_err(QuantizeError::file(&writer.folder))?;
    Ok(manifest)
}

/// Makes room, and refuses to write over anything but an unfinished run.
fn prepare(out: &Path, parts: &Path) -> Result<(), QuantizeError> {
    let used = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(QuantizeError::file(out)(error)),
    };
    if used && !parts.is_dir() {
        return Err(QuantizeError::Exists { path: out.to_owned() });
    }
    fs::create_dir_all(parts).map_err(QuantizeError::file(parts))
}

/// Tensors of a part, and what its header says of them.
#[derive(Default)]
struct Part {
    entries: Vec<Entry>,
    metadata: Metadata,
}

impl Part {
    fn matrix(&mut self, name: TensorName, matrix: &Packed) {
        let entries = archive::packed(&names::of(name), matrix, &mut self.metadata);
        self.entries.extend(entries);
    }

    /// Norms and biases stay in f32.
    fn vector(&mut self, name: TensorName, values: &[f32]) {
        self.entries.push(Entry {
            name: names::of(name),
            dtype: "F32",
            shape: vec![values.len()],
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        });
    }
}

/// The files of parts.
struct Parts {
    folder: PathBuf,
    settings: String,
}

impl Parts {
    /// Of a layer, or of what stands around them.
    fn path(&self, layer: Option<usize>) -> PathBuf {
        self.folder.join(match layer {
            Some(layer) => format!("layer-{layer:03}.safetensors"),
            None => "ends.safetensors".to_owned(),
        })
    }

    /// Whether a part is there. A damaged one is made again.
    fn done(&self, path: &Path) -> Result<bool, QuantizeError> {
        if !path.exists() {
            return Ok(false);
        }
        match archive::read(path) {
            Ok((metadata, _)) if metadata.get(SETTINGS) == Some(&self.settings) => Ok(true),
            Ok(_) => Err(QuantizeError::OtherRun { path: path.to_owned() }),
            Err(_) => Ok(false),
        }
    }

    fn write(&mut self, path: &Path, mut part: Part) -> Result<(), QuantizeError> {
        part.metadata.insert(SETTINGS.to_owned(), self.settings.clone());
        archive::write(path, &part.metadata, part.entries).map_err(QuantizeError::file(path))
    }

    fn matrix(&self, path: &Path, name: TensorName) -> Result<Packed, QuantizeError> {
        archive::read(path)
            .and_then(|(metadata, places)| archive::matrix(&metadata, &places, &names::of(name)))
            .map_err(QuantizeError::file(path))
    }

    /// One file of all; hashes of its tensors.
    fn join(
        &self,
        to: &Path,
        layers: usize,
    ) -> Result<std::collections::BTreeMap<String, String>, QuantizeError> {
        let (mut all, mut places) = (Metadata::new(), Vec::<Place>::new());
        for layer in std::iter::once(None).chain((0..layers).map(Some)) {
            let path = self.path(layer);
            let (metadata, found) = archive::read(&path).map_err(QuantizeError::file(&path))?;
            all.extend(metadata);
            places.extend(found);
        }
        all.remove(SETTINGS);
        all.insert("format".to_owned(), "rewind".to_owned());
        all.insert("version".to_owned(), "1".to_owned());
        archive::join(to, &all, places).map_err(QuantizeError::file(to))
    }
}

/// Embedding, final norm, and the head where it is another matrix: rounded, by any method.
fn ends_of(source: &mut Source, job: &Job<'_>) -> Result<Part, QuantizeError> {
    let spec = source.checkpoint().spec().clone();
    let mut part = Part::default();
    for (name, format) in
        [(TensorName::Embedding, job.formats.embedding()), (TensorName::Head, job.formats.head())]
    {
        if name == TensorName::Head && spec.tied_head {
            continue;
        }
        let weights = source.tensor(name)?;
        let (rows, cols) = (spec.vocab_size, spec.hidden_size);
        let packed = rounded(format, rows, cols, &weights, job.threads);
        part.matrix(name, &packed.map_err(within(name))?);
    }
    part.vector(TensorName::FinalNorm, &source.tensor(TensorName::FinalNorm)?);
    Ok(part)
}

/// Hidden states of chunks before the first layer.
fn embedded(embedding: &Packed, chunks: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let state = |&token: &u32| {
        let mut state = vec![0.0; embedding.cols()];
        embedding.dequantize_row(token as usize, &mut state);
        state
    };
    let chunks = chunks.iter().filter(|chunk| !chunk.is_empty());
    chunks.map(|chunk| chunk.iter().flat_map(state).collect()).collect()
}

fn dequantized(packed: &Packed) -> Vec<f32> {
    let mut values = vec![0.0; packed.rows() * packed.cols()];
    for (row, values) in values.chunks_mut(packed.cols()).enumerate() {
        packed.dequantize_row(row, values);
    }
    values
}

fn within<E: Into<GptqError>>(tensor: TensorName) -> impl FnOnce(E) -> QuantizeError {
    move |source| QuantizeError::Tensor { tensor, source: source.into() }
}

/// A layer on its way.
struct Layer<'a> {
    job: &'a Job<'a>,
    layer: usize,
    /// Those that are quantized already stand dequantized.
    weights: Weights,
    forward: &'a Forward<'a>,
    part: Part,
}

impl Layer<'_> {
    /// All matrices, plainly.
    fn round(&mut self) -> Result<(), QuantizeError> {
        let matrices = [
            LayerTensor::Query,
            LayerTensor::Key,
            LayerTensor::Value,
            LayerTensor::Output,
            LayerTensor::Gate,
            LayerTensor::Up,
            LayerTensor::Down,
        ];
        self.matrices(&matrices, None)
    }

    /// All matrices in the order in which the model uses them, each by inputs that the quantized ones before it
    /// give; and the states that come out.
    fn compensate(&mut self, states: &mut Vec<Vec<f32>>) -> Result<(), QuantizeError> {
        let forward = self.forward;
        let normed = forward.normed(states, &self.weights, LayerTensor::AttentionNorm);
        self.matrices(&[LayerTensor::Query, LayerTensor::Key, LayerTensor::Value], Some(&normed))?;
        let attended = forward.attended(&normed, &self.weights);
        drop(normed);
        self.matrices(&[LayerTensor::Output], Some(&attended))?;
        forward.add(states, &attended, &self.weights, LayerTensor::Output);
        drop(attended);
        let normed = forward.normed(states, &self.weights, LayerTensor::FeedForwardNorm);
        self.matrices(&[LayerTensor::Gate, LayerTensor::Up], Some(&normed))?;
        let gated = forward.gated(&normed, &self.weights);
        drop(normed);
        self.matrices(&[LayerTensor::Down], Some(&gated))?;
        forward.add(states, &gated, &self.weights, LayerTensor::Down);
        Ok(())
    }

    /// Matrices of the same inputs.
    fn matrices(
        &mut self,
        tensors: &[LayerTensor],
        inputs: Option<&[Vec<f32>]>,
    ) -> Result<(), QuantizeError> {
        let (format, threads) = (self.job.formats.layer(self.layer), self.job.threads);
        let mut hessian = None;
        for &tensor in tensors {
            let name = TensorName::Layer(self.layer, tensor);
            let Some(shape) = self.forward.spec().shape(name) else { continue };
            let Some(weights) = self.weights.get_mut(&tensor) else { continue };
            let &[rows, cols] = &shape[..] else { continue };
            let packed = match inputs {
                None => rounded(format, rows, cols, weights, threads).map_err(within(name))?,
                Some(inputs) => {
                    let hessian = hessian.get_or_insert_with(|| Hessian::of(inputs, cols, threads));
                    compensated(format, rows, cols, weights, hessian, threads)
                        .map_err(within(name))?
                }
            };
            self.part.matrix(name, &packed);
            // What the layers behind see; where nothing looks, the memory is better free.
            *weights = if inputs.is_some() { dequantized(&packed) } else { Vec::new() };
        }
        Ok(())
    }

    /// With the vectors.
    fn finish(mut self) -> Part {
        for (&tensor, values) in &self.weights {
            let name = TensorName::Layer(self.layer, tensor);
            if self.forward.spec().shape(name).is_some_and(|shape| shape.len() == 1) {
                self.part.vector(name, values);
            }
        }
        self.part
    }
}
