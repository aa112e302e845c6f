//! Checkpoints of decoder-only models: Hugging Face folders and GGUF files.
//!
//! [`Checkpoint::open`] answers with one shape for both: a [`ModelSpec`], tensors by
//! [`TensorName`], a [`Tokenizer`], a [`ChatTemplate`], [`GenerationDefaults`]. Whatever is wrong
//! with a file is an error then, one that names the place, so that nothing later has to doubt it.
//!
//! Files are hostile until checked: every length and offset is compared with the file before it is
//! used, sums and products are checked, memory stays within a small multiple of the file's size.
//! Rejected: a trait for containers. There are two, and what differs between them is names.
#![deny(unsafe_code)]

mod checkpoint;
mod error;
mod generation;
mod gguf;
mod grid;
mod huggingface;
mod spec;
mod template;
mod tensor;
mod tokenizer;
mod weights;

pub use checkpoint::{Checkpoint, Container, StoredTensor};
pub use error::CheckpointError;
pub use generation::GenerationDefaults;
pub use huggingface::config::file_name as hugging_face_name;
pub use spec::{Architecture, ModelSpec, Rope, RopeScaling};
pub use template::{ChatTemplate, Message, TemplateError};
pub use tensor::{LayerTensor, Tensor, TensorData, TensorName};
pub use tokenizer::{Tokenizer, TokenizerError};
