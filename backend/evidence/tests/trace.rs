//! Traces over a model whose logits are known.

mod support;

use rewind_engine::sampling::{History, Sampling, Scratch, choose};
use rewind_engine::{Token, Weights};
use rewind_evidence::{Document, Reading, TraceError, TraceSettings, trace};
use rewind_monitor::oracle;
use support::{Toy, VOCABULARY};

fn document(tokens: usize, prompt: usize) -> Document {
    let mut random = fastrand::Rng::with_seed(9);
    Document {
        domain: "toy".into(),
        name: "one".into(),
        tokens: (0..tokens).map(|_| random.u32(..VOCABULARY)).collect(),
        prompt,
    }
}

fn settings(threads: usize) -> TraceSettings {
    TraceSettings { temperatures: vec![0.7, 1.0], seed: 4, threads }
}

fn no_sensors() -> Reading {
    Reading::default()
}

#[test]
fn every_figure_is_that_of_its_position() {
    let (document, mut toy) = (document(70, 9), Toy::new(0.3));
    let mut done = 0;
    let sensors = || Reading { celsius: Some(40.0), megahertz: None };
    let found = trace(&mut toy, &document, &settings(3), sensors, |count| done += count).unwrap();
    assert_eq!(done, 70);
    assert_eq!(found.records.len(), 61);
    // Three passes of at most 24 rows on each copy, in turn.
    assert_eq!(toy.passes[..2], [(Weights::Draft, 24), (Weights::Full, 24)]);
    assert_eq!(toy.passes.len(), 6);
    let (mut differ, mut sampled_differ) = (0, 0);
    for (record, position) in found.records.iter().zip(9..) {
        let past: &[Token] = &document.tokens[..=position];
        assert_eq!((record.position as usize, record.fed), (position, past[position]));
        let [draft, shadow] = [Weights::Draft, Weights::Full].map(|w| toy.logits(w, past));
        assert_eq!(record.draft.statistics, oracle::statistics(&draft));
        assert_eq!(record.shadow.statistics, oracle::statistics(&shadow));
        let greatest = |row: &[f32]| row.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(draft[record.draft.token as usize], greatest(&draft));
        assert_eq!(shadow[record.shadow.token as usize], greatest(&shadow));
        assert_eq!(record.regret, greatest(&shadow) - shadow[record.draft.token as usize]);
        assert_eq!(record.agrees(), record.regret == 0.0);
        let (p, q) = (oracle::softmax(&shadow), oracle::softmax(&draft));
        let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((f64::from(record.divergence) - divergence).abs() < 1e-6);
        for (sampled, temperature) in record.sampled.iter().zip([0.7, 1.0]) {
            let sampling = Sampling { temperature, seed: 4, ..Sampling::GREEDY };
            let of = |logits: &[f32]| {
                let (history, at) = (History::default(), position as u32 + 1);
                choose(logits, &sampling, &history, &[], None, at, &mut Scratch::default())
            };
            let (draft, shadow) = (of(&draft), of(&shadow));
            assert_eq!((sampled.draft, sampled.shadow), (draft.token, shadow.token));
            assert_eq!((sampled.margin, sampled.temperature), (draft.margin, temperature));
            sampled_differ += usize::from(sampled.draft != sampled.shadow);
        }
        assert_eq!(record.chip.celsius, Some(40.0));
        differ += usize::from(!record.agrees());
    }
    assert!(differ > 0 && differ < 40 && sampled_differ > 0, "{differ} {sampled_differ}");

    let entropies: Vec<f64> = (1..=9)
        .map(|end| toy.logits(Weights::Full, &document.tokens[..end]))
        .map(|logits| oracle::statistics(&logits).entropy.into())
        .collect();
    let mean = entropies.iter().sum::<f64>() / 9.0;
    assert!((found.prompt.mean - mean).abs() < 1e-9);

    let again = trace(&mut Toy::new(0.3), &document, &settings(1), sensors, |_| ()).unwrap();
    assert_eq!(again, found, "threads decide nothing");
}

#[test]
fn a_draft_without_noise_agrees_everywhere() {
    let found =
        trace(&mut Toy::new(0.0), &document(64, 1), &settings(2), no_sensors, |_| ()).unwrap();
    assert!(found.records.iter().all(|r| r.agrees() && r.regret == 0.0 && r.divergence < 1e-6));
    assert!(found.records.iter().all(|r| r.sampled.iter().all(|s| s.draft == s.shadow)));
    assert_eq!(found.prompt.spread, 0.0, "a prompt of one row");
}

#[test]
fn what_cannot_be_traced_is_named() {
    let said = |toy: &mut Toy, document: &Document| {
        trace(toy, document, &settings(1), no_sensors, |_| ()).unwrap_err()
    };
    let mut toy = Toy::new(0.1);
    assert!(matches!(said(&mut toy, &document(9, 9)), TraceError::TooShort { tokens: 9, .. }));
    assert!(matches!(said(&mut toy, &document(9, 0)), TraceError::TooShort { prompt: 0, .. }));
    let long = said(&mut toy, &document(129, 9)).to_string();
    assert!(long.contains("129 tokens") && long.contains("128 tokens and 16 KV pages"), "{long}");
    toy.broken_at = Some(30);
    let broken = said(&mut toy, &document(60, 9)).to_string();
    assert!(broken.contains("the draft at position 30"), "{broken}");
}
