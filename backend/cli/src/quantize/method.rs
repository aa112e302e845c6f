//! `rewind quantize --method`: a folder with the quantized model.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rewind_formats::DraftFormats;
use rewind_quantize::methods::{Calibration, Job, Manifest, Method, quantize};
use rewind_serving::format_bytes;
use serde::Serialize;

use super::{Arguments, peak};
use crate::reader::Text;
use crate::{output, progress};

/// Chunks of the text that are read if nothing else is said.
const CHUNKS: u32 = 64;

/// How weights become codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// Each weight to the nearest code.
    Rtn,
    /// Errors of a weight compensated by others, for the inputs that a text brings.
    Gptq,
    /// Each weight to the nearest code, at scales that suit the inputs that a text brings.
    Awq,
}

impl From<Name> for Method {
    fn from(name: Name) -> Self {
        match name {
            Name::Rtn => Self::Rtn,
            Name::Gptq => Self::Gptq,
            Name::Awq => Self::Awq,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    out: &'a std::path::Path,
    seconds: f64,
    /// Most memory of the process, bytes.
    peak_memory: Option<u64>,
    manifest: Manifest,
}

/// Runs the command.
pub(super) fn run(name: Name, arguments: &Arguments) -> Result<()> {
    let start = std::time::Instant::now();
    let out = arguments.out.as_deref().context("a method writes a folder: give --out")?;
    let checkpoint = arguments.place.checkpoint()?;
    let layers = checkpoint.spec().layers;
    let DraftFormats::Mixture(formats) = arguments.draft.formats(layers)? else {
        bail!("--draft stored leaves nothing to quantize: give a format or plan:FILE");
    };
    let method = Method::from(name);
    let calibration = match (method, &arguments.text) {
        (Method::Rtn, None) => None,
        (Method::Rtn, Some(_)) => bail!("rtn reads no text: leave --text out, or take gptq or awq"),
        (_, None) => bail!("{} reads a text: give --text", method.name()),
        (_, Some(path)) => {
            let text = Text::read(path, &checkpoint, arguments.context as usize)?;
            let chunks = text.chunks(Some(arguments.chunks.unwrap_or(CHUNKS)));
            let bytes =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(Calibration {
                text: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                blake3: Calibration::hash(&bytes),
                chunks: chunks.into_iter().map(<[_]>::to_vec).collect(),
            })
        }
    };
    drop(checkpoint);
    let job = Job {
        model: &arguments.place.model,
        method,
        formats,
        calibration,
        threads: arguments.place.threads(),
        out,
    };
    let bar = progress::bar(layers as u64 + 1, "layers");
    let manifest = quantize(&job, |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let manifest = manifest?;
    let (seconds, peak_memory) = (start.elapsed().as_secs_f64(), peak::bytes());
    if arguments.json {
        return output::json(&Report { out, seconds, peak_memory, manifest });
    }
    let memory = peak_memory
        .map_or_else(String::new, |bytes| format!(", {} of memory", format_bytes(bytes)));
    output::line(format_args!(
        "{}: {}; {:.3} bits for a weight of the layers, {:.3} over all tensors ({seconds:.1} s{memory})",
        out.display(),
        job.formats,
        manifest.layer_bits,
        manifest.all_bits
    ))
}
