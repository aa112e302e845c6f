//! Drafts that come packed and stay as they are, on a device.

use std::convert::Infallible;

use half::f16;
use rewind_checkpoint::{Architecture, LayerTensor, Tensor, TensorData, TensorName};
use rewind_cuda::{Config, CudaExecutor, CudaModel, LoadOptions, Placement, stored_bytes};
use rewind_engine::{Executor, RowResult, Weights};
use rewind_executor_suite::bench::{Bench, prompt, same};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::{DraftFormats, Format, Group, Packed};
use rewind_kernels_emulator::{Emulator, Settings};

const LOW: Format = Format::Int4Group(Group::G32);

fn model(architecture: Architecture) -> TinyModel {
    TinyModel::new(small_spec(architecture, 300), Precision::F32, LOW)
}

fn load(
    model: &TinyModel,
    draft: DraftFormats,
    change: impl Fn(TensorName, Tensor) -> Tensor,
) -> CudaModel<Emulator> {
    let mut loaded =
        CudaModel::new(Emulator::new(Settings::default()).unwrap(), &model.spec).unwrap();
    let options =
        LoadOptions { draft: Some(draft), shadow: false, threads: 2, placement: Placement::Device };
    let source = |name| Ok::<_, Infallible>(change(name, model.tensor(name)));
    loaded.load(source, options, |_| ()).unwrap();
    loaded
}

fn executor(model: CudaModel<Emulator>) -> CudaExecutor<Emulator> {
    CudaExecutor::new(model, Config { slots: 2, rows: 8, pages: 8, positions: 64 }).unwrap()
}

fn run(model: CudaModel<Emulator>) -> Vec<RowResult> {
    Bench::of(executor(model)).feed(Weights::Draft, 0, &prompt(1, 5, 300), 5).unwrap()
}

fn packed(tensor: Tensor, format: Format) -> Tensor {
    let &[rows, cols] = &tensor.shape[..] else { return tensor };
    let packed = Packed::quantize(format, rows, cols, &tensor.data.to_f32()).unwrap();
    Tensor { data: TensorData::Packed(packed), ..tensor }
}

fn halves(tensor: Tensor) -> Tensor {
    let halves = tensor.data.to_f32().into_iter().map(f16::from_f32).collect();
    Tensor { data: TensorData::F16(halves), ..tensor }
}

fn format_of(tensor: &Tensor) -> Option<Format> {
    match &tensor.data {
        TensorData::F32(_) => None,
        TensorData::F16(_) => Some(Format::F16),
        TensorData::Bf16(_) => Some(Format::Bf16),
        TensorData::Packed(packed) => Some(packed.format()),
    }
}

#[test]
fn stored_codes_give_the_bits_of_those_quantized_at_load() {
    for format in ["int4-g32", "int4a-g64", "int8", "nf4", "fp8"] {
        let format: Format = format.parse().unwrap();
        let model = model(Architecture::Llama);
        let file = |name, tensor| {
            let end = matches!(name, TensorName::Embedding | TensorName::Head);
            packed(tensor, if end { format.ends() } else { format })
        };
        let stored = load(&model, DraftFormats::Stored, file);
        let quantized = load(&model, format.into(), |_, tensor| tensor);
        assert_eq!(stored.memory(), quantized.memory());
        let planned = stored_bytes(&model.spec, |name| format_of(&file(name, model.tensor(name))));
        assert_eq!(planned, stored.memory().draft as u64);
        same(&run(stored), &run(quantized), "stored").unwrap();
    }
}

#[test]
fn products_that_cannot_pass_activations_on_are_dequantized() {
    let model = model(Architecture::Qwen2);
    // Mixtures of GGUF files have such layers: value and down projection in a type of more bits.
    let file = |name, tensor| match name {
        TensorName::Layer(0, LayerTensor::Value | LayerTensor::Down) => halves(tensor),
        TensorName::Layer(1, LayerTensor::Gate | LayerTensor::Up) => halves(tensor),
        _ => packed(tensor, LOW),
    };
    let mixed = load(&model, DraftFormats::Stored, file);
    let planned = stored_bytes(&model.spec, |name| format_of(&file(name, model.tensor(name))));
    assert_eq!(planned, mixed.memory().draft as u64);
    let by_hand = load(&model, DraftFormats::Stored, |name, tensor| match name {
        TensorName::Layer(0, LayerTensor::Output) => packed(tensor, LOW),
        TensorName::Layer(0, _) | TensorName::Layer(1, LayerTensor::Down)
            if tensor.shape.len() == 2 =>
        {
            halves(file(name, tensor))
        }
        _ => file(name, tensor),
    });
    let mixed = executor(mixed);
    let identity = mixed.identity(Weights::Draft);
    let said = "1 × f16+int4-g32, 1 × int4-g32+f16 (embedding and head int4-g32)";
    assert!(identity.starts_with(said), "{identity}");
    let found = Bench::of(mixed).feed(Weights::Draft, 0, &prompt(1, 5, 300), 5).unwrap();
    same(&found, &run(by_hand), "mixed").unwrap();
}
