//! From a checkpoint to a quantized folder, a layer at a time.
//!
//! Each finished layer is a file in `FOLDER/.parts` whose header has a hash of the settings. A run that was
//! interrupted finds them and goes on after the last; the hidden states of the calibration text are then computed again
//! from what those layers have become. At the end the parts are joined in a stream. So memory is that of one layer, or of the
//! embedding, and of the hidden states of the calibration text.

use std::fs;
use std::path::Path;

use rewind_checkpoint::{LayerTensor, ModelSpec, TensorName};
use rewind_formats::{Mixture, PackError, Packed};

use crate::average_bits;
use crate::methods::error::QuantizeError;
use crate::methods::folder;
use crate::methods::forward::{Forward, Weights};
use crate::methods::layer::Layer;
use crate::methods::manifest::{Calibrated, Formats, Manifest, MethodSettings, Origin};
use crate::methods::method::rounded;
use crate::methods::parts::{Part, Parts};
use crate::methods::source::Source;

/// How weights become codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Each weight to the nearest code.
    Rtn,
    /// Errors compensated by the statistics of inputs.
    Gptq,
    /// Each weight to the nearest code, at scales that suit the inputs.
    Awq,
}

impl Method {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
        }
    }
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
    /// How weights become codes.
    pub method: Method,
    /// Formats of all matrices.
    pub formats: Mixture,
    /// Read by every method but [`Method::Rtn`].
    pub calibration: Option<Calibration>,
    /// Threads that compute; the result does not depend on them.
    pub threads: usize,
    /// Folder to write.
    pub out: &'a Path,
}

/// Where parts are until they are joined.
const PARTS: &str = ".parts";

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
        Method::Gptq | Method::Awq => {
            let given = job.calibration.as_ref();
            let given = given.filter(|c| c.chunks.iter().any(|c| !c.is_empty()));
            Some(given.ok_or(QuantizeError::NoText { method: job.method.name() })?)
        }
    };
    let tokens = calibration.iter().flat_map(|c| c.chunks.iter().flatten());
    if let Some(&token) = tokens.clone().find(|&&token| token as usize >= spec.vocab_size) {
        return Err(QuantizeError::Token { token, vocabulary: spec.vocab_size });
    }
    let files = folder::files(source.checkpoint())?;
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
    let settings = serde_json::to_vec(&(&manifest, chunks)).map_err(folder::unwritable(job.out))?;
    let parts = Parts::new(parts, blake3::hash(&settings).to_hex().to_string());

    let ends = parts.path(None);
    if !parts.done(&ends)? {
        parts.write(&ends, ends_of(&mut source, job)?)?;
    }
    progress(1);
    let positions = chunks.into_iter().flatten().map(Vec::len).max().unwrap_or(0);
    let forward = Forward::new(&spec, positions, job.threads);
    let mut states = match chunks {
        None => None,
        Some(chunks) => Some(embedded(&parts.matrix(&ends, TensorName::Embedding)?, chunks)),
    };
    for layer in 0..spec.layers {
        let path = parts.path(Some(layer));
        if parts.done(&path)? {
            if let Some(states) = &mut states {
                forward.block(states, &parts.weights(&path, &spec, layer)?);
            }
        } else {
            let weights = weights_of(&mut source, &spec, layer)?;
            let format = job.formats.layer(layer);
            let mut work = Layer::new(layer, format, weights, &forward, job.threads);
            match &mut states {
                None => work.round()?,
                Some(states) => work.calibrate(job.method, states)?,
            }
            parts.write(&path, work.finish())?;
        }
        progress(layer + 2);
    }

    for (name, content) in files {
        folder::write(&job.out.join(name), &content)?;
    }
    manifest.tensors = parts.join(&job.out.join("model.safetensors"), spec.layers)?;
    folder::check(job.out, source.checkpoint(), &job.formats)?;
    folder::write(&job.out.join("manifest.json"), &folder::pretty(&manifest, job.out)?)?;
    parts.remove()?;
    Ok(manifest)
}

/// Tensors of a layer.
fn weights_of(
    source: &mut Source,
    spec: &ModelSpec,
    layer: usize,
) -> Result<Weights, QuantizeError> {
    let names = LayerTensor::ALL.map(|tensor| (tensor, TensorName::Layer(layer, tensor)));
    let there = names.into_iter().filter(|&(_, name)| spec.shape(name).is_some());
    there.map(|(tensor, name)| Ok((tensor, source.tensor(name)?))).collect()
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

fn within(tensor: TensorName) -> impl FnOnce(PackError) -> QuantizeError {
    move |source| QuantizeError::Tensor { tensor, source: source.into() }
}
