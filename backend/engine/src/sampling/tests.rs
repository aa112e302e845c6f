//! The contract against a naive oracle that sorts everything, and against statistics.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::philox::philox4x32_10;
use super::*;

/// Everything [`choose`] reads.
#[derive(Clone, Debug)]
struct Case {
    logits: Vec<f32>,
    sampling: Sampling,
    history: History,
    banned: Vec<Token>,
    mask: Option<TokenMask>,
    position: u32,
}

impl Case {
    fn greedy(logits: &[f32]) -> Self {
        Self {
            logits: logits.to_vec(),
            sampling: Sampling::GREEDY,
            history: History::default(),
            banned: Vec::new(),
            mask: None,
            position: 0,
        }
    }

    fn sampled(logits: &[f32], change: impl FnOnce(&mut Sampling)) -> Self {
        let mut case = Self::greedy(logits);
        case.sampling.temperature = 1.0;
        change(&mut case.sampling);
        case
    }

    fn choose_with(&self, scratch: &mut Scratch) -> Choice {
        let Self { logits, sampling, history, banned, mask, position } = self;
        choose(logits, sampling, history, banned, mask.as_ref(), *position, scratch)
    }

    fn choose(&self) -> Choice {
        self.choose_with(&mut Scratch::default())
    }

    /// The contract, read from top to bottom with no thought of speed.
    fn oracle(&self) -> Choice {
        let Self { logits, sampling, history, .. } = self;
        let vocabulary = logits.len();

        let in_mask = |token: usize| match &self.mask {
            Some(TokenMask(words)) => {
                words.get(token / 64).is_some_and(|word| word & (1 << (token % 64)) != 0)
            }
            None => true,
        };
        let mut allowed: Vec<usize> = (0..vocabulary).filter(|&token| in_mask(token)).collect();
        if allowed.is_empty() {
            allowed = (0..vocabulary).collect();
        }
        let not_banned = |token: &usize| !self.banned.contains(&(*token as Token));
        let kept: Vec<usize> = allowed.iter().copied().filter(not_banned).collect();
        let allowed = if kept.is_empty() { allowed } else { kept };

        let answer = &history.tokens[history.prompt.min(history.tokens.len())..];
        let processed = |token: usize| {
            let id = token as Token;
            let hold = |logit: f32| logit.clamp(f32::MIN, f32::MAX);
            let mut logit = logits[token];
            for &(_, bias) in sampling.bias.iter().filter(|(biased, _)| *biased == id) {
                logit = hold(logit + bias);
            }
            if sampling.reads_history() && history.tokens.contains(&id) {
                let penalty = sampling.repetition_penalty;
                logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
                let count = answer.iter().filter(|&&other| other == id).count();
                if count > 0 {
                    logit -= sampling.frequency_penalty * count as f32;
                    logit -= sampling.presence_penalty;
                }
                logit = hold(logit);
            }
            logit
        };
        let candidates: Vec<(f32, usize)> = allowed.iter().map(|&t| (processed(t), t)).collect();

        let mut ranking = candidates.clone();
        ranking.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        let by_logit = || Choice {
            token: ranking[0].1 as Token,
            runner_up: ranking.get(1).map(|second| second.1 as Token),
            margin: ranking.get(1).map_or(f32::INFINITY, |second| {
                (f64::from(ranking[0].0) - f64::from(second.0)).min(f64::from(f32::MAX)) as f32
            }),
        };
        if sampling.temperature == 0.0 {
            return by_logit();
        }

        let temperature = f64::from(sampling.temperature);
        let best = f64::from(ranking[0].0);
        let exponent = |logit: f32| (f64::from(logit) - best) / temperature;
        let mut survivors = ranking.clone();
        if sampling.top_k > 0 {
            survivors.truncate(sampling.top_k as usize);
        }
        if sampling.top_p < 1.0 {
            let left: HashSet<usize> = survivors.iter().map(|s| s.1).collect();
            let mut total = 0.0;
            for (logit, _) in candidates.iter().filter(|(_, token)| left.contains(token)) {
                total += exponent(*logit).exp();
            }
            let mut sum = 0.0;
            let reaches = |(logit, _): &(f32, usize)| {
                sum += exponent(*logit).exp();
                sum >= f64::from(sampling.top_p) * total
            };
            if let Some(last) = survivors.iter().position(reaches) {
                survivors.truncate(last + 1);
            }
        }
        if sampling.min_p > 0.0 {
            survivors.retain(|(logit, _)| exponent(*logit) >= f64::from(sampling.min_p).ln());
        }
        if survivors.len() == 1 {
            return by_logit();
        }

        let mut perturbed: Vec<(f64, usize)> = survivors
            .iter()
            .map(|&(logit, token)| {
                let key = [sampling.seed as u32, (sampling.seed >> 32) as u32];
                let words = philox4x32_10([token as u32 / 4, self.position, 0, 0], key);
                let u = (f64::from(words[token % 4]) + 0.5) / 2_f64.powi(32);
                (f64::from(logit) / temperature - (-u.ln()).ln(), token)
            })
            .collect();
        perturbed.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        let gap = (perturbed[0].0 - perturbed[1].0) * temperature;
        Choice {
            token: perturbed[0].1 as Token,
            runner_up: Some(perturbed[1].1 as Token),
            margin: gap.min(f64::from(f32::MAX)) as f32,
        }
    }
}

/// Logits with many ties, with extremes, and as models give them.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let tied = (-3_i8..3).prop_map(f32::from);
    let extreme = prop_oneof![
        Just(f32::MIN),
        Just(-1e30_f32),
        Just(-0.0_f32),
        Just(0.0_f32),
        Just(f32::MAX),
        -1e4_f32..1e4,
    ];
    let usual = -20_f32..20.0;
    prop_oneof![
        prop::collection::vec(tied, 1..40),
        prop::collection::vec(extreme, 1..40),
        prop::collection::vec(usual.clone(), 1..8),
        prop::collection::vec(usual, 300..900),
    ]
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let filters = (
        prop_oneof![Just(0_u32), 1_u32..6, 20_u32..1000, Just(u32::MAX)],
        prop_oneof![Just(1.0_f32), Just(0.0), Just(1e-9), Just(0.999_999_9), 0.0_f32..1.0],
        prop_oneof![Just(0.0_f32), Just(1.0), 0.0_f32..1.0, 0.0_f32..0.01],
    );
    let penalties = (
        prop_oneof![3 => Just(1.0_f32), 1 => 0.5_f32..2.0, 1 => Just(1e-38_f32)],
        prop_oneof![3 => Just(0.0_f32), 1 => -2.0_f32..2.0],
        prop_oneof![3 => Just(0.0_f32), 1 => -2.0_f32..2.0],
    );
    let bias = prop::collection::btree_map(0_u32..50, -100_f32..100.0, 0..4);
    let temperature =
        prop_oneof![Just(0.0_f32), Just(1.0_f32), Just(1e-40_f32), Just(1e30_f32), 0.01_f32..3.0];
    (temperature, filters, penalties, bias, any::<u64>()).prop_map(
        |(temperature, (top_k, top_p, min_p), penalties, bias, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: penalties.0,
            presence_penalty: penalties.1,
            frequency_penalty: penalties.2,
            bias: bias.into_iter().collect(),
            seed,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let history = (prop::collection::vec(0_u32..60, 0..30), 0_usize..40)
        .prop_map(|(tokens, prompt)| History { tokens: tokens.into(), prompt });
    let banned = prop_oneof![
        3 => prop::collection::btree_set(0_u32..50, 0..5).prop_map(Vec::from_iter),
        1 => Just((0..1000).collect()),
    ];
    let words = prop_oneof![Just(0_u64), Just(!0), any::<u64>(), any::<u64>().prop_map(|w| w & 9)];
    let mask = prop::option::of(prop::collection::vec(words, 0..16));
    (logits(), sampling(), history, banned, mask, any::<u32>()).prop_map(
        |(logits, sampling, history, banned, mask, position)| Case {
            logits,
            sampling,
            history,
            banned,
            mask: mask.map(|words| TokenMask(words.into())),
            position,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn agrees_with_the_oracle(case in case()) {
        prop_assert_eq!(case.choose(), case.oracle());
    }

    #[test]
    fn scratch_leaves_no_trace(first in case(), second in case()) {
        let mut scratch = Scratch::default();
        first.choose_with(&mut scratch);
        prop_assert_eq!(second.choose_with(&mut scratch), second.choose());
        prop_assert!(scratch.counts.iter().all(|&count| count == 0));
    }
}

#[test]
fn agrees_with_the_oracle_on_a_whole_vocabulary() {
    let mut scratch = Scratch::default();
    for seed in 0..6 {
        let logits: Vec<f32> = (0..49_152)
            .map(|id| philox4x32_10([id, seed, 0, 0], [5, 5])[0] as f32 / 3e8 - 7.0)
            .collect();
        for change in [
            |_: &mut Sampling| (),
            |s: &mut Sampling| s.top_k = 50,
            |s: &mut Sampling| s.top_p = 0.95,
            |s: &mut Sampling| s.min_p = 0.02,
            |s: &mut Sampling| (s.top_k, s.top_p, s.min_p) = (20_000, 0.99, 1e-6),
            |s: &mut Sampling| s.temperature = 0.0,
        ] {
            let mut case = Case::sampled(&logits, change);
            case.sampling.seed = u64::from(seed);
            case.position = seed * 1000;
            assert_eq!(case.choose_with(&mut scratch), case.oracle(), "{:?}", case.sampling);
        }
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    let greedy = Case::greedy(&[1.0, 2.0, 2.0, 2.0]).choose();
    assert_eq!(greedy, Choice { token: 1, runner_up: Some(2), margin: 0.0 });
    let zeros = Case::greedy(&[-0.0, 0.0]).choose();
    assert_eq!(zeros, Choice { token: 0, runner_up: Some(1), margin: 0.0 });
    // Filters that cut through a tie keep exactly as many as they must, the lower ids.
    for level in [0.0, -1e4] {
        for filter in [|s: &mut Sampling| s.top_k = 3, |s: &mut Sampling| s.top_p = 0.375] {
            let mut seen = [false; 8];
            let mut case = Case::sampled(&[level; 8], filter);
            for position in 0..200 {
                case.position = position;
                seen[case.choose().token as usize] = true;
            }
            assert_eq!(seen, [true, true, true, false, false, false, false, false]);
        }
    }
}

#[test]
fn margins_are_those_of_the_contract() {
    let logits = [0.5, 3.0, 2.25, -1.0];
    assert_eq!(Case::greedy(&logits).choose().margin, 0.75);
    // One survivor: distance to the best excluded candidate, whatever the temperature.
    let one = Case::sampled(&logits, |s| (s.temperature, s.top_k) = (0.1, 1)).choose();
    assert_eq!(one, Choice { token: 1, runner_up: Some(2), margin: 0.75 });
    // One candidate: nothing to choose between.
    let mut only = Case::sampled(&logits, |s| s.top_k = 1);
    only.mask = Some(TokenMask(Arc::new([1 << 3])));
    assert_eq!(only.choose(), Choice { token: 3, runner_up: None, margin: f32::INFINITY });
    assert_eq!(Case::greedy(&[7.0]).choose().margin, f32::INFINITY);
    // A finite gap stays finite.
    assert_eq!(Case::greedy(&[f32::MIN, f32::MAX]).choose().margin, f32::MAX);
}

#[test]
fn penalties_look_at_the_right_tokens() {
    let history = History { tokens: [0, 0, 1, 1, 2].into(), prompt: 2 };
    let penalized = |change: fn(&mut Sampling)| {
        let (mut case, mut scratch) = (Case::greedy(&[4.0, 4.0, -4.0, 4.0]), Scratch::default());
        change(&mut case.sampling);
        case.history = history.clone();
        case.choose_with(&mut scratch);
        scratch.processed
    };
    assert_eq!(penalized(|s| s.repetition_penalty = 2.0), [2.0, 2.0, -8.0, 4.0]);
    assert_eq!(penalized(|s| s.presence_penalty = 0.5), [4.0, 3.5, -4.5, 4.0]);
    assert_eq!(penalized(|s| s.frequency_penalty = 0.5), [4.0, 3.0, -4.5, 4.0]);
}

#[test]
fn bans_and_masks_that_leave_nothing_are_ignored() {
    let mut case = Case::greedy(&[1.0, 3.0, 2.0]);
    case.banned = vec![0, 1, 2];
    assert_eq!(case.choose().token, 1);
    case.mask = Some(TokenMask(Arc::new([0b101])));
    assert_eq!(case.choose().token, 2);
    case.banned = vec![2];
    assert_eq!(case.choose().token, 0);
    case.mask = Some(TokenMask(Arc::new([])));
    assert_eq!(case.choose().token, 1);
}

/// Rows that break the contract must not break the server.
#[test]
fn rows_that_are_not_finite_give_some_token() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for row in [vec![bad; 5], vec![1.0, bad, 2.0], vec![]] {
            for temperature in [0.0, 1.0] {
                let change = |s: &mut Sampling| {
                    (s.temperature, s.top_k, s.top_p, s.min_p) = (temperature, 2, 0.5, 0.1);
                };
                Case::sampled(&row, change).choose();
                Case::sampled(&row, |s| s.temperature = temperature).choose();
            }
        }
    }
}

/// Pearson's test of 40,000 draws against the softmax, and against the truncated softmax of top-p.
#[test]
fn frequencies_are_those_of_the_softmax() {
    const DRAWS: u32 = 40_000;
    let logits = [1.0, 0.0, 2.0, -1.0, 0.5, 1.5, -8.0];
    let temperature = 0.8_f32;
    // The 99.9 % quantiles of χ² with 5 and with 2 degrees of freedom. Token 6, of which about
    // one is expected, is left out of the sum.
    for (top_p, allowed, quantile) in
        [(1.0, &[2, 5, 0, 4, 1, 3][..], 20.52), (0.75, &[2, 5, 0], 13.82)]
    {
        let weight = |token: usize| f64::from(logits[token] / temperature).exp();
        let total: f64 = allowed.iter().map(|&token| weight(token)).sum();
        let mut counts = [0_u32; 7];
        let mut scratch = Scratch::default();
        let mut case = Case::sampled(&logits, |s| {
            (s.temperature, s.top_p, s.seed) = (temperature, top_p, 20_240_601);
        });
        for position in 0..DRAWS {
            case.position = position;
            counts[case.choose_with(&mut scratch).token as usize] += 1;
        }
        let statistic: f64 = allowed
            .iter()
            .map(|&token| {
                let expected = f64::from(DRAWS) * weight(token) / total;
                (f64::from(counts[token]) - expected).powi(2) / expected
            })
            .sum();
        assert!(statistic < quantile, "χ² = {statistic}, counts {counts:?}");
        let rest: u32 = (0..7).filter(|t| !allowed.contains(t)).map(|t| counts[t]).sum();
        assert!(rest < 10, "{counts:?}");
    }
}

#[test]
fn the_draw_depends_on_seed_and_position_only() {
    let flat = [0.0; 1000];
    let draw = |seed, position| {
        let mut case = Case::sampled(&flat, |s| s.seed = seed);
        case.position = position;
        case.choose().token
    };
    let at_positions: HashSet<_> = (0..50).map(|position| draw(1, position)).collect();
    let with_seeds: HashSet<_> = (0..50).map(|seed| draw(seed << 32, 1)).collect();
    assert!(at_positions.len() > 40 && with_seeds.len() > 40);
    assert_eq!(draw(1, 7), draw(1, 7));
}

#[test]
fn equality_and_hash_are_by_bits() {
    let same = Sampling { bias: vec![(1, 0.5)], ..Sampling::GREEDY };
    assert_eq!(same, same.clone());
    for change in [
        |s: &mut Sampling| s.temperature = -0.0,
        |s: &mut Sampling| s.top_k = 1,
        |s: &mut Sampling| s.seed = 1,
        |s: &mut Sampling| s.bias.clear(),
        |s: &mut Sampling| s.bias.push((2, 0.0)),
    ] {
        let mut other = same.clone();
        change(&mut other);
        assert_ne!(same, other);
    }
}
