//! The command itself, over a tiny checkpoint; where `REWIND_DEMO_MODEL` names one, over a real model.

#[path = "../../checkpoint/tests/support/mod.rs"]
mod checkpoints;

use std::path::Path;
use std::process::{Command, Output};

use checkpoints::folder::Folder;
use checkpoints::quantized::{self, Gptq};
use checkpoints::tiny::{Element, spec};
use rewind_checkpoint::Architecture;
use serde_json::Value;
use tempfile::TempDir;

fn model() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    folder().write(place.path());
    place
}

/// Weights small enough for unsure, and so for interesting, answers.
fn folder() -> Folder {
    let mut folder = Folder::new(&spec(Architecture::Llama), Element::F32);
    let mut state = 7_u32;
    for tensor in &mut folder.tensors {
        let (centre, reach) = if tensor.name.contains("norm") { (1.0, 0.0) } else { (0.0, 0.35) };
        for bytes in tensor.data.chunks_exact_mut(4) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let uniform = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            bytes.copy_from_slice(&(centre + reach * uniform).to_le_bytes());
        }
    }
    folder
}

fn rewind(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rewind")).args(arguments).output().unwrap()
}

/// Standard output of a run that must succeed.
fn answer(arguments: &[&str]) -> String {
    let output = rewind(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&answer(&[arguments, &["--json"]].concat())).unwrap()
}

/// Standard error of a run that must fail.
fn failure(arguments: &[&str], code: i32) -> String {
    let output = rewind(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().unwrap()
}

#[test]
fn generate_tells_everything_in_json() {
    let model = model();
    let base = ["generate", "--model", path(&model), "--threads", "1", "--prompt", "hello"];
    let always = [&base[..], &["--max-tokens", "12", "--threshold=-1", "--ignore-eos"]].concat();
    let all = json(&always);
    assert_eq!(all["policy"], "step");
    assert_eq!(all["finish_reason"], "length");
    assert_eq!(all["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(all["prompt_tokens"], 4, "begin, he, ll, o");
    let tokens = all["tokens"].as_array().unwrap();
    for (id, token) in all["token_ids"].as_array().unwrap().iter().zip(tokens) {
        assert_eq!(token["id"], *id);
        assert_eq!(token["threshold"], -1.0);
        assert!(token["entropy"].as_f64().unwrap() > 0.0);
        assert_eq!(token["score"], token["entropy"]);
        let decision = token["decision"].as_str().unwrap();
        assert!(["verified", "rewound"].contains(&decision), "{decision} above the threshold");
    }
    // A step whose every score is above the threshold is redone with the shadow: its answer.
    let shadow =
        json(&[&base[..], &["--max-tokens", "12", "--policy", "shadow", "--ignore-eos"]].concat());
    assert_eq!(all["rewinds"], 11, "every token but the first, which the prompt pass chose");
    assert_eq!(all["timings"]["shadow_passes"], 11);
    assert_eq!(shadow["tokens"][0]["decision"], "shadow");
    assert_eq!(shadow["rewinds"], 0);

    let text: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert!(all["text"].as_str().unwrap().starts_with(&text));
}

#[test]
fn generate_prints_the_same_text_without_colours_to_a_pipe() {
    let model = model();
    let arguments = ["generate", "--model", path(&model), "--prompt", "the", "--max-tokens", "9"];
    let text = answer(&arguments);
    assert_eq!(text, format!("{}\n", json(&arguments)["text"].as_str().unwrap()));
    assert!(!text.contains('\x1b'));
}

#[test]
fn generate_takes_token_ids_and_files_and_stops() {
    let model = model();
    let with = |rest: &[&str]| {
        json(&[&["generate", "--model", path(&model), "--policy", "shadow"], rest].concat())
    };
    let ids = with(&["--prompt-tokens", "0,5,9", "--max-tokens", "6", "--ignore-eos"]);
    assert_eq!(ids["prompt_tokens"], 3);
    let file = model.path().join("prompt.txt");
    std::fs::write(&file, "hello").unwrap();
    let of_file =
        with(&["--prompt-file", file.to_str().unwrap(), "--seed", "18446744073709551615"]);
    let of_text = with(&["--prompt", "hello"]);
    assert_eq!(of_file["token_ids"], of_text["token_ids"]);
    assert_eq!(of_file["seed"], u64::MAX);

    // The shown text of some token in the middle serves as a stop string.
    let tokens = ids["tokens"].as_array().unwrap();
    let stop = tokens.iter().map(|t| t["text"].as_str().unwrap()).find(|t| !t.is_empty());
    if let Some(stop) = stop {
        let cut = with(&["--prompt-tokens", "0,5,9", "--max-tokens", "6", "--stop", stop]);
        assert_eq!(cut["finish_reason"], "stop");
        assert!(!cut["text"].as_str().unwrap().contains(stop));
    }
}

#[test]
fn perplexity_follows_the_protocol() {
    let model = model();
    let file = model.path().join("text.txt");
    std::fs::write(&file, "the hello of the llama, and then some more. ".repeat(20)).unwrap();
    let run = |rest: &[&str]| {
        let fixed = ["perplexity", "--model", path(&model), "--text", file.to_str().unwrap()];
        json(&[&fixed[..], rest].concat())
    };
    let shadow = run(&["--context", "64"]);
    // (64 − 32 − 1) scored tokens a chunk.
    assert_eq!(shadow["tokens"].as_u64(), Some(31 * shadow["chunks"].as_u64().unwrap()));
    let perplexity = shadow["perplexity"].as_f64().unwrap();
    assert!(perplexity > 1.0 && perplexity < 1e4, "{perplexity}");
    assert!((perplexity.ln() - shadow["nll"].as_f64().unwrap()).abs() < 1e-9);

    let first = run(&["--context", "64", "--chunks", "1"]);
    assert_eq!((first["chunks"].as_u64(), first["tokens"].as_u64()), (Some(1), Some(31)));
    let near = run(&["--context", "64", "--weights", "int8-g32"])["perplexity"].as_f64().unwrap();
    let far = run(&["--context", "64", "--weights", "int4-g32"])["perplexity"].as_f64().unwrap();
    assert!((near / perplexity).ln().abs() < (far / perplexity).ln().abs().max(0.05));
    assert_ne!(near, perplexity);

    std::fs::write(&file, "too short").unwrap();
    let text = file.to_str().unwrap();
    let error = failure(&["perplexity", "--model", path(&model), "--text", text], 1);
    assert!(error.contains("too few for one chunk of 512"), "{error}");
}

#[test]
fn regret_is_zero_for_the_shadow_and_not_for_the_draft() {
    let model = model();
    let prompts = model.path().join("prompts.txt");
    std::fs::write(&prompts, "hello\nthe llama\nx\\ny\n").unwrap();
    let report = json(&[
        "regret",
        "--model",
        path(&model),
        "--prompts",
        prompts.to_str().unwrap(),
        "--policies",
        "off,step,lossless,shadow",
        "--threshold=-1",
        "--max-tokens",
        "16",
    ]);
    let of = |index: usize, key: &str| report["policies"][index][key].as_f64().unwrap();
    assert!(of(0, "shadow_regret") > 0.0);
    assert!(of(1, "shadow_regret") < of(0, "shadow_regret"));
    assert_eq!(of(0, "trigger_rate"), 0.0);
    assert_eq!(of(1, "trigger_rate"), 15.0 / 16.0);
    for exact in [2, 3] {
        // Prompt rows and generated rows may sum in different orders.
        assert!(of(exact, "shadow_regret") < 1e-4);
        assert_eq!(of(exact, "dead_compute"), 0.0);
        assert_eq!(of(exact, "diverged"), 0.0);
    }
    assert_eq!(of(0, "tokens"), 48.0);
}

#[test]
fn verify_passes_and_counts() {
    let model = model();
    let prompts = model.path().join("prompts.txt");
    std::fs::write(&prompts, "hello\nthe llama\nx\n").unwrap();
    let report = json(&[
        "verify",
        "--model",
        path(&model),
        "--prompts",
        prompts.to_str().unwrap(),
        "--windows",
        "2,8",
        "--batch",
        "1,3",
        "--max-tokens",
        "16",
    ]);
    assert_eq!(report["equal"], true);
    // 3 prompts, 2 temperatures, 2 thread counts, 2 batches, 2 windows and the shadow.
    assert_eq!(report["answers"], 3 * 2 * 2 * 2 * 3);
    assert!(report["rewinds"].as_u64().unwrap() > 0, "the draft never disagreed");
}

#[test]
fn a_plan_is_made_shown_and_scored() {
    let model = model();
    let place = tempfile::tempdir().unwrap();
    let (plan, text) = (place.path().join("plan.toml"), place.path().join("text"));
    std::fs::write(&text, "Rewind takes back what it should not have said. ".repeat(6)).unwrap();
    let (plan, text) = (plan.to_str().unwrap(), text.to_str().unwrap());
    let make = ["quantize", "--model", path(&model), "--low", "int4-g32", "--high", "int8-g32"];
    let run = |measure: &[&str], bits: &str| {
        json(&[&make[..], &["--target-bits", bits, "--out", plan], measure].concat())
    };
    let measures: [&[&str]; 4] = [
        &["--plan", "zd"],
        &["--plan", "zd-two-sided"],
        &["--plan", "random", "--seed", "3"],
        &["--plan", "lim", "--text", text, "--context", "48"],
    ];
    for measure in measures {
        // Two layers of 4.5 and 8.5 bits, and a little more where rows end in shorter groups.
        let report = run(measure, "6.6");
        let importance: Vec<_> =
            report["importance"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let low = usize::from(importance[1] < importance[0]);
        assert_eq!(importance.len(), 2, "{measure:?}");
        assert_eq!(report["layers"][low], "int4-g32", "{measure:?}: {report}");
        assert_eq!(report["layers"][1 - low], "int8-g32", "{measure:?}: {report}");
        let bits = report["layer_bits"].as_f64().unwrap();
        assert!(bits > 6.4 && bits <= 6.6, "{bits}");
        assert_eq!(run(measure, "6.6"), report, "{measure:?} again");
    }
    let lim = run(measures[3], "6.6");
    // −1 is a layer that changes nothing, 1 one that turns everything round.
    let importance = lim["importance"].as_array().unwrap();
    assert!(importance.iter().all(|x| (-1.0..1.0).contains(&x.as_f64().unwrap())), "{lim}");

    let draft = format!("plan:{plan}");
    let names = |low: usize| ["1 × int4-g32, 1 × int8-g32", "1 × int8-g32, 1 × int4-g32"][low];
    let low = usize::from(lim["layers"][1] == "int4-g32");
    let shown = json(&["inspect", "--model", path(&model), "--draft", &draft, "--device", "cpu"]);
    let format = shown["drafts"][0]["format"].as_str().unwrap();
    assert!(format.starts_with(names(low)), "{format}");
    let score = |weights: &str| {
        let fixed = ["perplexity", "--model", path(&model), "--text", text, "--context", "48"];
        json(&[&fixed[..], &["--device", "cpu", "--weights", weights]].concat())
    };
    let planned = score(&draft);
    assert!(planned["identity"].as_str().unwrap().starts_with(names(low)), "{planned}");
    let perplexity = |report: &Value| report["perplexity"].as_f64().unwrap();
    assert_ne!(perplexity(&planned), perplexity(&score("int4-g32")));
    assert_ne!(perplexity(&planned), perplexity(&score("int8-g32")));

    let fails = |rest: &[&str], said: &str| {
        let error = failure(&[&make[..], &["--plan", "zd"], rest].concat(), 1);
        assert!(error.contains(said), "{error}");
    };
    fails(&["--target-bits", "4"], "too few");
    fails(&["--out", "/nowhere/plan.toml"], "/nowhere/plan.toml");
    failure(&[&make[..], &["--plan", "lim"]].concat(), 2);
    std::fs::write(plan, "version = 1\nembedding = \"f16\"\nhead = \"f16\"\nlayers = [\"int8\"]\n")
        .unwrap();
    let error = failure(&["inspect", "--model", path(&model), "--draft", &draft], 1);
    assert!(error.contains("1 layers") && error.contains("has 2"), "{error}");
}

#[test]
fn a_quantized_folder_is_written_and_served() {
    let model = model();
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let text = at("text.txt");
    std::fs::write(&text, "Rewind takes back what it should not have said. ".repeat(12)).unwrap();
    let make = ["quantize", "--model", path(&model), "--draft", "int4-g32"];
    let reading = ["--text", &text, "--context", "48", "--chunks", "5"];
    let perplexity = |model: &str, rest: &[&str]| {
        let fixed = ["perplexity", "--model", model, "--text", &text, "--context", "48"];
        json(&[&fixed[..], &["--device", "cpu"], rest].concat())
    };
    let at_load = perplexity(path(&model), &["--weights", "int4-g32", "--compare"]);
    for method in ["rtn", "gptq", "awq"] {
        let out = at(method);
        let reads: &[&str] = if method == "rtn" { &[] } else { &reading };
        let report = json(&[&make[..], &["--method", method, "--out", &out], reads].concat());
        assert_eq!(report["out"], out.as_str());
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        assert!(report["peak_memory"].is_null() || report["peak_memory"].as_u64() > Some(1 << 20));
        let manifest: Value =
            serde_json::from_slice(&std::fs::read(at(method) + "/manifest.json").unwrap()).unwrap();
        assert_eq!(report["manifest"], manifest);
        assert_eq!(manifest["method"]["name"], method);
        assert_eq!(manifest["calibration"]["chunks"].as_u64(), (method != "rtn").then_some(5));

        let scored =
            perplexity(&out, &["--weights", "stored", "--compare", "--shadow", path(&model)]);
        let identity = scored["identity"].as_str().unwrap();
        assert!(identity.starts_with("int4-g32"), "{identity}");
        // Rounding is what loading does; the others are something else, and no worse on what they have read.
        assert_eq!(scored["shadow"]["perplexity"], at_load["shadow"]["perplexity"]);
        let divergence = |report: &Value| report["shadow"]["divergence"].as_f64().unwrap();
        match method {
            "rtn" => assert_eq!(scored["nll"], at_load["nll"]),
            _ => assert!(divergence(&scored) < divergence(&at_load), "{method}: {scored}"),
        }

        let shown = json(&["inspect", "--model", &out, "--draft", "stored", "--device", "cpu"]);
        let format = shown["drafts"][0]["format"].as_str().unwrap();
        assert!(format.starts_with("stored (int4-g32"), "{format}");
        let pair = ["--shadow", path(&model), "--prompt", "hello", "--max-tokens", "6"];
        let draft = ["generate", "--model", &out, "--draft", "stored", "--ignore-eos"];
        let served = json(&[&draft[..], &pair, &["--policy", "lossless"]].concat());
        let shadow = ["generate", "--model", path(&model), "--policy", "shadow", "--ignore-eos"];
        let expected = json(&[&shadow[..], &pair[2..]].concat());
        assert_eq!(served["token_ids"], expected["token_ids"]);

        let error = failure(&[&make[..], &["--method", method, "--out", &out], reads].concat(), 1);
        assert!(error.contains("exists and is no unfinished run"), "{error}");
    }
    let said = answer(&[&make[..], &["--method", "rtn", "--out", &at("told")]].concat());
    assert!(said.contains("int4-g32") && said.contains("bits for a weight"), "{said}");

    let fails = |rest: &[&str], code: i32, said: &str| {
        let error = failure(&[&make[..], rest].concat(), code);
        assert!(error.contains(said), "{rest:?}: {error}");
    };
    let out = at("none");
    fails(&["--method", "rtn"], 2, "--out");
    fails(&["--method", "gptq", "--out", &out], 2, "--text");
    fails(&["--method", "awq", "--out", &out], 2, "--text");
    fails(&["--method", "rtn", "--out", &out, "--text", &text], 1, "rtn reads no text");
    fails(&["--method", "rtn", "--out", &out, "--low", "int8"], 2, "--low");
    fails(&["--method", "rtn", "--plan", "zd", "--out", &out], 2, "cannot be used with");
    let stored = ["quantize", "--model", path(&model), "--draft", "stored", "--method", "rtn"];
    let error = failure(&[&stored[..], &["--out", &out]].concat(), 1);
    assert!(error.contains("leaves nothing to quantize"), "{error}");
    let twice = ["quantize", "--model", &at("rtn"), "--method", "rtn", "--out", &out];
    let error = failure(&twice, 1);
    assert!(error.contains("quantized already"), "{error}");
    let other = Folder::new(&quantized::spec(), Element::F16);
    let folder = tempfile::tempdir().unwrap();
    other.write(folder.path());
    let pair = ["--weights", "stored", "--compare", "--shadow", path(&folder)];
    let score = ["perplexity", "--model", &at("rtn"), "--text", &text, "--context", "48"];
    let error = failure(&[&score[..], &pair].concat(), 1);
    assert!(error.contains("do not belong together"), "{error}");
    assert!(!place.path().join("none").exists());
}

#[test]
fn a_quantized_checkpoint_can_be_the_draft() {
    let place = tempfile::tempdir().unwrap();
    let spec = quantized::spec();
    let folder = |name: &str, folder: &Folder| {
        let path = place.path().join(name);
        std::fs::create_dir(&path).unwrap();
        folder.write(&path);
        path.to_str().unwrap().to_owned()
    };
    let gptq = Gptq { bits: 4, group: 64, symmetric: true, second_version: false, ordered: true };
    let model = folder("gptq", &quantized::gptq(&spec, gptq).folder);
    let original = folder("original", &Folder::new(&spec, Element::F16));
    let with = |shadow| {
        let rest = ["--shadow", shadow, "--prompt", "hello", "--max-tokens", "6", "--ignore-eos"];
        [&["generate", "--model", &model, "--draft", "stored"][..], &rest].concat()
    };
    assert_eq!(json(&with(&original))["token_ids"].as_array().unwrap().len(), 6);

    let shown = json(&["inspect", "--model", &model, "--draft", "stored,int8", "--device", "cpu"]);
    let draft = &shown["drafts"][0];
    assert_eq!(draft["format"], "stored (f16 and int4-g128 and int4-g64)");
    assert_eq!(shown["shadow"]["format"], "f16");
    assert!(draft["bytes"].as_u64() < shown["shadow"]["bytes"].as_u64());

    let other = self::model();
    let error = failure(&with(path(&other)), 1);
    assert!(error.contains("hidden size is 192 in one and 32"), "{error}");
}

#[test]
fn calibrate_writes_profiles_that_serve() {
    let model = model();
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // Words in an order that does not repeat, so that documents differ.
    let words = ["the", "hello", "llama", "of", "some", "more", "then", "and"];
    let text: Vec<_> = (0..1200_usize).map(|n| words[n * n % 61 % 8]).collect();
    let text = write("text.txt", &text.join(" "));
    let (out, records) = (place.path().join("profiles"), place.path().join("records.parquet"));
    let (out, records) = (out.to_str().unwrap(), records.to_str().unwrap());
    let fixed = ["calibrate", "--model", path(&model), "--device", "cpu", "--threads", "2"];
    let own = [&fixed[..], &["--domain", "tiny", "--text", &text, "--context", "128"]].concat();
    let run = [&own[..], &["--prompt", "8", "--budget", "0.3", "--out", out, "--records", records]];
    let report = json(&run.concat());
    let domain = &report["domains"][0];
    assert_eq!((&domain["domain"], &domain["target"]), (&"tiny".into(), &"budget 0.3".into()));
    let count = |half: &str, what: &str| domain[half][what].as_u64().unwrap();
    assert!(count("train", "documents") >= 4 && count("test", "documents") >= 2, "{domain}");
    assert!(count("train", "disagreements") > 0 && count("test", "disagreements") > 0);
    assert_eq!(names(&domain["detectors"], "detector"), ["entropy", "top1", "margin", "fused"]);
    assert!(domain["detectors"][2]["auc"].as_f64() > Some(0.6), "{domain}");
    assert_eq!(domain["sampled"].as_array().unwrap().len(), 2);
    assert_eq!(std::fs::read(records).unwrap()[..4], *b"PAR1");

    // The profile is one that a model serves with, without a warning that it was fitted elsewhere.
    let profile = format!("{out}/tiny.toml");
    let serve = ["generate", "--model", path(&model), "--device", "cpu", "--prompt", "hello"];
    for detector in ["entropy", "fused"] {
        let rest = ["--profile", &profile, "--detector", detector, "--json"];
        let output = rewind(&[&serve[..], &rest].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("fitted on"), "{said}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let threshold = answer["tokens"][0]["threshold"].as_f64().unwrap();
        let expected = match detector {
            "entropy" => domain["thresholds"]["entropy"]["threshold"].as_f64().unwrap(),
            _ => {
                let part = |part: &str| domain["fused"][part].as_f64().unwrap();
                part("base") + part("noise_floor")
            }
        };
        assert!((threshold - expected).abs() < 1e-5, "{detector}: {threshold} {expected}");
    }

    let other = [&own[..], &["--prompt", "8", "--recall", "0.9"]].concat();
    let table = answer(&other);
    assert!(table.contains("target recall 0.9") && table.contains("fused"), "{table}");

    let built_in = ["--domain", "math,adversarial", "--documents", "6", "--context", "96"];
    let report = json(&[&fixed[..], &built_in, &["--prompt", "16"]].concat());
    assert_eq!(names(&report["domains"], "domain"), ["math", "adversarial", "default"]);
    let steps = |place: usize| report["domains"][place]["train"]["steps"].as_u64().unwrap();
    assert!(steps(2) > steps(0) + steps(1) / 2, "{report}");
}

#[test]
fn calibrate_answers_chats() {
    let mut folder = folder();
    folder.tokenizer_config["chat_template"] =
        "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}".into();
    let model = tempfile::tempdir().unwrap();
    folder.write(model.path());
    let fixed = ["calibrate", "--model", path(&model), "--device", "cpu", "--domain", "chat"];
    let short = ["--documents", "5", "--max-tokens", "24", "--draft", "int4-g32"];
    let report = json(&[&fixed[..], &short].concat());
    let domain = &report["domains"][0];
    let steps =
        domain["train"]["steps"].as_u64().unwrap() + domain["test"]["steps"].as_u64().unwrap();
    // Each answer has 24 tokens unless it ends, and every one of them is fed.
    assert!(steps > 5 && steps <= 5 * 24, "{domain}");
}

#[test]
fn calibrate_refuses_what_cannot_be_fitted() {
    let model = model();
    let fixed = ["calibrate", "--model", path(&model), "--device", "cpu"];
    let run = |rest: &[&str], code| failure(&[&fixed[..], rest].concat(), code);
    let unknown = run(&["--domain", "poetry"], 1);
    assert!(unknown.contains("\"poetry\"") && unknown.contains("adversarial"), "{unknown}");
    let file = model.path().join("short.txt");
    std::fs::write(&file, "too short").unwrap();
    let short = run(&["--domain", "x", "--text", file.to_str().unwrap()], 1);
    assert!(short.contains("short.txt") && short.contains("too few"), "{short}");
    run(&["--text", file.to_str().unwrap()], 2);
    run(&["--budget", "0.2", "--recall", "0.9"], 2);
    run(&["--budget", "1.5"], 2);
    let name = run(&["--domain", "auto", "--text", file.to_str().unwrap()], 1);
    assert!(name.contains("\"auto\""), "{name}");
}

#[test]
fn inspect_shows_the_shape() {
    let model = model();
    let report = json(&["inspect", "--model", path(&model), "--draft", "int8"]);
    assert_eq!(report["container"], "Hugging Face");
    assert_eq!((report["layers"].as_u64(), report["vocabulary"].as_u64()), (Some(2), Some(261)));
    assert_eq!(report["drafts"][0]["format"], "int8 (embedding and head int8-g32)");
    assert!(report["drafts"][0]["bytes"].as_u64() < report["shadow"]["bytes"].as_u64());
    // Both matrices and vectors of the shadow are in 32 bits, in whole tiles.
    let on_a_gpu = report["gpu"]["plans"][0]["gpu_bytes"].as_u64();
    assert!(on_a_gpu > report["shadow"]["bytes"].as_u64());
    let text = answer(&["inspect", "--model", path(&model)]);
    assert!(text.contains("CPU kernels") && text.contains("thermometer"), "{text}");
}

#[test]
fn inspect_plans_for_a_gpu_without_one() {
    let mut folder = Folder::new(&spec(Architecture::Llama), Element::F16);
    folder.tokenizer_config = serde_json::json!({});
    let model = tempfile::tempdir().unwrap();
    folder.write(model.path());
    let run = |rest: &[&str]| {
        let fixed = ["inspect", "--model", path(&model), "--draft", "int8,int4-g32"];
        json(&[&fixed[..], rest].concat())
    };
    let report = run(&["--device", "cuda:4000", "--bus-bandwidth", "10"]);
    assert_eq!(report["served_on"]["device"], "cuda:4000");
    assert!(report["served_on"]["chosen"].is_null());
    let reason = report["served_on"]["reason"].as_str().unwrap();
    assert!(reason.contains("cuda:4000 cannot be used"), "{reason}");
    // Keys and values in half the CPU's bits, heads padded to 32 from 8.
    assert_eq!(report["gpu"]["kv_bytes_per_token"], 2 * 2 * 2 * 32 * 2);

    let plans = report["gpu"]["plans"].as_array().unwrap();
    let cases: Vec<_> = plans.iter().map(|p| (&p["draft"], &p["shadow_placement"])).collect();
    let expected = [("int8", "gpu"), ("int8", "host"), ("int4-g32", "gpu"), ("int4-g32", "host")];
    assert!(cases.iter().zip(expected).all(|((d, s), (draft, place))| *d == draft && *s == place));
    let bytes = |plan: &Value, key: &str| plan[key].as_u64().unwrap();
    for pair in plans.chunks_exact(2) {
        let (gpu, host) = (&pair[0], &pair[1]);
        assert_eq!((bytes(gpu, "host_bytes"), bytes(gpu, "bus_bytes_per_shadow_pass")), (0, 0));
        // The matrices of both layers in 16 bits, at least.
        let layers = 2 * 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48);
        assert!(bytes(host, "host_bytes") >= layers, "{host}");
        assert!(bytes(host, "gpu_bytes") + bytes(host, "host_bytes") >= bytes(gpu, "gpu_bytes"));
        let streamed = bytes(host, "bus_bytes_per_shadow_pass");
        let seconds = host["bus_seconds_per_shadow_pass"].as_f64().unwrap();
        assert!(streamed >= layers && (seconds * 10e9 - streamed as f64).abs() < 1.0);
    }
    assert!(bytes(&plans[0], "gpu_bytes") > bytes(&plans[2], "gpu_bytes"));

    assert!(run(&["--device", "cpu"])["gpu"].is_null());
    let text = answer(&["inspect", "--model", path(&model)]);
    assert!(text.contains("\nserved on      auto: "), "{text}");
    assert!(text.contains("over the bus") && text.contains("at 25 GB/s"), "{text}");
}

/// What `bench` tells of every run.
fn bench(measurement: &str, rest: &[&str]) -> Value {
    let model = model();
    let fixed =
        ["bench", measurement, "--model", path(&model), "--device", "cpu", "--threads", "1"];
    let arguments = [&fixed[..], &["--rounds", "2"], rest].concat();
    let report = json(&arguments);
    assert_eq!(report["command"], measurement);
    assert_eq!(report["threads"], 1);
    assert_eq!(report["model"]["path"], path(&model));
    assert!(report["model"]["shadow"].as_str().unwrap().starts_with("f32"), "{report}");
    assert!(report["machine"]["cores"].as_u64() > Some(0));
    assert_eq!(report["machine"]["kernels"].as_array().unwrap().len(), 2);
    let rate = &report["bandwidth"]["gigabytes_per_second"];
    assert!(rate["low"].as_f64() > Some(0.0) && rate["samples"].as_array().unwrap().len() > 1);
    let text = answer(&arguments);
    assert!(text.contains("memory read, GB/s") && !text.contains('\x1b'), "{text}");
    report
}

fn names<'a>(lines: &'a Value, name: &str) -> Vec<&'a str> {
    lines.as_array().unwrap().iter().map(|line| line[name].as_str().unwrap()).collect()
}

#[test]
fn bench_measures_passes() {
    let decode = bench("decode", &["--context", "7", "--draft", "int8"]);
    assert_eq!(names(&decode["measurements"], "weights"), ["draft", "shadow"]);
    assert_eq!(names(&decode["measurements"], "format"), ["int8", "f32"]);
    let steps = &decode["measurements"][0]["step_seconds"]["samples"];
    assert_eq!(steps.as_array().unwrap().len(), 14);
    let shadow = &decode["measurements"][1];
    // 261 tokens of width 32 in single precision.
    assert_eq!(shadow["head_bytes"], 261 * 32 * 4);
    assert_eq!(shadow["bytes_per_token"].as_f64(), shadow["step_bytes"].as_f64());

    let batch = bench(
        "batch",
        &["--context", "5", "--batch", "1,3", "--weights", "draft", "--no-statistics"],
    );
    assert_eq!(names(&batch["measurements"], "name"), ["batch", "batch"]);
    assert_eq!(batch["measurements"][1]["batch"], 3);
    assert_eq!(batch["measurements"][1]["statistics"], false);

    let prefill = bench("prefill", &["--prompt", "40", "--weights", "shadow"]);
    let [one] = &prefill["measurements"].as_array().unwrap()[..] else { panic!("{prefill}") };
    assert_eq!((&one["name"], &one["context"]), (&"prefill".into(), &40.into()));
}

#[test]
fn bench_measures_the_monitor_and_rewinds() {
    let overhead = bench("overhead", &["--pairs", "10", "--batch", "1,2", "--control"]);
    for (one, batch) in overhead["overhead"].as_array().unwrap().iter().zip([1, 2]) {
        assert_eq!((&one["batch"], &one["pairs"]), (&batch.into(), &10.into()));
        assert!(one["relative"]["low"].is_f64() && one["control"]["high"].is_f64(), "{one}");
        assert_eq!(one["temperature"].as_f64().unwrap() as f32, 0.8);
    }
    let cost = bench("rewind-cost", &["--rows", "3", "--context", "6", "--turns", "2"]);
    assert_eq!(names(&cost["passes"], "choosing"), ["all", "all", "all", "last", "last"]);
    assert_eq!(cost["passes"][2]["rows"], 3);
    assert_eq!(cost["draft_step_seconds"]["samples"].as_array().unwrap().len(), 4);
}

#[test]
fn bench_measures_policies() {
    let short = ["--tokens", "6", "--batch", "1,2", "--rates", "0,1"];
    let all = bench("throughput", &[&short[..], &["--sweep-rows", "1,4"]].concat());
    // Three policies without a rate and two at two rates, at two batch sizes.
    assert_eq!(all["policies"].as_array().unwrap().len(), 2 * (3 + 2 * 2));
    let verdicts = ["faster_below", "always_faster", "never_faster"];
    let found = names(&all["break_even"], "verdict");
    assert!(found.len() == 4 && found.iter().all(|one| verdicts.contains(one)), "{found:?}");
    // At once, or 4 rows after one, two or four iterations; three policies at one batch size.
    assert_eq!(all["sweep"]["lines"].as_array().unwrap().len(), 3 * 4);
    assert_eq!(all["sweep"]["choices"].as_array().unwrap().len(), 4);
    let without = bench("throughput", &[&short[..], &["--no-sweep", "--policies", "off"]].concat());
    assert!(without["sweep"].is_null());
}

#[test]
fn bench_refuses_what_cannot_be_measured() {
    let model = model();
    let run = |rest: &[&str], code| {
        failure(&[&["bench", rest[0], "--model", path(&model)], &rest[1..]].concat(), code)
    };
    let long = run(&["decode", "--context", "4096"], 1);
    assert!(long.contains("4096") && long.contains("512"), "{long}");
    let rate = run(&["throughput", "--rates", "0,2"], 2);
    assert!(rate.contains("from 0 to 1"), "{rate}");
    let pairs = run(&["overhead", "--pairs", "3"], 1);
    assert!(pairs.contains("at least the number of rounds"), "{pairs}");
    run(&["decode", "--rounds", "0"], 2);
    run(&["throughput", "--window", "0"], 2);
}

#[test]
fn failures_are_one_line_and_an_exit_code() {
    let model = model();
    let model = path(&model);
    let missing = failure(&["generate", "--model", "/nowhere.gguf", "--prompt", "x"], 1);
    assert!(missing.contains("/nowhere.gguf does not exist"), "{missing}");
    let empty = failure(&["generate", "--model", model, "--prompt", ""], 1);
    assert!(empty.contains("the prompt is empty"), "{empty}");
    let format = failure(&["generate", "--model", model, "--prompt", "x", "--draft", "int3"], 2);
    assert!(format.contains("int4-g32"), "{format}");
    let device = failure(&["generate", "--model", model, "--prompt", "x", "--device", "tpu"], 2);
    assert!(device.contains("cuda:N"), "{device}");
    // No machine has that many.
    let gpu = ["generate", "--model", model, "--prompt", "x", "--device", "cuda:4000"];
    let gpu = failure(&gpu, 1);
    assert!(gpu.contains("device cuda:4000 cannot be used"), "{gpu}");
    let bandwidth = failure(&["inspect", "--model", model, "--bus-bandwidth", "0"], 2);
    assert!(bandwidth.contains("above 0"), "{bandwidth}");
    let both = failure(&["generate", "--model", model, "--prompt", "x", "--prompt-tokens", "1"], 2);
    assert!(both.contains("cannot be used with"), "{both}");
    failure(&["generate", "--model", model], 2);
    let none = failure(&["verify", "--model", model, "--prompts", "/nowhere.txt"], 1);
    assert!(none.contains("/nowhere.txt"), "{none}");
}

#[test]
fn a_real_model_rewinds() {
    let Some(model) = std::env::var_os("REWIND_DEMO_MODEL") else {
        println!("SKIP: REWIND_DEMO_MODEL is not set to a checkpoint");
        return;
    };
    let model = Path::new(&model).to_str().unwrap();
    let run = |policy: &str| {
        let prompt = "Explain in simple words why the sky is blue.";
        let fixed = ["generate", "--model", model, "--chat", "--prompt", prompt];
        json(&[&fixed[..], &["--max-tokens", "64", "--policy", policy]].concat())
    };
    let (step, lossless, shadow) = (run("step"), run("lossless"), run("shadow"));
    assert!(step["timings"]["shadow_passes"].as_u64().unwrap() > 0);
    assert_eq!(lossless["token_ids"], shadow["token_ids"]);
    assert_eq!(lossless["text"], shadow["text"]);
}
