//! A checkpoint: one front for both kinds of files.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use rewind_formats::ggml::GgmlType;
use rewind_formats::{Format, PackError, Packed};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{CheckpointError, Fault};
use crate::gguf;
use crate::huggingface::quantized::{Method, Quantized};
use crate::huggingface::{self, config, special::Settings};
use crate::template::ChatTemplate;
use crate::weights::{Mapping, Stored, StoredType, Weights, tensor, unreadable_type};
use crate::{
    Architecture, GenerationDefaults, ModelSpec, RopeScaling, Tensor, TensorData, TensorName,
    Tokenizer,
};

/// An opened checkpoint: its files are mapped and every tensor of the model is known to be there,
/// with the right shape and a readable type.
///
/// What is read out of it is owned, so dropping it unmaps the files. Do so when the weights are
/// loaded: a mapped file that another process truncates ends this one.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    container: Container,
    weights: Weights,
    /// Matrices that stand in several tensors.
    quantized: Quantized,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    generation: GenerationDefaults,
    fingerprint: String,
}

/// Kind of checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A GGUF file.
    Gguf,
    /// A Hugging Face folder.
    HuggingFace,
}

/// A tensor as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Element type as the file's format calls it, such as `BF16` or `Q4_K`.
    pub dtype: String,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// Bytes that it takes in the file.
    pub bytes: usize,
}

impl<'a> StoredTensor<'a> {
    fn new(name: &'a str, stored: &'a Stored) -> Self {
        let (dtype, bytes) = (stored.ty.name(), stored.range.len());
        Self { name, dtype, shape: &stored.shape, bytes }
    }
}

impl Checkpoint {
    /// Opens a `.gguf` file or a Hugging Face folder and checks all of it but the numbers.
    ///
    /// # Errors
    ///
    /// Files that are missing, cut short, inconsistent, or of a model that Rewind cannot run. NaN
    /// and infinities among the weights are not looked for here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let about = std::fs::metadata(path).map_err(CheckpointError::io(path))?;
        if about.is_dir() {
            return Self::open_folder(path);
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Self::open_gguf(path);
        }
        let why = "it is neither a folder nor a .gguf file";
        Err(CheckpointError::NotACheckpoint { path: path.to_owned(), why })
    }

    fn open_gguf(path: &Path) -> Result<Self, CheckpointError> {
        let (keys, weights) = gguf::read(Mapping::open(path)?)?;
        let within = |fault: Fault| fault.within(path);
        let mut spec = gguf::model::spec(&keys, &weights.tensors).map_err(within)?;
        if let Some(stored) = weights.tensors.get(gguf::model::ROPE_DIVISORS) {
            spec.rope.scaling = rope_divisors(&weights, stored, &spec, path)?;
        }
        let quantized = Quantized::default();
        check_tensors(path, Container::Gguf, &weights, &quantized, &spec)?;
        let tokenizer = gguf::vocabulary::tokenizer(&keys, spec.vocab_size).map_err(within)?;
        let generation = gguf::vocabulary::generation(&keys, spec.vocab_size).map_err(within)?;
        let chat_template = match keys.optional_str("tokenizer.chat_template").map_err(within)? {
            None => None,
            Some(source) => {
                let token = |key| gguf::vocabulary::token_text(&keys, key).map_err(within);
                let bos = token("tokenizer.ggml.bos_token_id")?;
                let eos = token("tokenizer.ggml.eos_token_id")?;
                let template = ChatTemplate::new(source.to_owned(), bos, eos);
                Some(template.map_err(|source| CheckpointError::Template {
                    file: path.to_owned(),
                    source,
                })?)
            }
        };
        let fingerprint = fingerprint(&spec, &weights, &quantized);
        Ok(Self {
            path: path.to_owned(),
            container: Container::Gguf,
            weights,
            quantized,
            spec,
            tokenizer,
            chat_template,
            generation,
            fingerprint,
        })
    }

    fn open_folder(folder: &Path) -> Result<Self, CheckpointError> {
        let not_a_checkpoint =
            |why| CheckpointError::NotACheckpoint { path: folder.to_owned(), why };
        let config: Value = huggingface::json_file(folder, "config.json")?
            .ok_or_else(|| not_a_checkpoint("it has no config.json"))?;
        let in_config = |fault: Fault| fault.within(&folder.join("config.json"));
        let spec = config::spec(&config).map_err(in_config)?;
        let method = Method::read(&config).map_err(in_config)?;
        let weights = huggingface::weights(folder)?;
        let quantized = match method {
            None => Quantized::default(),
            Some(method) => {
                let matrices = spec.tensors().filter_map(|tensor| {
                    let shape = spec.shape(tensor)?.try_into().ok()?;
                    Some((file_name(Container::HuggingFace, &spec, tensor), shape))
                });
                Quantized::find(&method, &config, &weights, folder, matrices)?
            }
        };
        check_tensors(folder, Container::HuggingFace, &weights, &quantized, &spec)?;
        let json = huggingface::text_file(folder, "tokenizer.json")?
            .ok_or_else(|| not_a_checkpoint("it has no tokenizer.json"))?;
        let tokenizer = Tokenizer::from_json(&json, spec.vocab_size).map_err(|source| {
            CheckpointError::Tokenizer { file: folder.join("tokenizer.json"), source }
        })?;
        let settings = Settings::read(folder)?;
        let fingerprint = fingerprint(&spec, &weights, &quantized);
        Ok(Self {
            path: folder.to_owned(),
            container: Container::HuggingFace,
            generation: settings.generation(folder, &config, &tokenizer)?,
            chat_template: settings.chat_template(folder)?,
            weights,
            quantized,
            spec,
            tokenizer,
            fingerprint,
        })
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kind of checkpoint.
    pub fn container(&self) -> Container {
        self.container
    }

    /// Shape and constants of the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Copies a tensor of the model out of the files.
    ///
    /// Its shape is what [`ModelSpec::shape`] says. The head of a model with tied weights is its
    /// embedding. Quantized matrices arrive dequantized, rounded once to F16; everything else in the
    /// precision of the file. Rows of query and key heads are in "rotate half" order whatever the
    /// file's. NaN and infinities are not looked for.
    ///
    /// # Errors
    ///
    /// If the model has no such tensor, or if what it is quantized with contradicts itself.
    pub fn tensor(&self, name: TensorName) -> Result<Tensor, CheckpointError> {
        let missing = || CheckpointError::NoSuchTensor { tensor: name };
        let shape = self.spec.shape(name).ok_or_else(missing)?;
        let in_file = self.file_name(name);
        if let Some(data) = self.quantized.dequantized(&self.weights, &in_file) {
            return Ok(Tensor { shape, data: data? });
        }
        let stored = self.weights.tensors.get(&in_file).ok_or_else(missing)?;
        let mut data = self.weights.read(&in_file, stored)?;
        if self.container == Container::Gguf
            && let Some(heads) = gguf::model::permuted_heads(&self.spec, name)
        {
            let head_dim = self.spec.head_dim;
            data = match data {
                TensorData::F32(v) => TensorData::F32(gguf::model::unpermute(&v, heads, head_dim)),
                TensorData::F16(v) => TensorData::F16(gguf::model::unpermute(&v, heads, head_dim)),
                TensorData::Bf16(v) => {
                    TensorData::Bf16(gguf::model::unpermute(&v, heads, head_dim))
                }
                packed @ TensorData::Packed(_) => packed,
            };
        }
        Ok(Tensor { shape, data })
    }

    /// Copies a tensor of the model out of the files as it stands there: a quantized matrix whose layout is one of
    /// the formats of drafts arrives packed, with the codes of the file, and everything else as
    /// [`tensor`](Self::tensor) gives it. `docs/checkpoints.md` says which layouts these are, and which of their
    /// numbers are rounded.
    ///
    /// # Errors
    ///
    /// As of [`tensor`](Self::tensor); codes or scales that stand for no finite weight.
    pub fn stored_tensor(&self, name: TensorName) -> Result<Tensor, CheckpointError> {
        let missing = || CheckpointError::NoSuchTensor { tensor: name };
        let shape = self.spec.shape(name).ok_or_else(missing)?;
        let in_file = self.file_name(name);
        if let Some(data) = self.quantized.stored(&self.weights, &in_file) {
            return Ok(Tensor { shape, data: data? });
        }
        let stored = self.weights.tensors.get(&in_file).ok_or_else(missing)?;
        if let (StoredType::Known(ty), &[rows, cols]) = (&stored.ty, &shape[..])
            && let Some(bytes) = self.weights.bytes(&in_file)
        {
            let fault = |error: PackError| {
                let file = self.weights.files[stored.file].path();
                Fault::malformed(tensor(&in_file), error.to_string()).within(file)
            };
            if let Some(packed) = gguf::kept::packed(*ty, rows, cols, bytes).map_err(fault)? {
                let packed = match gguf::model::permuted_heads(&self.spec, name) {
                    None => packed,
                    Some(heads) => {
                        let numbers: Vec<usize> = (0..rows).collect();
                        let order = gguf::model::unpermute(&numbers, heads, self.spec.head_dim);
                        let rows = order.into_iter().map(|row| (&packed, row));
                        Packed::from_rows(rows).map_err(fault)?
                    }
                };
                return Ok(Tensor { shape, data: TensorData::Packed(packed) });
            }
        }
        self.tensor(name)
    }

    /// The format of a matrix as [`stored_tensor`](Self::stored_tensor) gives it, told without reading its codes;
    /// `None` for single precision.
    ///
    /// A matrix with a code that its format lacks is F16 after all: nothing that is known writes such files.
    ///
    /// # Errors
    ///
    /// If the model has no such tensor.
    pub fn stored_format(&self, name: TensorName) -> Result<Option<Format>, CheckpointError> {
        let in_file = self.file_name(name);
        if let Some(format) = self.quantized.format(&self.weights, &in_file) {
            return Ok(Some(format));
        }
        let stored = self.weights.tensors.get(&in_file);
        if let Some(Stored { ty: StoredType::Known(ty), shape, .. }) = stored
            && let &[_, cols] = &shape[..]
            && let Some(format) = gguf::kept::format(*ty, cols)
        {
            return Ok(Some(format));
        }
        self.float_format(name)
    }

    /// The format of a tensor as [`tensor`](Self::tensor) gives it: F16, BF16, or `None` for single precision.
    ///
    /// # Errors
    ///
    /// If the model has no such tensor.
    pub fn float_format(&self, name: TensorName) -> Result<Option<Format>, CheckpointError> {
        let in_file = self.file_name(name);
        let stored = self.weights.tensors.get(&in_file);
        match stored.map(|stored| &stored.ty) {
            _ if self.quantized.has(&in_file) => Ok(Some(Format::F16)),
            Some(StoredType::Known(GgmlType::F32)) => Ok(None),
            Some(StoredType::Known(GgmlType::Bf16)) => Ok(Some(Format::Bf16)),
            Some(_) => Ok(Some(Format::F16)),
            None => Err(CheckpointError::NoSuchTensor { tensor: name }),
        }
    }

    fn file_name(&self, name: TensorName) -> String {
        file_name(self.container, &self.spec, name)
    }

    /// How a tensor of the model stands in the files; `None` if the model has no such tensor, or if several stand
    /// for it.
    pub fn stored(&self, name: TensorName) -> Option<StoredTensor<'_>> {
        let in_file = file_name(self.container, &self.spec, name);
        let (name, stored) = self.weights.tensors.get_key_value(&in_file)?;
        Some(StoredTensor::new(name, stored))
    }

    /// Everything that the weight files hold, by name.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.weights.tensors.iter().map(|(name, stored)| StoredTensor::new(name, stored))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, if the checkpoint has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// End-of-sequence tokens and suggested sampling settings.
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// Identity of the model, 32 hexadecimal digits: a hash of its shape, its tensors' names, types
    /// and sizes, and a sample of each one's bytes.
    ///
    /// Cheap enough for every start. It tells models and trainings apart; it is no proof that two
    /// files agree in every byte.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Gives up the files and keeps what serving needs beside the weights.
    pub fn into_parts(self) -> (ModelSpec, Tokenizer, Option<ChatTemplate>, GenerationDefaults) {
        (self.spec, self.tokenizer, self.chat_template, self.generation)
    }
}

/// What a container calls a tensor; a tied head is the embedding.
fn file_name(container: Container, spec: &ModelSpec, tensor: TensorName) -> String {
    let tensor = match tensor {
        TensorName::Head if spec.tied_head => TensorName::Embedding,
        other => other,
    };
    match container {
        Container::Gguf => gguf::model::file_name(tensor),
        Container::HuggingFace => config::file_name(tensor),
    }
}

/// Checks that the model's tensors are all there, as they should be, and that nothing is there that
/// would change the computation if it were known.
fn check_tensors(
    path: &Path,
    container: Container,
    weights: &Weights,
    quantized: &Quantized,
    spec: &ModelSpec,
) -> Result<(), CheckpointError> {
    let mut known = std::collections::BTreeSet::new();
    for name in spec.tensors() {
        let in_file = file_name(container, spec, name);
        if quantized.has(&in_file) {
            continue;
        }
        let Some(stored) = weights.tensors.get(&in_file) else {
            let file = path.to_owned();
            return Err(CheckpointError::MissingTensor { file, tensor: name, name: in_file });
        };
        let file = weights.files[stored.file].path();
        if matches!(stored.ty, StoredType::Other(_)) {
            return Err(unreadable_type(&in_file, stored).within(file));
        }
        if Some(&stored.shape) != spec.shape(name).as_ref() {
            let expected = spec.shape(name).unwrap_or_default();
            let problem = format!(
                "has sizes {:?}; as the {name} of this model it must have {expected:?}",
                stored.shape
            );
            return Err(Fault::malformed(tensor(&in_file), problem).within(file));
        }
        known.insert(in_file);
    }
    for (name, stored) in &weights.tensors {
        let known = known.contains(name) || quantized.knows(weights, name);
        if !known && !harmless(container, spec, name) {
            let file = weights.files[stored.file].path();
            return Err(Fault::unsupported(
                tensor(name),
                "part of the file",
                format!("the tensors of {:?} models", spec.architecture),
            )
            .within(file));
        }
    }
    Ok(())
}

/// Tensors that files carry although the model does not need them.
fn harmless(container: Container, spec: &ModelSpec, name: &str) -> bool {
    match container {
        Container::Gguf => name == gguf::model::ROPE_DIVISORS,
        // Tables that old exports saved, and heads that are the embedding once more.
        Container::HuggingFace => {
            name.ends_with(".rotary_emb.inv_freq") || (spec.tied_head && name == "lm_head.weight")
        }
    }
}

fn rope_divisors(
    weights: &Weights,
    stored: &Stored,
    spec: &ModelSpec,
    path: &Path,
) -> Result<RopeScaling, CheckpointError> {
    let name = gguf::model::ROPE_DIVISORS;
    let fault = |problem: String| Fault::malformed(tensor(name), problem).within(path);
    if stored.shape != [spec.head_dim / 2] {
        return Err(fault(format!(
            "has sizes {:?}; it must have [{}], one for each pair of a head",
            stored.shape,
            spec.head_dim / 2
        )));
    }
    if spec.rope.scaling != RopeScaling::None {
        return Err(fault("cannot be combined with another RoPE scaling".to_owned()));
    }
    let divisors = weights.read(name, stored)?.to_f32();
    if let Some(bad) = divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
        return Err(fault(format!("holds {bad}; divisors must be positive")));
    }
    Ok(RopeScaling::Divisors(divisors))
}

fn fingerprint(spec: &ModelSpec, weights: &Weights, quantized: &Quantized) -> String {
    let mut hash = Sha256::new();
    let ModelSpec { rms_epsilon, rope, max_positions: _, architecture, .. } = spec;
    let family = match architecture {
        // One computation under two names: GGUF files do not tell which it was.
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
    };
    hash.update(family);
    for size in [spec.heads, spec.kv_heads, spec.head_dim] {
        hash.update((size as u64).to_le_bytes());
    }
    hash.update(rms_epsilon.to_le_bytes());
    for frequency in rope.frequencies(spec.head_dim) {
        hash.update(frequency.to_le_bytes());
    }
    weights.fingerprint(&mut hash);
    // The same tensors may mean other weights under other settings.
    hash.update(quantized.config());
    hash.finalize().iter().take(16).fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
