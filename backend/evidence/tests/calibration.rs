//! From traces to profiles, over a model whose logits are known.

mod support;

use rewind_evidence::{
    Calibration, CalibrationError, Document, Half, Held, Reading, Resampling, Target, Trace,
    TraceSettings, split, trace,
};
use rewind_monitor::{DetectorName, Profile};
use support::{Toy, VOCABULARY};

const RESAMPLING: Resampling = Resampling { draws: 200, seed: 1 };

fn documents(count: u64) -> Vec<Document> {
    (0..count)
        .map(|seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let tokens = (0..128).map(|_| random.u32(..VOCABULARY)).collect();
            Document { domain: "toy".into(), name: seed.to_string(), tokens, prompt: 8 }
        })
        .collect()
}

fn traces(documents: &[Document], noise: f64) -> Vec<Trace> {
    let mut toy = Toy::new(noise);
    let settings = TraceSettings { temperatures: vec![1.0], seed: 0, threads: 2 };
    documents
        .iter()
        .map(|document| trace(&mut toy, document, &settings, Reading::default, |_| ()).unwrap())
        .collect()
}

fn held<'a>(documents: &'a [Document], traces: &'a [Trace]) -> Vec<Held<'a>> {
    let both = documents.iter().zip(split(documents)).zip(traces);
    both.map(|((document, half), trace)| Held { document, half, trace }).collect()
}

fn fit(held: &[Held<'_>], target: Target) -> Calibration {
    Calibration::fit("toy", held, target, None, RESAMPLING).unwrap()
}

#[test]
fn a_profile_flags_what_was_promised() {
    let documents = documents(20);
    let traces = traces(&documents, 0.2);
    let held = held(&documents, &traces);
    for target in [Target::Budget(0.2), Target::Recall(0.9), Target::Regret(0.002)] {
        let calibration = fit(&held, target);
        assert_eq!((calibration.train.documents, calibration.test.documents), (12, 8));
        let profile = calibration.profile("toy", "a test", "toy Draft", "none", vec!["x".into()]);
        let profile = Profile::parse(&profile.to_toml()).unwrap();
        let train: Vec<_> = held
            .iter()
            .filter(|one| one.half == Half::Train)
            .flat_map(|one| &one.trace.records)
            .collect();
        let steps = train.len() as f64;
        for name in DetectorName::ALL {
            let gate = profile.gate(name, 1.0).unwrap();
            let flagged: Vec<_> =
                train.iter().map(|record| gate.is_suspect(&record.draft.statistics)).collect();
            let share = flagged.iter().filter(|&&f| f).count() as f64 / steps;
            let differ = |caught: bool| {
                let pairs = train.iter().zip(&flagged);
                pairs.filter(|(r, f)| !r.agrees() && (**f || !caught)).count() as f64
            };
            let left: f64 = train
                .iter()
                .zip(&flagged)
                .filter(|(_, flagged)| !**flagged)
                .map(|(record, _)| f64::from(record.regret))
                .sum();
            match target {
                // The last step may be one that shares its score with others.
                Target::Budget(budget) => {
                    assert!(share <= budget && share > budget - 0.02, "{name}: {share}");
                }
                Target::Recall(recall) => {
                    assert!(differ(true) >= recall * differ(false), "{name}: {}", differ(true));
                }
                Target::Regret(nats) => assert!(left / steps <= nats + 1e-9, "{name}: {left}"),
            }
        }
        let fitted = profile.fitted.unwrap();
        assert_eq!(fitted.target, Some(target.to_string()));
        assert_eq!(fitted.tokens, Some(train.len() as u32));
    }
}

#[test]
fn better_detectors_are_found_better() {
    let documents = documents(30);
    let traces = traces(&documents, 0.2);
    let held = held(&documents, &traces);
    let calibration = fit(&held, Target::Budget(0.1));
    let auc = |name| {
        calibration.detectors.iter().find(|judged| judged.detector == name).unwrap().auc.unwrap()
    };
    let (entropy, margin, fused) =
        (auc(DetectorName::Entropy), auc(DetectorName::Margin), auc(DetectorName::Fused));
    assert!(margin > 0.8 && margin > entropy + 0.05, "{margin} {entropy}");
    assert!(fused > margin - 0.02, "{fused} {margin}");
    for judged in &calibration.detectors {
        let [low, high] = judged.auc_interval.unwrap();
        assert!(low <= judged.auc.unwrap() && judged.auc.unwrap() <= high && low < high);
        assert!((2..=50).contains(&judged.roc.len()));
        assert!(judged.caught_at.is_sorted(), "{judged:?}");
        assert!(judged.regret <= calibration.test.regret);
    }
    // Noise of the sum of three uniform numbers, doubled, on either of two logits: 0.2 · 2 · 0.5 · √2.
    let noise = calibration.margin_noise.unwrap();
    assert!((noise.sigma / 0.283 - 1.0).abs() < 0.2, "{noise:?}");
    assert!(noise.sigma_interval[0] < noise.sigma && noise.sigma < noise.sigma_interval[1]);

    let more = fit(&held, Target::Budget(0.3));
    assert!(more.thresholds.margin.threshold < calibration.thresholds.margin.threshold);
    let again = fit(&held, Target::Budget(0.1));
    assert_eq!(again.detectors[3].auc_interval, calibration.detectors[3].auc_interval);
}

#[test]
fn what_was_held_out_does_not_move_a_fit() {
    let documents = documents(12);
    let traces = traces(&documents, 0.2);
    let held = held(&documents, &traces);
    let whole = fit(&held, Target::Budget(0.2));
    let mut fewer: Vec<_> = held.iter().filter(|one| one.half == Half::Train).copied().collect();
    fewer.extend(held.iter().filter(|one| one.half == Half::Test).take(2));
    let fewer = fit(&fewer, Target::Budget(0.2));
    assert_eq!(whole.fused, fewer.fused);
    assert_eq!(whole.thresholds, fewer.thresholds);
    assert_eq!(whole.prompt, fewer.prompt);
    assert_ne!(whole.test, fewer.test);
}

#[test]
fn shared_weights_keep_a_threshold_of_their_own() {
    let documents = documents(12);
    let traces = traces(&documents, 0.2);
    let held = held(&documents, &traces);
    let own = fit(&held, Target::Budget(0.2));
    let shared = Calibration::fuse(&held).unwrap();
    let with =
        Calibration::fit("toy", &held, Target::Budget(0.2), Some(shared), RESAMPLING).unwrap();
    assert_eq!(with.fused, own.fused, "all documents are of one domain");
    let mut other = shared;
    other.weights[3] *= 2.0;
    let with =
        Calibration::fit("toy", &held, Target::Budget(0.2), Some(other), RESAMPLING).unwrap();
    assert_eq!(with.fused.margin, other.weights[3]);
    assert_ne!(with.fused.base, own.fused.base);
}

#[test]
fn what_cannot_be_fitted_is_named() {
    let documents = documents(8);
    let same = traces(&documents, 0.0);
    let error = |held: &[Held<'_>]| {
        Calibration::fit("toy", held, Target::Budget(0.2), None, RESAMPLING).unwrap_err()
    };
    let none = error(&held(&documents, &same));
    assert!(matches!(none, CalibrationError::NoDisagreement { .. }), "{none}");
    let few = error(&held(&documents[..3], &same[..3])).to_string();
    assert!(few.contains("3 documents") && few.contains("at least 4"), "{few}");
    let copies: Vec<_> =
        (0..6).map(|n| Document { name: n.to_string(), ..documents[0].clone() }).collect();
    let copies = error(&held(&copies, &same[..6])).to_string();
    assert!(copies.contains("the train half has no document"), "{copies}");
}
