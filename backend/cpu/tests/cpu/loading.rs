//! From tensors to weights.

use std::convert::Infallible;
use std::sync::Arc;

use rewind_checkpoint::{Architecture, LayerTensor, ModelSpec, TensorData, TensorName};
use rewind_cpu::{Config, CpuError, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::Weights;
use rewind_executor_suite::bench::{Bench, prompt, same};
use rewind_executor_suite::{Oddity, Precision, TinyModel, small_spec};
use rewind_formats::{DraftFormats, Format, Group, Mixture};

/// A small model in single precision with a draft of the default kind.
pub(crate) fn model(architecture: Architecture) -> TinyModel {
    let format = Format::Int4Group(Group::G32);
    TinyModel::new(small_spec(architecture, 1100), Precision::F32, format)
}

pub(crate) fn load(model: &TinyModel) -> Result<Arc<CpuModel>, CpuError> {
    let isa = Isa::detect();
    let options = LoadOptions {
        draft: model.draft.clone().map(DraftFormats::from),
        shadow: model.shadow,
        threads: 2,
        isa,
    };
    CpuModel::load(&model.spec, model.source(), options, |_| ()).map(Arc::new)
}

pub(crate) fn config() -> Config {
    Config { threads: 1, slots: 8, rows: 300, pages: 200, page_tokens: 12, positions: 300 }
}

/// The same model with other things loaded.
fn variant(draft: Option<Format>, shadow: bool) -> Result<Arc<CpuModel>, CpuError> {
    let model = model(Architecture::Qwen2);
    let draft = draft.map(Mixture::from);
    load(&TinyModel { precision: Precision::F16, draft, shadow, ..model })
}

#[test]
fn what_draft_and_shadow_share_exists_once() {
    let int4 = Some(Format::Int4Group(Group::G32));
    let same = variant(Some(Format::F16), true).expect("good").memory();
    assert_eq!((same.draft, same.shared), (same.shadow, same.shadow));
    let both = variant(int4, true).expect("good").memory();
    assert_eq!(both.shadow, same.shadow);
    assert!(both.draft < both.shadow / 2 && both.shared < both.draft / 10, "{both:?}");
    let draft = variant(int4, false).expect("good").memory();
    assert_eq!((draft.draft, draft.shadow, draft.shared), (both.draft, 0, 0));
    let shadow = variant(None, true).expect("good").memory();
    assert_eq!((shadow.draft, shadow.shadow, shadow.shared), (0, both.shadow, 0));
    assert!(matches!(variant(None, false), Err(CpuError::NoWeights)));
}

#[test]
fn each_copy_of_the_weights_has_its_kernels() {
    let executor = CpuExecutor::new(variant(None, true).expect("good"), config()).expect("good");
    let lines = executor.kernels();
    assert!(matches!(&lines[..], [line] if line.starts_with("shadow: f16, f32 activations")));
    let both = variant(Some(Format::Int8), true).expect("good");
    assert_eq!(CpuExecutor::new(both, config()).expect("good").kernels().len(), 2);
}

#[test]
fn a_mixed_checkpoint_is_kept_exactly() {
    let plain = TinyModel { precision: Precision::F16, draft: None, ..model(Architecture::Llama) };
    let mixed = TinyModel { oddity: Some(Oddity::Mixed), ..plain.clone() };
    // What is mixed has other values; as single precision throughout it has the same.
    let wide = |name| {
        let mut tensor = mixed.tensor(name);
        tensor.data = TensorData::F32(tensor.data.to_f32());
        Ok::<_, Infallible>(tensor)
    };
    let options = LoadOptions { draft: None, shadow: true, threads: 1, isa: Isa::detect() };
    let wide = CpuModel::load(&mixed.spec, wide, options, |_| ()).expect("good");
    let tokens = prompt(1, 9, 1100);
    let run = |model: Arc<CpuModel>| {
        let mut bench = Bench::of(CpuExecutor::new(model, config()).expect("good"));
        bench.feed(Weights::Full, 0, &tokens, 9).expect("a good pass")
    };
    let found = run(load(&mixed).expect("good"));
    same(&run(Arc::new(wide)), &found, "mixed").expect("the same bits");
    assert!(same(&run(load(&plain).expect("good")), &found, "mixed").is_err());
}

#[test]
fn progress_reaches_the_end() {
    let model = TinyModel { precision: Precision::Bf16, ..model(Architecture::Qwen3) };
    let mut last = None;
    let options = LoadOptions {
        draft: model.draft.clone().map(DraftFormats::from),
        shadow: true,
        threads: 2,
        isa: Isa::detect(),
    };
    CpuModel::load(&model.spec, model.source(), options, |progress| {
        assert!(last.is_none_or(|last: rewind_cpu::Progress| last.done < progress.done));
        last = Some(progress);
    })
    .expect("good");
    let last = last.expect("called");
    assert_eq!(last.done, last.total);
}

#[test]
fn defects_name_the_tensor() {
    let model = model(Architecture::Llama);
    let spec = &model.spec;
    let bad = TensorName::Layer(1, LayerTensor::Up);
    let load = |spoil: &dyn Fn(&mut Vec<f32>, &mut Vec<usize>), draft: Option<Format>| {
        let source = |name| {
            let mut tensor = model.tensor(name);
            if let (true, TensorData::F32(data)) = (name == bad, &mut tensor.data) {
                spoil(data, &mut tensor.shape);
            }
            Ok::<_, Infallible>(tensor)
        };
        let draft = draft.map(DraftFormats::from);
        let options = LoadOptions { draft, shadow: true, threads: 2, isa: Isa::detect() };
        CpuModel::load(spec, source, options, |_| ()).expect_err("spoiled").to_string()
    };
    for draft in [None, Some(Format::Int4Group(Group::G32))] {
        let message = load(&|data, _| data[70 * 72 + 5] = f32::NAN, draft);
        assert_eq!(
            message,
            "the layer 1 up projection tensor holds NaN at row 70, column 5; weights must be finite"
        );
    }
    assert!(load(&|_, shape| shape.swap(0, 1), None).contains("expected [100, 72]"));
    assert!(load(&|data, _| data.truncate(3), None).contains("(3 elements)"));
    let message = load(&|data, _| data[0] = 1e6, Some(Format::F16));
    assert!(message.contains("cannot quantize the layer 1 up projection tensor"), "{message}");

    let source = |name| {
        if name == bad { Err("gone") } else { Ok(model.tensor(name)) }
    };
    let options = LoadOptions { draft: None, shadow: true, threads: 1, isa: Isa::detect() };
    let error = CpuModel::load(spec, source, options.clone(), |_| ()).expect_err("gone");
    assert_eq!(error.to_string(), "cannot read the layer 1 up projection tensor");

    let spec = ModelSpec { heads: 5, ..spec.clone() };
    let error = CpuModel::load(&spec, source, options, |_| ()).expect_err("5 heads, 2 key heads");
    assert!(error.to_string().contains("2 does not divide the 5 query heads"), "{error}");
}
