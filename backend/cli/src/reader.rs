//! A model with room for one sequence, and the text that it reads, for commands that only read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rewind_checkpoint::Checkpoint;
use rewind_cpu::{CpuExecutor, CpuModel, Isa};
use rewind_cuda::{CudaExecutor, CudaModel, Driver, Placement};
use rewind_engine::Token;
use rewind_evidence::FORCED_ROWS;
use rewind_formats::DraftFormats;
use rewind_serving::{AnyExecutor, Device, Draft, Processor};

use crate::layers::Kept;
use crate::progress;

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// GGUF file or Hugging Face folder.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// Compute threads; all cores if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where to run: auto (the first GPU that can be used, else the CPU), cpu or cuda:N.
    #[arg(long, default_value = "auto")]
    device: Device,
}

impl Where {
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        Checkpoint::open(&self.model)
            .with_context(|| format!("cannot load {}", self.model.display()))
    }

    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        self.threads.map_or_else(cores, usize::from)
    }

    /// An executor with a draft, a shadow, or both, and room for so many positions. The shadow may be of another
    /// checkpoint than the draft.
    pub(crate) fn load(
        &self,
        checkpoint: &Checkpoint,
        draft: Option<&Draft>,
        shadow: Option<&Checkpoint>,
        positions: usize,
    ) -> Result<AnyExecutor> {
        let kept = Kept::without(checkpoint.spec().layers, &[])?;
        self.load_layers(checkpoint, &kept, draft, shadow, positions)
    }

    /// As [`Self::load`], but with these layers alone. A plan must be for as many.
    pub(crate) fn load_layers(
        &self,
        checkpoint: &Checkpoint,
        layers: &Kept,
        draft: Option<&Draft>,
        shadow: Option<&Checkpoint>,
        positions: usize,
    ) -> Result<AnyExecutor> {
        const PAGE_TOKENS: usize = 32;
        let threads = self.threads();
        let spec = &layers.spec(checkpoint.spec());
        let draft = draft.map(|draft| draft.formats(spec.layers)).transpose()?;
        let (slots, rows, pages) = (1, FORCED_ROWS, positions.div_ceil(PAGE_TOKENS));
        let bar = progress::percent("loading");
        let show = |done: u64, total: u64| bar.set_position(100 * done / total.max(1));
        // A draft that is kept as it is stored is read in one go, the shadow beside it in another; so are two
        // checkpoints.
        let stored = draft == Some(DraftFormats::Stored);
        let apart = shadow
            .filter(|&shadow| draft.is_some() && (stored || !std::ptr::eq(shadow, checkpoint)));
        let joined = shadow.is_some() && apart.is_none();
        let model = |tensor| match stored {
            true => checkpoint.stored_tensor(layers.original(tensor)),
            false => checkpoint.tensor(layers.original(tensor)),
        };
        let executor = match self.device.choose()?.processor {
            Processor::Cpu => {
                let isa = Isa::detect();
                let options =
                    |draft, shadow| rewind_cpu::LoadOptions { draft, shadow, threads, isa };
                let mut loaded =
                    CpuModel::load(spec, model, options(draft, joined), |p| show(p.done, p.total))?;
                if let Some(shadow) = apart {
                    let spec = &layers.spec(shadow.spec());
                    let source = |tensor| shadow.tensor(layers.original(tensor));
                    let other = options(None, true);
                    let other = CpuModel::load(spec, source, other, |p| show(p.done, p.total))?;
                    loaded = loaded.with_shadow_of(other);
                }
                let page_tokens = PAGE_TOKENS;
                let config =
                    rewind_cpu::Config { threads, slots, rows, pages, page_tokens, positions };
                AnyExecutor::Cpu(Box::new(CpuExecutor::new(Arc::new(loaded), config)?))
            }
            Processor::Cuda(ordinal) => {
                let mut loaded = CudaModel::new(Driver::open(ordinal as usize)?, spec)?;
                let placement = Placement::Device;
                let options =
                    |draft, shadow| rewind_cuda::LoadOptions { draft, shadow, threads, placement };
                loaded.load(model, options(draft, joined), |p| show(p.done, p.total))?;
                if let Some(shadow) = apart {
                    let source = |tensor| shadow.tensor(layers.original(tensor));
                    loaded.load(source, options(None, true), |p| show(p.done, p.total))?;
                }
                let config = rewind_cuda::Config { slots, rows, pages, positions };
                AnyExecutor::Cuda(Box::new(CudaExecutor::new(loaded, config)?))
            }
        };
        bar.finish_and_clear();
        Ok(executor)
    }
}

/// A text as a model reads it.
pub(crate) struct Text {
    /// All of it, after the token that prompts begin with, if the model asks for one.
    pub(crate) tokens: Vec<Token>,
    /// That token.
    pub(crate) first: Option<Token>,
    /// Tokens of a chunk.
    context: usize,
}

impl Text {
    /// Reads a file that has at least one chunk of `context` tokens.
    pub(crate) fn read(path: &Path, checkpoint: &Checkpoint, context: usize) -> Result<Self> {
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text =
            String::from_utf8(text).with_context(|| format!("{} is not UTF-8", path.display()))?;
        ensure!(
            context <= checkpoint.spec().max_positions,
            "--context is {context}: this model was made for at most {} tokens",
            checkpoint.spec().max_positions
        );
        let tokenizer = checkpoint.tokenizer();
        let bos = checkpoint.generation().bos;
        let around = tokenizer.encode("", true)?;
        let first = around.first().copied().filter(|&token| Some(token) == bos);
        let mut tokens: Vec<Token> = first.into_iter().collect();
        tokens.extend(tokenizer.encode(&text, false)?);
        if tokens.len() < context {
            bail!(
                "{} has {} tokens, too few for one chunk of {context}: take a longer text or a smaller \
                 --context",
                path.display(),
                tokens.len()
            );
        }
        Ok(Self { tokens, first, context })
    }

    /// Whole chunks, at most so many, from the start.
    pub(crate) fn chunks(&self, most: Option<u32>) -> Vec<&[Token]> {
        let most = most.map_or(usize::MAX, |most| most as usize);
        self.tokens.chunks_exact(self.context).take(most).collect()
    }
}
