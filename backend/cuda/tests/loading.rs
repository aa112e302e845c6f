//! From tensors to weights on a device, and what is refused on the way.

use std::convert::Infallible;

use rewind_checkpoint::{Architecture, LayerTensor, ModelSpec, TensorData, TensorName};
use rewind_cuda::{
    Config, CudaError, CudaExecutor, CudaModel, Exact, LoadOptions, Placement, Progress, plan,
};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::{DraftFormats, FORMAT_NAMES, Format, Group};
use rewind_kernels_emulator::{Emulator, Settings};

const INT4: Option<Format> = Some(Format::Int4Group(Group::G32));

fn empty(spec: &ModelSpec) -> Result<CudaModel<Emulator>, CudaError> {
    CudaModel::new(Emulator::new(Settings::default())?, spec)
}

fn options(draft: Option<Format>, shadow: bool, placement: Placement) -> LoadOptions {
    LoadOptions { draft: draft.map(DraftFormats::from), shadow, threads: 2, placement }
}

fn tiny(architecture: Architecture, precision: Precision) -> TinyModel {
    TinyModel::new(small_spec(architecture, 300), precision, Format::Int8)
}

fn load(model: &TinyModel, options: LoadOptions) -> Result<CudaModel<Emulator>, CudaError> {
    let mut loaded = empty(&model.spec)?;
    loaded.load(model.source(), options, |_| ())?;
    Ok(loaded)
}

const CONFIG: Config = Config { slots: 2, rows: 8, pages: 8, positions: 64 };

#[test]
fn a_plan_is_what_loading_takes() {
    let exacts = [
        (Exact::F32, Precision::F32),
        (Exact::F16, Precision::F16),
        (Exact::Bf16, Precision::Bf16),
    ];
    for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
        for (exact, precision) in exacts {
            let model = tiny(architecture, precision);
            for placement in [Placement::Device, Placement::Host] {
                for format in FORMAT_NAMES.split(", ") {
                    let format: Format = format.parse().unwrap();
                    let what = format!("{architecture:?} {precision:?} {placement:?} {format}");
                    let planned = plan(&model.spec, Some(&format.into()), exact, placement);
                    let loaded = load(&model, options(Some(format), true, placement)).unwrap();
                    let memory = loaded.memory();
                    let found = [memory.draft, memory.shadow, memory.shared].map(|x| x as u64);
                    assert_eq!(found, [planned.draft, planned.shadow, planned.shared], "{what}");
                    let taken = empty(&model.spec).unwrap().free_memory() - loaded.free_memory();
                    // Matrices of a staging buffer start at multiples of 256 bytes.
                    let room = planned.device..planned.device + 2 * 8 * 256;
                    assert!(room.contains(&taken), "{what}: {taken} is not in {room:?}");
                }
            }
        }
    }
}

#[test]
fn what_draft_and_shadow_share_exists_once() {
    let model = tiny(Architecture::Qwen2, Precision::F16);
    let load = |draft, shadow, placement| load(&model, options(draft, shadow, placement));
    let same = load(Some(Format::F16), true, Placement::Device).unwrap().memory();
    assert_eq!((same.draft, same.shared), (same.shadow, same.shadow));
    // Layers that the shadow has on the host are not the draft's.
    let apart = load(Some(Format::F16), true, Placement::Host).unwrap().memory();
    assert_eq!((apart.draft, apart.shadow), (same.draft, same.shadow));
    assert!(apart.shared < same.shared && apart.shared > 0, "{apart:?} {same:?}");
    let both = load(INT4, true, Placement::Device).unwrap().memory();
    assert_eq!(both.shadow, same.shadow);
    assert!(both.draft < both.shadow * 2 / 3 && both.shared < both.draft / 10, "{both:?}");
    let draft = load(INT4, false, Placement::Device).unwrap().memory();
    assert_eq!((draft.draft, draft.shadow, draft.shared), (both.draft, 0, 0));
    let shadow = load(None, true, Placement::Device).unwrap().memory();
    assert_eq!((shadow.draft, shadow.shadow, shadow.shared), (0, both.shadow, 0));
    assert!(matches!(load(None, false, Placement::Device), Err(CudaError::NoWeights)));
    let nothing = CudaExecutor::new(empty(&model.spec).unwrap(), CONFIG);
    assert!(matches!(nothing, Err(CudaError::NoWeights)));
}

#[test]
fn buffers_are_known_before_they_are_taken() {
    let model = tiny(Architecture::Qwen3, Precision::Bf16);
    for config in [CONFIG, Config { slots: 9, rows: 100, pages: 40, positions: 300 }] {
        let loaded = load(&model, options(INT4, true, Placement::Device)).unwrap();
        let free = loaded.free_memory();
        let told = CudaExecutor::<Emulator>::buffer_bytes(&model.spec, config).unwrap();
        let page = CudaExecutor::<Emulator>::page_bytes(&model.spec);
        let executor = CudaExecutor::new(loaded, config).unwrap();
        let memory = executor.memory();
        assert_eq!((memory.buffers, memory.kv), (told, config.pages * page));
        let taken = free - executor.model().free_memory();
        assert_eq!(taken, (memory.buffers + memory.kv) as u64);
    }
    let none = CudaExecutor::<Emulator>::buffer_bytes(&model.spec, Config { rows: 0, ..CONFIG });
    assert!(matches!(none, Err(CudaError::Setting { setting: "rows", .. })), "{none:?}");
}

#[test]
fn each_copy_of_the_weights_has_its_kernels() {
    let model = tiny(Architecture::Llama, Precision::Bf16);
    let lines = |draft, placement| {
        let model = load(&model, options(draft, true, placement)).unwrap();
        CudaExecutor::new(model, CONFIG).unwrap().kernels()
    };
    let both = lines(INT4, Placement::Host);
    assert!(both[0].starts_with("draft: int4-g32 (embedding and head int8-g32), f16 activations"));
    assert!(both[1].starts_with("shadow: bf16, f32 activations"), "{both:?}");
    assert!(both[1].ends_with("layers streamed from the host"), "{both:?}");
    let shadow = lines(None, Placement::Device);
    assert!(matches!(&shadow[..], [line] if line.ends_with("(emulator)")), "{shadow:?}");
}

#[test]
fn progress_reaches_the_end() {
    let model = tiny(Architecture::Qwen3, Precision::Bf16);
    let mut last: Option<Progress> = None;
    let options = options(INT4, true, Placement::Device);
    let mut loaded = empty(&model.spec).unwrap();
    loaded
        .load(model.source(), options, |progress| {
            assert!(last.is_none_or(|last| last.done < progress.done));
            last = Some(progress);
        })
        .unwrap();
    let last = last.unwrap();
    assert_eq!(last.done, last.total);
}

#[test]
fn defects_name_the_tensor() {
    let model = tiny(Architecture::Llama, Precision::F32);
    let bad = TensorName::Layer(1, LayerTensor::Up);
    type Spoil<'a> = &'a dyn Fn(&mut Vec<f32>, &mut Vec<usize>);
    let load = |spoil: Spoil<'_>, draft: Option<Format>| {
        let source = |name| {
            let mut tensor = model.tensor(name);
            if let (true, TensorData::F32(data)) = (name == bad, &mut tensor.data) {
                spoil(data, &mut tensor.shape);
            }
            Ok::<_, Infallible>(tensor)
        };
        let options = options(draft, true, Placement::Device);
        empty(&model.spec).unwrap().load(source, options, |_| ()).unwrap_err()
    };
    for draft in [None, INT4] {
        let message = load(&|data, _| data[70 * 72 + 5] = f32::NAN, draft).to_string();
        assert_eq!(
            message,
            "layer 1 up projection holds NaN at row 70, column 5; weights must be finite"
        );
    }
    let message = load(&|_, shape| shape.swap(0, 1), None).to_string();
    assert!(message.contains("needs [100, 72]"), "{message}");
    let message = load(&|data, _| data.truncate(3), None).to_string();
    assert!(message.contains("3 elements"), "{message}");
    let message = load(&|data, _| data[0] = 1e6, Some(Format::F16)).to_string();
    // Gate and up projection are one matrix; its pieces are named by the first.
    assert!(message.contains("layer 1"), "{message}");

    let source = |name| if name == bad { Err("gone") } else { Ok(model.tensor(name)) };
    let options = options(None, true, Placement::Device);
    let error = empty(&model.spec).unwrap().load(source, options, |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "layer 1 up projection cannot be read: gone");
}

#[test]
fn sizes_out_of_range_are_refused() {
    let good = small_spec(Architecture::Llama, 300);
    for (message, spec) in [
        ("2 does not divide the 5 query heads", ModelSpec { heads: 5, ..good.clone() }),
        ("head size is 7; rotary", ModelSpec { head_dim: 7, ..good.clone() }),
        ("head size is 258", ModelSpec { head_dim: 258, ..good.clone() }),
        ("hidden size is 0", ModelSpec { hidden_size: 0, ..good.clone() }),
    ] {
        let error = empty(&spec).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(message)), "{error:?}");
    }
    let model = TinyModel { draft: None, ..tiny(Architecture::Llama, Precision::F16) };
    for (message, config) in [
        ("slots is 0", Config { slots: 0, ..CONFIG }),
        ("rows is 0", Config { rows: 0, ..CONFIG }),
        ("rows is 65537", Config { rows: (1 << 16) + 1, ..CONFIG }),
        ("pages is 0", Config { pages: 0, ..CONFIG }),
        ("positions is 0", Config { positions: 0, ..CONFIG }),
    ] {
        let model = load(&model, options(None, true, Placement::Device)).unwrap();
        let error = CudaExecutor::new(model, config).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(message)), "{error:?}");
    }
}
