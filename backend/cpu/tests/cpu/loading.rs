//! From tensors to weights.

use std::convert::Infallible;

use rewind_checkpoint::{Architecture, LayerTensor, ModelSpec, TensorData, TensorName};
use rewind_cpu::{CpuError, CpuExecutor, CpuModel, LoadOptions};
use rewind_engine::{Executor, ExecutorError, Weights};

use crate::tiny::{self, Precision};

fn load(spec: &ModelSpec, draft: Option<&str>, shadow: bool) -> Result<CpuModel, CpuError> {
    let draft = draft.map(|name| name.parse().expect("a format"));
    let source = |name| Ok::<_, Infallible>(tiny::tensor(spec, name, Precision::F16));
    CpuModel::load(spec, source, LoadOptions { draft, shadow, threads: 2 }, |_| ())
}

#[test]
fn what_draft_and_shadow_share_exists_once() {
    let spec = tiny::spec(Architecture::Qwen2);
    let same = load(&spec, Some("f16"), true).expect("good").memory();
    assert_eq!((same.draft, same.shared), (same.shadow, same.shadow));
    let both = load(&spec, Some("int4-g32"), true).expect("good").memory();
    assert_eq!(both.shadow, same.shadow);
    assert!(both.draft < both.shadow / 2 && both.shared < both.draft / 10, "{both:?}");
    let draft = load(&spec, Some("int4-g32"), false).expect("good").memory();
    assert_eq!((draft.draft, draft.shadow, draft.shared), (both.draft, 0, 0));
    let shadow = load(&spec, None, true).expect("good").memory();
    assert_eq!((shadow.draft, shadow.shadow, shadow.shared), (0, both.shadow, 0));
    assert!(matches!(load(&spec, None, false), Err(CpuError::NoWeights)));
}

#[test]
fn a_copy_that_is_not_there_cannot_be_run() {
    let spec = tiny::spec(Architecture::Llama);
    let model = load(&spec, None, true).expect("good");
    let mut executor = CpuExecutor::new(model.into(), tiny::config()).expect("good");
    assert_eq!(executor.identity(Weights::Draft), "none");
    assert!(executor.identity(Weights::Full).starts_with("f16, f32 activations, cpu "));
    assert_eq!(executor.kernels().len(), 1);
    let row = tiny::row(0, 0, 1, tiny::everything(0));
    let error = executor.submit(tiny::pass(Weights::Draft, vec![row])).expect_err("no draft");
    assert_eq!(error, ExecutorError::InvalidPass("this model has no draft weights".into()));
}

#[test]
fn a_mixed_checkpoint_is_kept_exactly() {
    let spec = tiny::spec(Architecture::Llama);
    let wide = |name| {
        let mut tensor = tiny::tensor(&spec, name, Precision::F16);
        if matches!(name, TensorName::Layer(_, LayerTensor::Key)) {
            tensor.data = TensorData::F32(tensor.data.to_f32());
        }
        Ok::<_, Infallible>(tensor)
    };
    let options = LoadOptions { draft: None, shadow: true, threads: 1 };
    let mixed = CpuModel::load(&spec, wide, options, |_| ()).expect("good");
    let mut mixed = CpuExecutor::new(mixed.into(), tiny::config()).expect("good");
    let plain = load(&spec, None, true).expect("good");
    let mut plain = CpuExecutor::new(plain.into(), tiny::config()).expect("good");
    let tokens = tiny::prompt(1, 9);
    let expected = tiny::feed(&mut plain, Weights::Full, 0, &tokens, 9);
    let found = tiny::feed(&mut mixed, Weights::Full, 0, &tokens, 9);
    tiny::assert_same(&expected, &found, "mixed");
}

#[test]
fn progress_reaches_the_end() {
    let spec = tiny::spec(Architecture::Qwen3);
    let mut last = None;
    let options =
        LoadOptions { draft: Some("int8".parse().expect("a format")), shadow: true, threads: 2 };
    let source = |name| Ok::<_, Infallible>(tiny::tensor(&spec, name, Precision::Bf16));
    CpuModel::load(&spec, source, options, |progress| {
        assert!(last.is_none_or(|last: rewind_cpu::Progress| last.done < progress.done));
        last = Some(progress);
    })
    .expect("good");
    let last = last.expect("called");
    assert_eq!(last.done, last.total);
}

#[test]
fn defects_name_the_tensor() {
    let spec = tiny::spec(Architecture::Llama);
    let bad = TensorName::Layer(1, LayerTensor::Up);
    let load = |spoil: &dyn Fn(&mut Vec<f32>, &mut Vec<usize>), draft: Option<&str>| {
        let source = |name| {
            let mut tensor = tiny::tensor(&spec, name, Precision::F32);
            if let (true, TensorData::F32(data)) = (name == bad, &mut tensor.data) {
                spoil(data, &mut tensor.shape);
            }
            Ok::<_, Infallible>(tensor)
        };
        let draft = draft.map(|name| name.parse().expect("a format"));
        let options = LoadOptions { draft, shadow: true, threads: 2 };
        CpuModel::load(&spec, source, options, |_| ()).expect_err("spoiled").to_string()
    };
    for draft in [None, Some("int4-g32")] {
        let message = load(&|data, _| data[70 * 72 + 5] = f32::NAN, draft);
        assert_eq!(
            message,
            "the layer 1 up projection tensor holds NaN at row 70, column 5; weights must be finite"
        );
    }
    assert!(load(&|_, shape| shape.swap(0, 1), None).contains("expected [100, 72]"));
    assert!(load(&|data, _| data.truncate(3), None).contains("(3 elements)"));
    let message = load(&|data, _| data[0] = 1e6, Some("f16"));
    assert!(message.contains("cannot quantize the layer 1 up projection tensor"), "{message}");

    let source = |name| {
        if name == bad { Err("gone") } else { Ok(tiny::tensor(&spec, name, Precision::F16)) }
    };
    let options = LoadOptions { draft: None, shadow: true, threads: 1 };
    let error = CpuModel::load(&spec, source, options, |_| ()).expect_err("gone");
    assert_eq!(error.to_string(), "cannot read the layer 1 up projection tensor");

    let spec = ModelSpec { heads: 5, ..spec.clone() };
    let error = CpuModel::load(&spec, source, options, |_| ()).expect_err("5 heads, 2 key heads");
    assert!(error.to_string().contains("5 heads are not a multiple of 2"), "{error}");
}
