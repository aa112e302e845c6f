//! Loading, preparing and serving a tiny checkpoint.

#[path = "../../checkpoint/tests/support/mod.rs"]
mod checkpoints;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use checkpoints::folder::{Folder, hf_name};
use checkpoints::quantized;
use checkpoints::tiny::{Element, SPECIAL, spec};
use rewind_checkpoint::Architecture;
use rewind_engine::{
    Committed, Decision, Event, Executor, FinishReason, GateChoice, Policy, Refusal, RequestId,
    RewindReason, Weights,
};
use rewind_formats::{Format, Group};
use rewind_monitor::{Celsius, Detector, DetectorName, ThermometerSetting};
use rewind_serving::{
    AnyEngine, Device, Draft, ErrorKind, Frozen, Inflight, LoadError, Model, NoObserver, Options,
    Parameters, Prepared, Processor, Prompt, RequestError, ShadowPlacement, Sink,
};
use tempfile::TempDir;

const TEMPLATE: &str =
    "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}{% endfor %}\nassistant:";

/// Weights small enough for unsure, and so for interesting, answers.
fn folder(seed: u32) -> Folder {
    let mut folder = Folder::new(&spec(Architecture::Llama), Element::F32);
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    for tensor in &mut folder.tensors {
        let reach = if tensor.name.contains("norm") { 0.0 } else { 0.35 };
        let centre = if tensor.name.contains("norm") { 1.0 } else { 0.0 };
        for bytes in tensor.data.chunks_exact_mut(4) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let uniform = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            bytes.copy_from_slice(&(centre + reach * uniform).to_le_bytes());
        }
    }
    folder.tokenizer_config["chat_template"] = TEMPLATE.into();
    folder
}

fn written(folder: &Folder) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    folder.write(place.path());
    place
}

fn options(path: &Path) -> Options {
    Options {
        device: Device::Cpu,
        threads: Some(2),
        thermometer: ThermometerSetting::None,
        max_sequence_length: Some(128),
        ..Options::new(path.to_owned())
    }
}

fn load(change: impl FnOnce(&mut Options)) -> (Arc<Model>, AnyEngine) {
    let place = written(&folder(1));
    let mut options = options(place.path());
    change(&mut options);
    Model::load(options).unwrap()
}

fn json(text: &str) -> Parameters {
    let mut parameters = Parameters::default();
    parameters.merge_json(text).unwrap();
    parameters
}

fn text(text: &str) -> Prompt {
    Prompt::Text(text.into())
}

#[test]
fn a_loaded_model_outlives_its_files() {
    let place = written(&folder(1));
    let (model, engine) = Model::load(options(place.path())).unwrap();
    place.close().unwrap();
    let prepared = model.prepare(text("hello"), &json(r#"{"ignore_eos": true}"#)).unwrap();
    let answer = serve(engine, vec![prepared.request]);
    assert_eq!(answer[0].tokens.len(), 16);
    let memory = model.memory();
    assert!(memory.draft > 0 && memory.draft < memory.shadow, "{memory:?}");
    assert!(memory.kv > 0);
    let lines = model.describe();
    assert!(lines.iter().any(|(what, value)| what == "kernels" && value.contains("int4-g32")));
}

#[test]
fn devices_that_are_not_there_are_errors_and_auto_serves_anyway() {
    let place = written(&folder(1));
    let with = |device| {
        // On the CPU the shadow is in host memory in any case.
        let shadow_placement = ShadowPlacement::Host;
        Model::load(Options { device, shadow_placement, ..options(place.path()) })
    };
    // No machine has that many.
    let error = with(Device::Cuda(4000)).unwrap_err();
    assert!(matches!(error, LoadError::Device { .. }));
    assert!(error.to_string().contains("device cuda:4000 cannot be used"), "{error}");

    let (model, _) = with(Device::Cpu).unwrap();
    assert_eq!(model.processor(), Processor::Cpu);
    let memory = model.memory();
    assert_eq!(memory.host, memory.parts().iter().map(|(_, bytes)| bytes).sum::<u64>());
    assert_eq!(
        memory.host - memory.buffers,
        memory.draft + memory.shadow - memory.shared + memory.kv
    );
    assert_eq!(memory.gpu, 0);
    let lines = model.describe();
    assert!(lines.contains(&("device".into(), "cpu".into())), "{lines:?}");

    let choice = Device::Auto.choose().unwrap();
    let (model, engine) = with(Device::Auto).unwrap();
    assert_eq!(model.processor(), choice.processor);
    assert_eq!(choice.no_gpu.is_some(), choice.processor == Processor::Cpu);
    assert_eq!(answer(&model, engine, "lossless").len(), 24);
}

#[test]
fn load_errors_name_the_file_and_the_fault() {
    let error = |options: Options| Model::load(options).unwrap_err().to_string();
    let missing = error(Options::new("/nowhere/model.gguf".into()));
    assert!(missing.contains("model /nowhere/model.gguf does not exist"), "{missing}");

    let place = tempfile::tempdir().unwrap();
    let corrupt = place.path().join("corrupt.gguf");
    std::fs::write(&corrupt, b"GGUF but not really").unwrap();
    let corrupt = error(Options::new(corrupt));
    assert!(corrupt.contains("corrupt.gguf"), "{corrupt}");

    let good = written(&folder(1));
    std::fs::write(good.path().join("model.safetensors"), b"short").unwrap();
    let short = error(options(good.path()));
    assert!(short.contains("model.safetensors"), "{short}");

    let mut broken = folder(1);
    broken.tensor("model.layers.1.mlp.up_proj.weight").data[..4]
        .copy_from_slice(&f32::NAN.to_le_bytes());
    let nan = error(options(written(&broken).path()));
    assert!(nan.contains("layer 1") && nan.contains("NaN"), "{nan}");

    let good = written(&folder(1));
    let long = Options { max_sequence_length: Some(4096), ..options(good.path()) };
    assert!(error(long).contains("made for at most 512"));
    let profile = Options { profile: "nope".into(), ..options(good.path()) };
    assert!(error(profile).contains("unknown profile \"nope\""));
    let memory = Options { kv_memory: Some(100), ..options(good.path()) };
    assert!(error(memory).contains("kv_memory is 100 bytes"));
}

#[test]
fn a_separate_shadow_must_fit_the_model() {
    let (a, b) = (written(&folder(1)), written(&folder(2)));
    let with =
        |shadow: &TempDir| Options { shadow: Some(shadow.path().to_owned()), ..options(a.path()) };
    let alone = |place: &TempDir, policy: &str| {
        let (model, engine) = Model::load(options(place.path())).unwrap();
        answer(&model, engine, policy)
    };
    let (model, engine) = Model::load(with(&b)).unwrap();
    assert_eq!(answer(&model, engine, "shadow"), alone(&b, "shadow"));
    let (model, engine) = Model::load(with(&b)).unwrap();
    assert_eq!(answer(&model, engine, "off"), alone(&a, "off"));
    assert_ne!(alone(&a, "off"), alone(&b, "off"), "the two differ, or this test shows nothing");

    let wider = Folder::new(
        &rewind_checkpoint::ModelSpec { intermediate_size: 64, ..spec(Architecture::Llama) },
        Element::F32,
    );
    let error = Model::load(with(&written(&wider))).unwrap_err();
    assert!(matches!(error, LoadError::Mismatch { .. }));
    assert!(error.to_string().contains("feed-forward size is 48 in one and 64"), "{error}");

    let mut renamed = folder(1);
    let vocabulary = renamed.tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (x, y) = (vocabulary["x"].clone(), vocabulary["y"].clone());
    vocabulary["x"] = y;
    vocabulary["y"] = x;
    let error = Model::load(with(&written(&renamed))).unwrap_err().to_string();
    assert!(error.contains("token ") && error.contains("\"x\""), "{error}");
    let missing = Options { shadow: Some("/nowhere".into()), ..options(a.path()) };
    let error = Model::load(missing).unwrap_err().to_string();
    assert!(error.contains("shadow /nowhere does not exist"), "{error}");
}

/// A checkpoint whose layers are quantized, and its original, as sub-folders of one folder.
fn pair() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let spec = quantized::spec();
    let made = quantized::rewind(&spec, Format::Int4Group(Group::G32));
    let mut original = Folder::new(&spec, Element::F16);
    for (name, values) in &made.values {
        // Not what the quantized one stands for, or one could pass for the other.
        let values: Vec<f32> = values.iter().map(|&value| value as f32 * 1.02).collect();
        original.tensor(&hf_name(*name)).data = Element::F16.bytes(&values);
    }
    for (name, folder) in [("quantized", &made.folder), ("original", &original)] {
        std::fs::create_dir(place.path().join(name)).unwrap();
        folder.write(&place.path().join(name));
    }
    place
}

#[test]
fn a_quantized_checkpoint_is_the_draft_of_its_original() {
    let version = pair();
    let of = |settings: &[(&str, &str)]| {
        let fixed = [("threads", "1"), ("thermometer", "none"), ("device", "cpu")];
        let all = settings.iter().chain(&fixed);
        let all = all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let options = Options::from_parameters(version.path(), &all).unwrap();
        Model::load(Options { max_sequence_length: Some(128), ..options }).unwrap()
    };
    let both = [("model", "quantized"), ("shadow", "original"), ("draft", "stored")];
    let (model, engine) = of(&both);
    let identity = model.identity(Weights::Draft).to_owned();
    assert!(identity.starts_with("int4-g32 (embedding and head f16)"), "{identity}");
    assert!(model.identity(Weights::Full).starts_with("f16,"));
    let memory = model.memory();
    assert!(memory.draft < memory.shadow && memory.shared == 0, "{memory:?}");
    let lossless = answer(&model, engine, "lossless");
    let (model, engine) = of(&both);
    assert_eq!(lossless, answer(&model, engine, "shadow"));
    let alone = |folder: &str, draft: &str, policy: &str| {
        let (model, engine) = of(&[("model", folder), ("draft", draft)]);
        answer(&model, engine, policy)
    };
    assert_eq!(lossless, alone("original", "int8", "shadow"));
    let (model, engine) = of(&both);
    assert_eq!(answer(&model, engine, "off"), alone("quantized", "stored", "off"));

    // Without a shadow it is its own, dequantized, whatever the draft.
    assert_eq!(alone("quantized", "stored", "shadow"), alone("quantized", "int8", "shadow"));
    // A draft in a format is quantized from it as ever.
    let (model, _) = of(&[("model", "quantized")]);
    assert!(model.identity(Weights::Draft).starts_with("int4-g32 (embedding and head int8-g32)"));
}

#[test]
fn a_quantized_checkpoint_needs_an_original_of_its_shape() {
    let (version, other) = (pair(), written(&folder(1)));
    let model = version.path().join("quantized");
    let with = |shadow: &Path| Options {
        draft: Draft::Stored,
        shadow: Some(shadow.to_owned()),
        ..options(&model)
    };
    let error = Model::load(with(other.path())).unwrap_err();
    assert!(matches!(error, LoadError::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains("hidden size is 192 in one and 32"), "{error}");

    // A matrix that is not what its header says is named before anything is served.
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|part| part == b"int4-g32").unwrap();
    bytes[at..at + 8].copy_from_slice(b"int4-g64");
    std::fs::write(&path, bytes).unwrap();
    let error = Model::load(with(&version.path().join("original"))).unwrap_err().to_string();
    assert!(error.contains("cannot load the model") && error.contains(".scales"), "{error}");
}

#[test]
fn prompts_are_checked_before_and_after_tokenizing() {
    let (model, _) = load(|_| ());
    let error = |prompt, parameters: &str| model.prepare(prompt, &json(parameters)).unwrap_err();
    assert_eq!(error(text(""), "{}"), RequestError::EmptyPrompt);
    assert_eq!(error(Prompt::Tokens(vec![]), "{}"), RequestError::EmptyPrompt);

    let huge = error(text(&"x".repeat(10 << 20)), "{}");
    assert!(matches!(huge, RequestError::TooManyBytes { bytes: 10_485_760, .. }), "{huge}");
    assert_eq!(huge.kind(), ErrorKind::InvalidArgument);
    // Within the byte limit, but one token more than fits: begin token and 127 letters.
    let long = error(text(&"x".repeat(127)), "{}");
    assert_eq!(long, Refusal::TooLong { prompt: 128, limit: 128 }.into());
    let fits = model.prepare(text(&"x".repeat(126)), &json("{}")).unwrap();
    assert_eq!((fits.prompt_tokens, fits.request.max_tokens), (127, 1));

    let vocabulary = model.limits().vocabulary;
    let bad = error(Prompt::Tokens(vec![1, -7]), "{}");
    assert_eq!(bad, RequestError::BadToken { token: -7, index: 1, vocabulary });
    let bad = error(Prompt::Tokens(vec![vocabulary as i32]), "{}");
    assert_eq!(bad, RequestError::BadToken { token: vocabulary as i32, index: 0, vocabulary });
}

#[test]
fn text_gets_what_the_tokenizer_adds_and_ids_nothing() {
    let (model, _) = load(|_| ());
    let begin = model.tokenizer().token_id(SPECIAL[0]).unwrap();
    let of_text = model.prepare(text("he"), &json("{}")).unwrap();
    assert_eq!(of_text.request.prompt.first(), Some(&begin));
    assert_eq!(of_text.prompt_text.as_deref(), Some("he"));
    let ids = Prompt::Tokens(of_text.request.prompt[1..].iter().map(|&id| id as i32).collect());
    let of_ids = model.prepare(ids, &json("{}")).unwrap();
    assert_eq!(of_ids.request.prompt, of_text.request.prompt[1..]);
    assert_eq!(of_ids.prompt_text, None);
}

#[test]
fn chat_applies_the_template() {
    let (model, _) = load(|_| ());
    let chat = model.prepare(text("hello"), &json(r#"{"chat": true}"#)).unwrap();
    // As in Python's renderer, a block swallows the newline behind it.
    let rendered = "<|begin|>user: helloassistant:";
    assert_eq!(chat.request.prompt, model.tokenizer().encode(rendered, false).unwrap());
    assert_eq!(chat.prompt_text.as_deref(), Some("hello"));
    // The template makes a prompt of nothing.
    model.prepare(text(""), &json(r#"{"chat": true}"#)).unwrap();
    let ids = model.prepare(Prompt::Tokens(vec![3]), &json(r#"{"chat": true}"#)).unwrap_err();
    assert!(ids.to_string().contains("not token ids"), "{ids}");

    let mut plain = folder(1);
    plain.tokenizer_config = serde_json::json!({});
    let (model, _) = Model::load(options(written(&plain).path())).unwrap();
    let none = model.prepare(text("x"), &json(r#"{"chat": true}"#)).unwrap_err();
    assert!(none.to_string().contains("no chat template"), "{none}");
}

#[test]
fn requests_inherit_and_override_the_models_options() {
    let (model, _) = load(|o| {
        o.window = 6;
        o.refresh = 3;
        o.detector = Some(DetectorName::Margin);
        o.thermometer = ThermometerSetting::Fixed(Celsius(80.0));
        o.prefill = Some(Weights::Draft);
    });
    let prepare = |parameters: &str| model.prepare(text("hi"), &json(parameters)).unwrap();
    let own = prepare("{}");
    assert_eq!(own.request.policy, Policy::Step { refresh: 3 });
    let Frozen { profile, gate, thermal_coefficient } = own.frozen;
    assert_eq!((&*profile, gate.detector), ("default", Detector::Margin));
    assert_eq!(thermal_coefficient, 1.5);
    assert_eq!(own.request.gate, GateChoice::Fixed(gate));
    assert_eq!(own.candidates, []);
    assert_eq!(own.request.prefill, Weights::Draft);
    assert_eq!((own.request.sampling.temperature, own.request.max_tokens), (1.0, 16));
    assert_eq!(model.thermal().celsius, Some(80.0));
    assert_eq!(model.thermal().coefficient, 1.5);

    let entropy = prepare(r#"{"detector": "entropy"}"#);
    assert!((entropy.frozen.gate.threshold - (3.35 + 0.15 * 1.5)).abs() < 1e-6);
    let set = prepare(
        r#"{"policy": "lossless", "window": 2, "threshold": 0.5, "max_tokens": 1000000,
            "stop": ["b", "a"], "stop_token_ids": [9, 3, 9], "ignore_eos": true, "seed": 5}"#,
    );
    assert_eq!(set.request.policy, Policy::Lossless { tokens: 2 });
    assert_eq!(set.frozen.gate.threshold, 0.5);
    assert_eq!(set.request.prefill, Weights::Full, "lossless never rests on draft KV");
    assert_eq!(set.request.prompt.len() as u32 + set.request.max_tokens, 128);
    assert_eq!(set.request.stop.strings, ["a", "b"]);
    assert_eq!(set.request.stop.tokens, [3, 9]);
    assert!(set.request.stop.eos.is_empty());
    assert_eq!((set.seed, set.request.sampling.seed), (5, 5));
}

/// Adds to the profile of a name the fused detector and what its prompts look like.
fn domain(name: &str, threshold: f64, mean: f64) -> String {
    let text = rewind_monitor::Profile::builtin("default").unwrap().to_toml();
    text.replace("\"default\"", &format!("{name:?}"))
        + &format!(
            "[detectors.fused]\nbase = {threshold:?}\nnoise_floor = 0.25\nbias = 0.5\nentropy = 1.0\n\
             varentropy = 0.0\nln_top1 = -0.25\nmargin = -1.0\n\
             [prompt]\nmean = {mean:?}\nmean_deviation = 0.5\nspread = 0.5\nspread_deviation = 0.5\n"
        )
}

/// A model with two domains. The tiny model's entropies are around 5 nats, so `near` is what prompts choose.
fn domains(change: impl FnOnce(&mut Options)) -> (TempDir, Arc<Model>, AnyEngine) {
    let profiles = tempfile::tempdir().unwrap();
    for (name, threshold, mean) in [("far", 0.0, 0.5), ("near", 1.0, 5.0)] {
        let path = profiles.path().join(name).with_extension("toml");
        std::fs::write(path, domain(name, threshold, mean)).unwrap();
    }
    let (model, engine) = load(|o| {
        o.profiles = Some(profiles.path().to_owned());
        change(o);
    });
    (profiles, model, engine)
}

#[test]
fn requests_pick_profiles_of_the_folder_by_name() {
    let (_profiles, model, _) =
        domains(|o| o.thermometer = ThermometerSetting::Fixed(Celsius(80.0)));
    let prepare = |parameters: &str| model.prepare(text("hi"), &json(parameters));
    let fused = prepare(r#"{"profile": "near", "detector": "fused"}"#).unwrap().frozen;
    assert_eq!((&*fused.profile, fused.gate.threshold), ("near", 1.375));
    let Detector::Fused(weights) = fused.gate.detector else { panic!("{fused:?}") };
    assert_eq!(weights.weights(), [0.5, 1.0, 0.0, -0.25, -1.0]);
    // The default profile has no such detector: told when a request asks, or at load.
    let error = prepare(r#"{"detector": "fused"}"#).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("\"default\" has no [detectors.fused]"), "{error}");
    let place = written(&folder(1));
    let fused = Options { detector: Some(DetectorName::Fused), ..options(place.path()) };
    let error = Model::load(fused).unwrap_err();
    assert!(matches!(error, LoadError::Profile { .. }), "{error}");
    assert!(error.to_string().contains("rewind calibrate"), "{error}");
}

#[test]
fn the_prompt_chooses_a_profile_in_any_company() {
    let prompts = [
        "hello",
        "the llama and the hen",
        "a much longer prompt, which has more tokens than are looked at",
    ];
    let prepare = |model: &Model, prompt: &str, more: &str| {
        let parameters = format!(
            r#"{{"detector": "fused", "temperature": 0, "max_tokens": 20, "ignore_eos": true {more}}}"#
        );
        model.prepare(text(prompt), &json(&parameters)).unwrap()
    };
    let mut alone = Vec::new();
    for prompt in prompts {
        let (_profiles, model, engine) = domains(|o| o.profile = "auto".into());
        let prepared: Prepared = prepare(&model, prompt, "");
        let names: Vec<_> = prepared.candidates.iter().map(|frozen| &*frozen.profile).collect();
        assert_eq!(names, ["far", "near"]);
        let answer = serve(engine, vec![prepared.request]).remove(0);
        assert_eq!(answer.candidate, Some(1), "{prompt}");
        // As if the request had named it.
        let (_profiles, model, engine) = domains(|_| ());
        let named = prepare(&model, prompt, r#", "profile": "near""#);
        assert_eq!(named.frozen, prepared.candidates[1]);
        let named = serve(engine, vec![named.request]).remove(0);
        assert_eq!(Answer { candidate: Some(1), ..named }, answer);
        alone.push(answer);
    }
    let (_profiles, model, engine) = domains(|o| o.max_batch_rows = Some(16));
    let auto = |prompt: &&str| prepare(&model, prompt, r#", "profile": "auto""#).request;
    assert_eq!(serve(engine, prompts.iter().map(auto).collect()), alone);
    assert!(alone.iter().map(|answer| answer.rewinds).sum::<usize>() > 0, "nothing was judged");
}

#[test]
fn a_rewind_budget_moves_thresholds_of_later_requests() {
    let (model, _) = load(|o| o.rewind_budget = Some(0.2));
    let prepare = |parameters: &str| model.prepare(text("hi"), &json(parameters)).unwrap();
    let own = prepare("{}");
    assert_eq!(model.threshold_offset(), Some(0.0));
    let (id, reason) = (RequestId(0), RewindReason::Suspect);
    // Every token is rewound.
    let spend = |prepared: &Prepared| {
        let mut tally = prepared.tally.clone();
        for _ in 0..20_000 {
            tally.event(&Event::Rewound { id, reason, tokens: 1 });
            tally.event(&token(id));
        }
        model.finished(&tally);
    };
    // These say nothing about the threshold of the profile.
    spend(&prepare(r#"{"threshold": 0.5}"#));
    spend(&prepare(r#"{"policy": "lossless"}"#));
    assert_eq!(model.threshold_offset(), Some(0.0));
    spend(&own);
    let offset = model.threshold_offset().unwrap();
    assert!(offset > 0.0);
    let later = prepare("{}");
    assert!(later.frozen.gate.threshold > own.frozen.gate.threshold);
    assert!((later.frozen.gate.threshold - (3.35 + 0.15 * (1.0 + offset))).abs() < 1e-6);
    assert_eq!(later.frozen.thermal_coefficient, 1.0);
    // A given threshold is what it says.
    assert_eq!(prepare(r#"{"threshold": 0.5}"#).frozen.gate.threshold, 0.5);
    // Requests from before the move do not count twice.
    spend(&own);
    assert_eq!(model.threshold_offset(), Some(offset));

    let (free, _) = load(|_| ());
    assert_eq!(free.threshold_offset(), None);
}

fn token(id: RequestId) -> Event {
    Event::Token {
        id,
        committed: Committed {
            token: 1,
            text: String::new(),
            statistics: None,
            decision: Decision::Rewound,
            logprobs: Arc::new([]),
        },
    }
}

#[test]
fn seeds_are_drawn_unless_fixed() {
    let (model, _) = load(|_| ());
    let seed = |model: &Model| model.prepare(text("hi"), &json("{}")).unwrap().seed;
    assert_ne!(seed(&model), seed(&model));
    let (fixed, _) = load(|o| o.seed = Some(11));
    assert_eq!((seed(&fixed), seed(&fixed)), (11, 11));
}

#[test]
fn values_that_do_not_fit_this_model_are_errors() {
    let (model, _) = load(|_| ());
    for (parameters, part) in [
        (r#"{"stop_token_ids": [100000]}"#, "stop_token_ids is 100000"),
        (r#"{"logit_bias": {"100000": 1}}"#, "100000"),
        (r#"{"min_tokens": 17}"#, "max_tokens = 16"),
        (r#"{"profile": "defualt"}"#, "did you mean \"default\""),
    ] {
        let error = model.prepare(text("hi"), &json(parameters)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn lossless_answers_are_the_shadows_in_any_company() {
    let prompts = ["hello", "the he", "llama", "x", "a longer prompt, of two chunks or more"];
    let answers = |policy: &str, batch: usize, threads: usize| {
        let mut all = Vec::new();
        for part in prompts.chunks(batch) {
            let (model, engine) = load(|o| {
                o.threads = Some(threads);
                o.draft = Format::Int4Group(Group::G32).into();
                o.max_batch_rows = Some(16);
            });
            let requests = part.iter().enumerate().map(|(index, prompt)| {
                let parameters = format!(
                    r#"{{{policy}, "seed": {index}, "max_tokens": 40, "stop": ["he"],
                        "temperature": {}}}"#,
                    index % 2
                );
                model.prepare(text(prompt), &json(&parameters)).unwrap().request
            });
            all.extend(serve(engine, requests.collect()));
        }
        all
    };
    for batch in [1, 5] {
        let shadow = answers(r#""policy": "shadow""#, batch, 1);
        assert!(shadow.iter().map(|answer| answer.tokens.len()).sum::<usize>() > 60);
        let mut rewinds = 0;
        for window in [2, 8] {
            let policy = format!(r#""policy": "lossless", "window": {window}"#);
            let lossless = answers(&policy, batch, 2);
            rewinds += lossless.iter().map(|answer| answer.rewinds).sum::<usize>();
            let plain = |answers: &[Answer]| {
                answers
                    .iter()
                    .map(|a| (a.tokens.clone(), a.text.clone(), a.finish))
                    .collect::<Vec<_>>()
            };
            assert_eq!(plain(&lossless), plain(&shadow), "window {window}, batch {batch}");
        }
        assert!(rewinds > 0, "the draft never disagreed, so this shows nothing");
    }
}

#[test]
fn identities_tell_the_copies_apart() {
    let (model, engine) = load(|_| ());
    let (draft, shadow) = (model.identity(Weights::Draft), model.identity(Weights::Full));
    assert_ne!(draft, shadow);
    assert_eq!(draft, engine.executor().identity(Weights::Draft));
}

#[test]
fn config_parameters_load_a_model_relative_to_their_folder() {
    let version = tempfile::tempdir().unwrap();
    std::fs::create_dir(version.path().join("tiny")).unwrap();
    folder(1).write(&version.path().join("tiny"));
    let profile = rewind_monitor::Profile::builtin("default").unwrap().to_toml();
    let profile = profile.replace("\"default\"", "\"own\"");
    std::fs::write(version.path().join("own.toml"), profile).unwrap();
    let parameters: BTreeMap<String, String> =
        [("model", "tiny"), ("profile", "own.toml"), ("threads", "1"), ("thermometer", "none")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    let options = Options::from_parameters(version.path(), &parameters).unwrap();
    let (model, _) = Model::load(options).unwrap();
    model.prepare(text("hi"), &json(r#"{"profile": "own"}"#)).unwrap();
    model.prepare(text("hi"), &json(r#"{"profile": "default"}"#)).unwrap();
}

/// What a request brought.
#[derive(Debug, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    finish: FinishReason,
    rewinds: usize,
    candidate: Option<usize>,
}

fn answer(model: &Model, engine: AnyEngine, policy: &str) -> Vec<u32> {
    let parameters = format!(r#"{{"policy": "{policy}", "temperature": 0, "max_tokens": 24}}"#);
    let request = model.prepare(text("hello"), &json(&parameters)).unwrap().request;
    serve(engine, vec![request]).remove(0).tokens
}

struct Forward(usize, Sender<(usize, Event)>);

impl Sink for Forward {
    fn is_cancelled(&self) -> bool {
        false
    }

    fn event(&mut self, event: Event) {
        self.1.send((self.0, event)).unwrap();
    }
}

/// Runs the requests side by side through the in-flight driver.
fn serve(engine: AnyEngine, requests: Vec<rewind_engine::Request>) -> Vec<Answer> {
    let count = requests.len();
    let inflight = Inflight::start(engine, Box::new(NoObserver));
    let (sender, events) = channel();
    for (index, request) in requests.into_iter().enumerate() {
        inflight.submit(request, Box::new(Forward(index, sender.clone()))).unwrap();
    }
    drop(sender);
    inflight.shutdown();
    let mut answers: Vec<_> = (0..count)
        .map(|_| Answer {
            tokens: Vec::new(),
            text: String::new(),
            finish: FinishReason::Length,
            rewinds: 0,
            candidate: None,
        })
        .collect();
    for (index, event) in events {
        let answer = &mut answers[index];
        match event {
            Event::Token { committed, .. } => {
                answer.tokens.push(committed.token);
                answer.text.push_str(&committed.text);
            }
            Event::GateChosen { candidate, .. } => answer.candidate = Some(candidate),
            Event::Rewound { .. } => answer.rewinds += 1,
            Event::Finished { reason, text, .. } => {
                answer.text.push_str(&text);
                answer.finish = reason;
            }
            other => panic!("{other:?}"),
        }
    }
    answers
}
