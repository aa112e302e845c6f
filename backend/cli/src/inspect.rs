//! `rewind inspect`: what is in a checkpoint, and what this machine would make of it.
//!
//! Nothing is packed: memory is computed from shapes, so that a model too large for this machine can
//! be looked at, too. For GPUs it is the same: the plan of one can be seen on a machine that has none.

mod gpu;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use rewind_checkpoint::{Checkpoint, Container, ModelSpec, TensorName};
use rewind_cpu::Isa;
use rewind_formats::{DraftFormats, Format};
use rewind_monitor::{ThermometerSetting, choose_thermometer};
use rewind_quantize::average_bits;
use rewind_serving::{Device, Draft, format_bytes};
use serde::Serialize;

use self::gpu::{Costs, Where};
use crate::output;

/// Flags of `rewind inspect`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// GGUF file or Hugging Face folder.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Formats of the draft to compare, or plans.
    #[arg(long, value_name = "FORMATS", value_delimiter = ',', default_value = "int8,int4-g32")]
    draft: Vec<Draft>,
    /// Where the model would be served: auto, cpu or cuda:N. Unless it is cpu, what a GPU would have to
    /// hold is shown, whether there is one here or not.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Bandwidth that the cost of a shadow on the host is told for, between host and GPU, in GB/s.
    #[arg(long, value_name = "GB/S", default_value_t = 25.0, value_parser = positive)]
    bus_bandwidth: f64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    container: &'static str,
    fingerprint: String,
    architecture: String,
    parameters: u64,
    layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    max_positions: usize,
    tied_head: bool,
    eos: Vec<u32>,
    bos: Option<u32>,
    chat_template: bool,
    stored: Vec<Stored>,
    shadow: Size,
    drafts: Vec<Size>,
    kv_bytes_per_token: u64,
    served_on: Where,
    gpu: Option<Costs>,
    cpu: Cpu,
    thermometer: Temperature,
}

/// Tensors of one type in the files.
#[derive(Debug, Default, Serialize)]
struct Stored {
    dtype: String,
    tensors: usize,
    bytes: u64,
}

/// One copy of the weights in memory.
#[derive(Debug, Serialize)]
struct Size {
    format: String,
    bytes: u64,
    bits_per_weight: f64,
}

#[derive(Debug, Serialize)]
struct Cpu {
    kernels: &'static str,
    threads: usize,
}

#[derive(Debug, Serialize)]
struct Temperature {
    source: String,
    celsius: Option<f32>,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let checkpoint = Checkpoint::open(&arguments.model)
        .with_context(|| format!("cannot inspect {}", arguments.model.display()))?;
    let report = report(&checkpoint, &arguments)?;
    if arguments.json { output::json(&report) } else { print(&report) }
}

/// A number above 0.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| *x > 0.0 && x.is_finite());
    number.ok_or_else(|| "expected a number above 0".into())
}

fn report(checkpoint: &Checkpoint, arguments: &Arguments) -> Result<Report> {
    let Arguments { draft: drafts, device, bus_bandwidth, .. } = arguments;
    let layers = checkpoint.spec().layers;
    let drafts = drafts.iter().map(|draft| Ok((draft, draft.formats(layers)?)));
    let drafts = drafts.collect::<Result<Vec<_>>>()?;
    let served_on = Where::ask(*device);
    let gpu = match device {
        Device::Cpu => None,
        Device::Auto | Device::Cuda(_) => Some(Costs::of(checkpoint, &drafts, *bus_bandwidth)),
    };
    let spec = checkpoint.spec();
    let mut stored = BTreeMap::<String, Stored>::new();
    for tensor in checkpoint.tensors() {
        let sum = stored.entry(tensor.dtype.clone()).or_default();
        sum.dtype = tensor.dtype;
        sum.tensors += 1;
        sum.bytes += tensor.bytes as u64;
    }
    let mut thermometer = choose_thermometer(ThermometerSetting::Auto, served_on.chip.clone())?;
    let reading = thermometer.read().ok().flatten();
    let generation = checkpoint.generation();
    Ok(Report {
        path: checkpoint.path().display().to_string(),
        container: match checkpoint.container() {
            Container::Gguf => "GGUF",
            Container::HuggingFace => "Hugging Face",
        },
        fingerprint: checkpoint.fingerprint().to_owned(),
        architecture: format!("{:?}", spec.architecture),
        parameters: spec.parameters(),
        layers: spec.layers,
        hidden_size: spec.hidden_size,
        intermediate_size: spec.intermediate_size,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        vocabulary: spec.vocab_size,
        max_positions: spec.max_positions,
        tied_head: spec.tied_head,
        eos: generation.eos.clone(),
        bos: generation.bos,
        chat_template: checkpoint.chat_template().is_some(),
        stored: stored.into_values().collect(),
        shadow: shadow_size(checkpoint),
        drafts: drafts.iter().map(|(_, draft)| draft_size(checkpoint, draft)).collect(),
        // On the CPU: keys and values in f32, see rewind-cpu.
        kv_bytes_per_token: (spec.layers * spec.kv_heads * spec.head_dim * 2 * size_of::<f32>())
            as u64,
        served_on,
        gpu,
        cpu: Cpu {
            kernels: Isa::detect().name(),
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
        },
        thermometer: Temperature {
            source: thermometer.name().to_owned(),
            celsius: reading.map(|celsius| celsius.0),
        },
    })
}

/// Matrices in the precision of the checkpoint (f16 where it was quantized), vectors in f32.
fn shadow_size(checkpoint: &Checkpoint) -> Size {
    let spec = checkpoint.spec();
    let mut bytes = 0;
    let mut names = BTreeSet::new();
    for tensor in spec.tensors().filter(|&t| !(spec.tied_head && t == TensorName::Head)) {
        let shape = spec.shape(tensor).unwrap_or_default();
        let elements = shape.iter().product::<usize>() as u64;
        if shape.len() < 2 {
            bytes += 4 * elements;
            continue;
        }
        let (name, width) = match checkpoint.float_format(tensor) {
            Ok(None) => ("f32", 4),
            Ok(Some(Format::Bf16)) => ("bf16", 2),
            _ => ("f16", 2),
        };
        names.insert(name);
        bytes += width * elements;
    }
    size(Vec::from_iter(names).join(" and "), bytes, spec)
}

fn draft_size(checkpoint: &Checkpoint, draft: &DraftFormats) -> Size {
    let spec = checkpoint.spec();
    match draft {
        DraftFormats::Mixture(mixture) => {
            let [_, bits] = average_bits(spec, mixture);
            size(draft.to_string(), (bits / 8.0 * spec.parameters() as f64).ceil() as u64, spec)
        }
        DraftFormats::Stored => stored_size(checkpoint),
    }
}

/// Matrices in the formats that the checkpoint has them in, vectors in f32.
fn stored_size(checkpoint: &Checkpoint) -> Size {
    let spec = checkpoint.spec();
    let (mut bits, mut names) = (0.0, BTreeSet::new());
    for tensor in spec.tensors().filter(|&t| !(spec.tied_head && t == TensorName::Head)) {
        let shape = spec.shape(tensor).unwrap_or_default();
        let each = match shape[..] {
            [_, cols] => {
                // What cannot be read is told when it is loaded.
                let format = checkpoint.stored_format(tensor).unwrap_or(Some(Format::F16));
                names.insert(format.map_or("f32".to_owned(), |format| format.to_string()));
                format.map_or(32.0, |format| format.bits_per_weight(cols))
            }
            _ => 32.0,
        };
        bits += each * shape.iter().product::<usize>() as f64;
    }
    let names = Vec::from_iter(names).join(" and ");
    size(format!("{} ({names})", DraftFormats::Stored), (bits / 8.0).ceil() as u64, spec)
}

fn size(format: String, bytes: u64, spec: &ModelSpec) -> Size {
    Size { format, bytes, bits_per_weight: 8.0 * bytes as f64 / spec.parameters() as f64 }
}

fn print(report: &Report) -> Result<()> {
    let entry = |name: &str, value: String| output::line(format_args!("{name:14} {value}"));
    entry("checkpoint", format!("{} ({})", report.path, report.container))?;
    entry("fingerprint", report.fingerprint.clone())?;
    entry(
        "model",
        format!(
            "{}, {:.1} M parameters, {} layers, hidden {}, feed-forward {}, {} heads of {} over {} \
             key-value heads",
            report.architecture,
            report.parameters as f64 / 1e6,
            report.layers,
            report.hidden_size,
            report.intermediate_size,
            report.heads,
            report.head_dim,
            report.kv_heads
        ),
    )?;
    let head = if report.tied_head { "tied" } else { "separate" };
    entry(
        "vocabulary",
        format!(
            "{} tokens, {head} head, BOS {}, EOS {:?}",
            report.vocabulary,
            report.bos.map_or_else(|| "none".to_owned(), |bos| bos.to_string()),
            report.eos
        ),
    )?;
    entry("context", format!("{} tokens", report.max_positions))?;
    entry("chat template", if report.chat_template { "yes" } else { "no" }.into())?;
    for stored in &report.stored {
        let count = format!("{} tensors, {}", stored.tensors, format_bytes(stored.bytes));
        entry("stored", format!("{:6} {count}", stored.dtype))?;
    }
    let copy = |size: &Size| {
        let bytes = format_bytes(size.bytes);
        format!("{bytes}, {:.2} bits per weight, {}", size.bits_per_weight, size.format)
    };
    entry("shadow", copy(&report.shadow))?;
    for draft in &report.drafts {
        entry("draft", copy(draft))?;
    }
    entry("KV cache", format!("{} for each token", format_bytes(report.kv_bytes_per_token)))?;
    entry("served on", report.served_on.describe())?;
    if let Some(costs) = &report.gpu {
        costs.print(entry)?;
    }
    entry("CPU kernels", format!("{}, {} threads", report.cpu.kernels, report.cpu.threads))?;
    let celsius = report.thermometer.celsius.map_or("no reading".into(), |t| format!("{t} °C"));
    entry("thermometer", format!("{} ({celsius})", report.thermometer.source))
}
