//! Drafts that come packed and stay as they are.

use std::convert::Infallible;
use std::sync::Arc;

use half::f16;
use rewind_checkpoint::{Architecture, LayerTensor, Tensor, TensorData, TensorName};
use rewind_cpu::{CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::{Executor, RowResult, Weights};
use rewind_executor_suite::bench::{Bench, prompt, same};
use rewind_executor_suite::{Precision, TinyModel};
use rewind_formats::{DraftFormats, FORMAT_NAMES, Format, Group, Packed};

use crate::loading::{config, model};

fn load(
    model: &TinyModel,
    draft: Option<DraftFormats>,
    shadow: bool,
    change: impl Fn(TensorName, Tensor) -> Tensor,
) -> CpuExecutor {
    let options = LoadOptions { draft, shadow, threads: 2, isa: Isa::detect() };
    let source = |name| Ok::<_, Infallible>(change(name, model.tensor(name)));
    let loaded = CpuModel::load(&model.spec, source, options, |_| ()).expect("good");
    CpuExecutor::new(Arc::new(loaded), config()).expect("good")
}

fn run(executor: CpuExecutor, weights: Weights) -> Vec<RowResult> {
    Bench::of(executor).feed(weights, 0, &prompt(1, 9, 1100), 9).expect("a good pass")
}

/// A matrix as a file in this format has it.
fn packed(tensor: Tensor, format: Format) -> Tensor {
    let &[rows, cols] = &tensor.shape[..] else { return tensor };
    let packed = Packed::quantize(format, rows, cols, &tensor.data.to_f32()).expect("finite");
    Tensor { data: TensorData::Packed(packed), ..tensor }
}

/// The same, dequantized.
fn halves(tensor: Tensor) -> Tensor {
    let halves = tensor.data.to_f32().into_iter().map(f16::from_f32).collect();
    Tensor { data: TensorData::F16(halves), ..tensor }
}

fn is_end(name: TensorName) -> bool {
    matches!(name, TensorName::Embedding | TensorName::Head)
}

#[test]
fn stored_codes_give_the_bits_of_those_quantized_at_load() {
    for name in FORMAT_NAMES.split(", ") {
        let format: Format = name.parse().expect("a listed name");
        for architecture in [Architecture::Llama, Architecture::Qwen2] {
            let model = TinyModel { draft: None, ..model(architecture) };
            let stored = load(&model, Some(DraftFormats::Stored), false, |name, tensor| {
                packed(tensor, if is_end(name) { format.ends() } else { format })
            });
            let quantized = load(&model, Some(format.into()), false, |_, tensor| tensor);
            assert_eq!(stored.identity(Weights::Draft), quantized.identity(Weights::Draft));
            assert_eq!(stored.memory().weights, quantized.memory().weights);
            let [stored, quantized] = [stored, quantized].map(|it| run(it, Weights::Draft));
            same(&stored, &quantized, name).expect("the same bits");
        }
    }
}

#[test]
fn what_comes_in_floats_stays_in_them() {
    let model = TinyModel { precision: Precision::Bf16, ..model(Architecture::Llama) };
    let stored = load(&model, Some(DraftFormats::Stored), true, |_, tensor| tensor);
    let memory = stored.memory().weights;
    assert_eq!((memory.draft, memory.shared), (memory.shadow, memory.shadow));
    assert!(stored.identity(Weights::Draft).starts_with("bf16, f32 activations"));
}

#[test]
fn joined_matrices_of_several_formats_are_dequantized() {
    let model = model(Architecture::Qwen2);
    let low = Format::Int4Group(Group::G32);
    let file = |name, tensor| match name {
        TensorName::Layer(0, LayerTensor::Key) => packed(tensor, Format::Int8),
        TensorName::Layer(0, LayerTensor::Value | LayerTensor::Down) => halves(tensor),
        _ => packed(tensor, low),
    };
    let mixed = load(&model, Some(DraftFormats::Stored), true, file);
    let identity = mixed.identity(Weights::Draft);
    let said = "1 × f16+int4-g32, 1 × int4-g32";
    assert!(identity.starts_with(said), "{identity}");
    assert!(identity.contains("int8-b32 activations"), "{identity}");
    let by_hand = load(&model, Some(DraftFormats::Stored), false, |name, tensor| match name {
        TensorName::Layer(0, LayerTensor::Query | LayerTensor::Key) => halves(file(name, tensor)),
        _ => file(name, tensor),
    });
    let [found, expected] = [mixed, by_hand].map(|it| run(it, Weights::Draft));
    same(&found, &expected, "mixed").expect("the same bits");

    // A shadow that is loaded with such a draft is what the draft stands for.
    let together = load(&model, Some(DraftFormats::Stored), true, file);
    let apart = load(&model, None, true, |name, tensor| match tensor.shape.len() {
        2 => halves(file(name, tensor)),
        _ => tensor,
    });
    let [found, expected] = [together, apart].map(|it| run(it, Weights::Full));
    same(&found, &expected, "shadow").expect("the same bits");
}
