//! A profile is read as it was written, and what is wrong with one is named.

use proptest::prelude::*;

use super::*;

fn default() -> Profile {
    Profile::builtin("default").unwrap()
}

/// The error of the default profile after a change of its text.
fn error(from: &str, to: &str) -> String {
    let text = BUILTIN[0].1;
    assert!(text.contains(from), "{from:?} is not there to change");
    Profile::parse(&text.replace(from, to)).unwrap_err().to_string()
}

#[test]
fn every_builtin_profile_is_valid_and_bears_its_name() {
    for name in Profile::builtin_names() {
        let profile = Profile::builtin(name).unwrap();
        assert_eq!(profile.name, name);
        assert_eq!(Profile::parse(&profile.to_toml()), Ok(profile));
    }
}

#[test]
fn gates_follow_the_temperature() {
    let profile = default();
    let threshold = |detector, celsius: f32| {
        let kt = profile.thermal_coefficient(Some(Celsius(celsius)));
        profile.gate(detector, kt).unwrap().threshold
    };
    assert_eq!(threshold(DetectorName::Entropy, 25.0), 3.5);
    assert_eq!(threshold(DetectorName::Entropy, 80.0), 3.575);
    assert_eq!(threshold(DetectorName::Top1, 80.0), 0.825);
    assert_eq!(threshold(DetectorName::Margin, 30.0), -0.3);
    let gate = profile.gate(DetectorName::Margin, 1.0).unwrap();
    assert_eq!(gate.detector, Detector::Margin);
    assert_eq!(profile.thermal_coefficient(None), 1.0);
}

#[test]
fn defaults_of_what_is_left_out() {
    let text = "version = 1\nname = 'x'\n[detectors]\nentropy = { base = 1, noise_floor = 0 }\n\
                top1 = { base = 1, noise_floor = 0 }\nmargin = { base = 1, noise_floor = 0 }";
    let profile = Profile::parse(text).unwrap();
    assert_eq!(profile.thermal_slope, 0.01);
    assert_eq!((profile.description.as_str(), profile.fitted), ("", None));
}

#[test]
fn mistakes_are_named() {
    assert!(error("thermal_slope", "termal_slope").contains("unknown field `termal_slope`"));
    let misspelt = error("base = 3.35", "bas = 2.0");
    assert!(misspelt.contains("unknown field `bas`") && misspelt.contains("noise_floor"));
    assert!(error("[detectors.top1]", "[detectors.top2]").contains("unknown field `top2`"));
    let missing = error("noise_floor = 0.15", "");
    assert!(missing.contains("missing field `noise_floor`"), "{missing}");
    assert!(error("version = 1\n", "").contains("missing field `version`"));
    assert!(error("base = 3.35", "base = 'high'").contains("invalid type"));
    assert!(error("name = \"default\"", "name = ").starts_with("not a valid profile: "));
}

#[test]
fn another_version_is_named_before_its_keys() {
    assert_eq!(
        error("version = 1\n", "version = 2\nnew_key = 1\n"),
        "the profile has version 2: this build reads version 1"
    );
}

#[test]
fn values_out_of_range_are_named() {
    assert_eq!(
        error("noise_floor = 0.15", "noise_floor = -0.15"),
        "profile \"default\": detectors.entropy.noise_floor is -0.15: it must be finite and not \
         negative"
    );
    assert_eq!(
        error("base = -0.35", "base = nan"),
        "profile \"default\": detectors.margin.base is NaN: it must be finite"
    );
    assert!(error("noise_floor = 0.05", "noise_floor = inf").contains("top1.noise_floor is inf"));
    assert_eq!(
        error("thermal_slope = 0.01", "thermal_slope = -1"),
        "profile \"default\": thermal_slope is -1: it must be from 0 to 1"
    );
    assert!(error("name = \"default\"", "name = \"a b\"").contains("\"a b\""));
    assert!(error("name = \"default\"", "name = \"\"").contains("1 to 64"));
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    assert_eq!(
        Profile::builtin("defualt").unwrap_err().to_string(),
        "unknown profile \"defualt\": the built-in ones are default"
    );
}

#[test]
fn a_profile_fitted_elsewhere_warns_and_names_both() {
    let mut profile = default();
    assert_eq!(profile.warn_if_fitted_elsewhere("here"), None);
    profile.fitted = Some(Fitted { identity: "there".into(), ..Fitted::default() });
    assert_eq!(profile.warn_if_fitted_elsewhere("there"), None);
    let warning = profile.warn_if_fitted_elsewhere("here").unwrap();
    assert!(warning.contains("\"there\"") && warning.contains("\"here\""), "{warning}");
}

/// A profile with every table, as `rewind calibrate` writes it.
const WHOLE: &str = r#"
    version = 1
    name = "code"
    [fitted]
    identity = "int8 a8 cpu"
    model = "0123"
    text = ["a.txt", "b.txt"]
    tokens = 12345
    test_tokens = 5678
    disagreements = 321
    target = "budget 0.2"
    [detectors.entropy]
    base = 3
    noise_floor = 0.1
    [detectors.top1]
    base = 0.5
    noise_floor = 0.1
    [detectors.margin]
    base = -0.5
    noise_floor = 0.1
    [detectors.fused]
    base = 0.1
    noise_floor = 0.2
    bias = -1.0
    entropy = 0.3
    varentropy = 0.1
    ln_top1 = -0.2
    margin = -1.5
    [evidence.margin]
    auc = 0.95
    auc_interval = [0.94, 0.96]
    rate = 0.2
    caught = 0.85
    roc = [[0.01, 0.2], [0.02, 0.3]]
    [evidence.fused]
    auc = 0.97
    auc_interval = [0.96, 0.98]
    rate = 0.2
    caught = 0.9
    [margin_noise]
    sigma = 0.4
    sigma_interval = [0.38, 0.42]
    [prompt]
    mean = 2.1
    mean_deviation = 0.4
    spread = 1.3
    spread_deviation = 0.3
    [exits.12]
    top1 = 0.95
    [exits.20]
    top1 = 0.9
"#;

/// The error of [`WHOLE`] after a change of its text.
fn whole_error(from: &str, to: &str) -> String {
    assert!(WHOLE.contains(from), "{from:?} is not there to change");
    Profile::parse(&WHOLE.replacen(from, to, 1)).unwrap_err().to_string()
}

#[test]
fn every_table_is_read() {
    let profile = Profile::parse(WHOLE).unwrap();
    let fitted = profile.fitted.as_ref().unwrap();
    assert_eq!((fitted.text.len(), fitted.tokens), (2, Some(12345)));
    assert_eq!((fitted.test_tokens, fitted.disagreements), (Some(5678), Some(321)));
    assert_eq!(fitted.target.as_deref(), Some("budget 0.2"));
    assert_eq!(profile.evidence[&DetectorName::Margin].roc, [[0.01, 0.2], [0.02, 0.3]]);
    assert!(profile.evidence[&DetectorName::Fused].roc.is_empty());
    assert_eq!(profile.margin_noise.unwrap().sigma_interval, [0.38, 0.42]);
    assert_eq!(profile.prompt.unwrap().spread_deviation, 0.3);
    assert_eq!(profile.exits.keys().copied().collect::<Vec<_>>(), [12, 20]);
    assert_eq!(Profile::parse(&profile.to_toml()), Ok(profile));
}

#[test]
fn the_fused_detector_comes_from_the_profile_or_not_at_all() {
    let gate = Profile::parse(WHOLE).unwrap().gate(DetectorName::Fused, 1.5).unwrap();
    let Detector::Fused(fused) = gate.detector else { panic!("{gate:?}") };
    assert_eq!(fused.weights(), [-1.0, 0.3, 0.1, -0.2, -1.5]);
    assert!((gate.threshold - 0.4).abs() < 1e-6);
    assert_eq!(
        default().gate(DetectorName::Fused, 1.0).unwrap_err().to_string(),
        "profile \"default\" has no [detectors.fused]: fit one by `rewind calibrate`, or choose \
         entropy, top1 or margin"
    );
}

#[test]
fn mistakes_of_the_optional_tables_are_named() {
    let out_of_range = |from: &str, to: &str, message: &str| {
        let error = whole_error(from, to);
        assert_eq!(error, format!("profile \"code\": {message}"), "{from} -> {to}");
    };
    out_of_range(
        "disagreements = 321",
        "disagreements = 12346",
        "fitted.disagreements is 12346: it must be at most fitted.tokens",
    );
    out_of_range(
        "margin = -1.5",
        "margin = -1e7",
        "detectors.fused.margin is -10000000: it must be from -1e6 to 1e6",
    );
    out_of_range(
        "bias = -1.0",
        "bias = nan",
        "detectors.fused.bias is NaN: it must be from -1e6 to 1e6",
    );
    out_of_range(
        "noise_floor = 0.2",
        "noise_floor = -0.2",
        "detectors.fused.noise_floor is -0.2: it must be finite and not negative",
    );
    out_of_range("auc = 0.95", "auc = 1.5", "evidence.margin.auc is 1.5: it must be from 0 to 1");
    out_of_range(
        "[0.94, 0.96]",
        "[0.96, 0.94]",
        "evidence.margin.auc_interval is 0.94: it must be low, then high",
    );
    out_of_range("rate = 0.2", "rate = -1", "evidence.margin.rate is -1: it must be from 0 to 1");
    out_of_range(
        "caught = 0.9",
        "caught = 2",
        "evidence.fused.caught is 2: it must be from 0 to 1",
    );
    out_of_range(
        "[0.02, 0.3]",
        "[0.02, 0.1]",
        "evidence.margin.roc is 0.1: it must be no smaller than in the point before",
    );
    out_of_range(
        "[0.02, 0.3]",
        "[0.02, 1.3]",
        "evidence.margin.roc is 1.3: it must be from 0 to 1",
    );
    out_of_range(
        "sigma = 0.4",
        "sigma = 0",
        "margin_noise.sigma is 0: it must be finite and above 0",
    );
    out_of_range(
        "[0.38, 0.42]",
        "[0.38, inf]",
        "margin_noise.sigma_interval is inf: it must be finite and not negative",
    );
    out_of_range(
        "mean = 2.1",
        "mean = -2.1",
        "prompt.mean is -2.1: it must be finite and not negative",
    );
    out_of_range(
        "spread_deviation = 0.3",
        "spread_deviation = 0",
        "prompt.spread_deviation is 0: it must be finite and above 0",
    );
    out_of_range("top1 = 0.95", "top1 = 95", "exits.12.top1 is 95: it must be from 0 to 1");
    out_of_range(
        "[exits.12]",
        "[exits.0]",
        "exits is 0: it must be a number of layers of at least 1",
    );

    assert!(whole_error("[evidence.margin]", "[evidence.margins]").contains("margins"));
    assert!(whole_error("[exits.12]", "[exits.last]").contains("last"));
    assert!(whole_error("sigma = 0.4", "sigmas = 0.4").contains("unknown field `sigmas`"));
    assert!(whole_error("bias = -1.0", "").contains("missing field `bias`"));
    assert!(whole_error("spread = 1.3", "").contains("missing field `spread`"));
    assert!(whole_error("[0.94, 0.96]", "[0.94]").contains("array of length 2"));
    assert!(whole_error("name = \"code\"", "name = \"auto\"").contains("not \"auto\""));
}

fn thresholds() -> impl Strategy<Value = Threshold> {
    (-1e6..1e6, 0.0..1e6).prop_map(|(base, noise_floor)| Threshold { base, noise_floor })
}

fn fitted() -> impl Strategy<Value = Fitted> {
    (
        any::<(String, String, Vec<String>, Option<String>)>(),
        any::<(Option<u32>, Option<u32>, Option<u32>)>(),
    )
        .prop_map(|((identity, model, text, target), (tokens, test_tokens, disagreements))| {
            let most = |disagreements: u32| disagreements.min(tokens.unwrap_or(u32::MAX));
            let disagreements = disagreements.map(most);
            Fitted { identity, model, text, tokens, test_tokens, disagreements, target }
        })
}

fn interval(top: f64) -> impl Strategy<Value = [f64; 2]> {
    (0.0..=top, 0.0..=top).prop_map(|(a, b)| [a.min(b), a.max(b)])
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let share = || 0.0..=1.0;
    let roc = prop::collection::vec((share(), share()), 0..5).prop_map(|points| {
        let (mut flagged, mut caught): (Vec<_>, Vec<_>) = points.into_iter().unzip();
        flagged.sort_by(f64::total_cmp);
        caught.sort_by(f64::total_cmp);
        flagged.into_iter().zip(caught).map(|(x, y)| [x, y]).collect()
    });
    (share(), interval(1.0), share(), share(), roc).prop_map(
        |(auc, auc_interval, rate, caught, roc)| Evidence { auc, auc_interval, rate, caught, roc },
    )
}

fn fused() -> impl Strategy<Value = FusedThreshold> {
    (thresholds(), prop::array::uniform5(-1e6..1e6)).prop_map(
        |(Threshold { base, noise_floor }, [bias, entropy, varentropy, ln_top1, margin])| {
            FusedThreshold { base, noise_floor, bias, entropy, varentropy, ln_top1, margin }
        },
    )
}

proptest! {
    #[test]
    fn round_trips(
        name in "[a-zA-Z0-9._-]{5,64}",
        description: String,
        thermal_slope in 0.0..=1.0,
        [entropy, top1, margin] in prop::array::uniform3(thresholds()),
        fused in prop::option::of(fused()),
        fitted in prop::option::of(fitted()),
        evidence in prop::collection::btree_map(
            prop::sample::select(&DetectorName::ALL[..]), evidence(), 0..4,
        ),
        margin_noise in prop::option::of((1e-6..1e6, interval(1e6))),
        prompt in prop::option::of(prop::array::uniform4(1e-6..20.0)),
        exits in prop::collection::btree_map(1_u16.., 0.0..=1.0, 0..4),
    ) {
        let profile = Profile {
            version: VERSION,
            name,
            description,
            thermal_slope,
            fitted,
            detectors: Detectors { entropy, top1, margin, fused },
            evidence,
            margin_noise: margin_noise
                .map(|(sigma, sigma_interval)| MarginNoise { sigma, sigma_interval }),
            prompt: prompt.map(|[mean, mean_deviation, spread, spread_deviation]| {
                PromptEntropies { mean, mean_deviation, spread, spread_deviation }
            }),
            exits: exits.into_iter().map(|(layer, top1)| (layer, Exit { top1 })).collect(),
        };
        prop_assert_eq!(Profile::parse(&profile.to_toml()), Ok(profile));
    }
}
