//! Rows of logits with what is wanted of them, as the kernels get them and as the contract reads them.

use std::sync::Arc;

use anyhow::{Result, ensure};
use rewind_engine::sampling::{self, History, Sampling, Scratch};
use rewind_engine::{Token, TokenMask};
use rewind_kernels::arguments::{
    Address, Answer, CHOICE_GATE, CHOICE_LOGPROBS, CHOICE_SUMS, Choice, ChooseArguments,
    DETECTOR_ENTROPY, DETECTOR_MARGIN, DETECTOR_TOP1, NONE,
};
use rewind_kernels::sampling::{Lists, choose, logits_stride};
use rewind_monitor::{Detector, Fused, Gate};

use crate::{Lab, Random};

/// Every detector, the fused one with weights of both signs.
pub(crate) const DETECTORS: [Detector; 4] = [
    Detector::Entropy,
    Detector::Top1,
    Detector::Margin,
    Detector::Fused(Fused {
        bias: -0.7,
        entropy: 0.31,
        varentropy: -0.17,
        ln_top1: -0.53,
        margin: -1.9,
    }),
];

/// Everything about one head row.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) logits: Vec<f32>,
    pub(crate) sampling: Sampling,
    pub(crate) history: History,
    pub(crate) banned: Vec<Token>,
    pub(crate) mask: Option<TokenMask>,
    pub(crate) position: u32,
    /// Whether a token is chosen.
    pub(crate) chooses: bool,
    pub(crate) gate: Option<Gate>,
    pub(crate) sums: bool,
    pub(crate) logprobs: Option<u8>,
}

impl Wish {
    /// The greedy token, nothing else.
    pub(crate) fn greedy(logits: Vec<f32>) -> Self {
        Self {
            logits,
            sampling: Sampling::GREEDY,
            history: History::default(),
            banned: Vec::new(),
            mask: None,
            position: 0,
            chooses: true,
            gate: None,
            sums: false,
            logprobs: None,
        }
    }

    /// A sampled token.
    pub(crate) fn sampled(logits: Vec<f32>, change: impl FnOnce(&mut Sampling)) -> Self {
        let mut wish = Self::greedy(logits);
        wish.sampling.temperature = 1.0;
        change(&mut wish.sampling);
        wish
    }

    pub(crate) fn is_finite(&self) -> bool {
        self.logits.iter().all(|logit| logit.is_finite())
    }

    /// As the kernels are told.
    pub(crate) fn choice(&self, slot: u32, lists: &mut Lists) -> Choice {
        let vocabulary = self.logits.len() as u32;
        let sampling = &self.sampling;
        let flag = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
        let sums = self.sums
            || self.logprobs.is_some()
            || self.gate.is_some_and(|gate| gate.detector.reads_sums());
        let mut choice = Choice {
            seed: sampling.seed,
            slot: if self.chooses { slot } else { NONE },
            position: self.position,
            flags: flag(sums, CHOICE_SUMS)
                | flag(self.gate.is_some(), CHOICE_GATE)
                | flag(self.logprobs.is_some(), CHOICE_LOGPROBS),
            threshold: self.gate.map_or(0.0, |gate| gate.threshold),
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            top_k: sampling.top_k,
            repetition: sampling.repetition_penalty,
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            logprobs: self.logprobs.map_or(0, u32::from),
            ..Choice::PADDING
        };
        match self.gate.map(|gate| gate.detector) {
            None | Some(Detector::Entropy) => choice.detector = DETECTOR_ENTROPY,
            Some(Detector::Top1) => choice.detector = DETECTOR_TOP1,
            Some(Detector::Margin) => choice.detector = DETECTOR_MARGIN,
            Some(Detector::Fused(fused)) => choice.judge_fused(fused.weights()),
        }
        if self.chooses {
            lists.bias(&mut choice, &sampling.bias);
            if sampling.reads_history() {
                let History { tokens, prompt } = &self.history;
                lists.history(&mut choice, vocabulary, tokens, *prompt);
            }
            let mask = self.mask.as_ref().map(|mask| &*mask.0);
            lists.exclude(&mut choice, vocabulary, &self.banned, mask);
        }
        choice.mark_general(vocabulary);
        choice
    }

    /// What the contract chooses.
    pub(crate) fn expected(&self) -> sampling::Choice {
        sampling::choose(
            &self.logits,
            &self.sampling,
            &self.history,
            &self.banned,
            self.mask.as_ref(),
            self.position,
            &mut Scratch::default(),
        )
    }

    /// Compares a choice with the contract's. Logarithms may differ in their last bit from machine to
    /// machine, and with them a margin.
    pub(crate) fn check(&self, answer: &Answer) -> Result<()> {
        let expected = self.expected();
        let runner_up = expected.runner_up.unwrap_or(NONE);
        let temperature = f64::from(self.sampling.temperature);
        let largest = self.logits.iter().fold(0.0_f64, |m, &l| m.max(f64::from(l).abs()));
        // A few last bits of a score, in units of a logit.
        let bits = if temperature > 0.0 { 1e-14 * (largest + 25.0 * temperature) } else { 0.0 };
        let (got, margin) = (f64::from(answer.margin), f64::from(expected.margin));
        let close = got == margin || (got - margin).abs() <= bits + 1.2e-7 * margin.abs();
        ensure!(
            (answer.token, answer.runner_up) == (expected.token, runner_up) && close,
            "chosen: {}, {}, margin {}; expected {expected:?}; {} logits, {:?}, position {}",
            answer.token,
            answer.runner_up,
            answer.margin,
            self.logits.len(),
            self.sampling,
            self.position,
        );
        Ok(())
    }
}

/// Rows of one vocabulary on the device.
pub(crate) struct Rows<'a> {
    pub(crate) wishes: &'a [Wish],
    /// Of each row; some may be padding.
    pub(crate) choices: Vec<Choice>,
    pub(crate) lists: Vec<u32>,
}

impl<'a> Rows<'a> {
    /// Rows whose slots are their numbers.
    pub(crate) fn new(wishes: &'a [Wish]) -> Self {
        let mut lists = Lists::default();
        let choices = wishes.iter().zip(0..).map(|(wish, slot)| wish.choice(slot, &mut lists));
        Self { wishes, choices: choices.collect(), lists: lists.words().to_vec() }
    }

    pub(crate) fn count(&self) -> u32 {
        self.wishes.len() as u32
    }

    pub(crate) fn vocabulary(&self) -> u32 {
        self.wishes.first().map_or(0, |wish| wish.logits.len() as u32)
    }

    /// Logits, with NaN between the rows: whoever looks there spoils his answer.
    pub(crate) fn put_logits(&self, lab: &mut Lab<'_>) -> Result<Address> {
        let stride = logits_stride(self.vocabulary()) as usize;
        let mut all = vec![f32::NAN; stride * self.wishes.len()];
        for (row, wish) in all.chunks_exact_mut(stride).zip(self.wishes) {
            row[..wish.logits.len()].copy_from_slice(&wish.logits);
        }
        lab.put(&all)
    }

    /// Runs `choose` over logits that are there, into answers that are there.
    pub(crate) fn choose(
        &self,
        lab: &mut Lab<'_>,
        logits: Address,
        answers: Address,
    ) -> Result<()> {
        let stride = logits_stride(self.vocabulary());
        let arguments = ChooseArguments {
            logits,
            processed: lab.room::<f32>(stride as usize * self.wishes.len())?,
            choices: lab.put(&self.choices)?,
            lists: lab.put(&self.lists)?,
            answers,
            count: self.count(),
            vocabulary: self.vocabulary(),
            logits_stride: stride,
            unused: 0,
        };
        lab.run(choose(self.count()), &arguments)
    }
}

/// What an answer holds before a kernel writes it.
pub(crate) const UNTOUCHED: Answer = Answer {
    log_z: -5.0,
    token: 123,
    runner_up: 456,
    entropy: -1.0,
    varentropy: -2.0,
    top1: -3.0,
    margin: -4.0,
    finite: 77,
    suspect: 88,
};

/// Logits with many ties, with extremes, or as models give them.
pub(crate) fn random_logits(vocabulary: usize, random: &mut Random) -> Vec<f32> {
    let extremes = [f32::MIN, -1e30, -0.0, 0.0, 1e-40, f32::MAX];
    let kind = random.below(6);
    let mut one = || match kind {
        0 => random.below(6) as f32 - 3.0,
        1 if random.below(3) == 0 => (random.unit() - 0.5) * 2e4,
        1 => extremes[random.below(extremes.len())],
        2 => 0.0,
        3 => (random.unit() - 0.5) * 40.0,
        _ => random.normal() * 3.0,
    };
    (0..vocabulary).map(|_| one()).collect()
}

/// Parameters over their whole ranges, most of them neutral most of the time.
pub(crate) fn random_sampling(vocabulary: usize, random: &mut Random) -> Sampling {
    fn pick<const N: usize>(random: &mut Random, values: [f32; N]) -> f32 {
        values[random.below(N)]
    }
    let unit = |random: &mut Random| random.unit().max(f32::MIN_POSITIVE);
    let spread = unit(random);
    let temperature = [0.0, 1.0, 1e-40, 1e30, 0.01 + 3.0 * spread, 1.0, 0.7, 1.3];
    let top_k = [0, 1 + random.below(6), 1 + random.below(2 * vocabulary), usize::MAX >> 32, 0, 40];
    let mut top_p = [1.0, 1e-9, 0.999_999_9, 1.0, 0.95, 0.5, 0.0, 0.01];
    top_p[6] = unit(random);
    let mut min_p = [0.0, 1.0, 0.0, 0.0, 0.0, 0.05, 0.0];
    min_p[0] = unit(random);
    min_p[4] = 0.01 * unit(random);
    let mut penalty = |neutral: f32, low: f32, high: f32| match random.below(4) {
        0 => low + (high - low) * random.unit(),
        _ => neutral,
    };
    let (repetition_penalty, presence_penalty, frequency_penalty) =
        (penalty(1.0, 0.5, 2.0), penalty(0.0, -2.0, 2.0), penalty(0.0, -2.0, 2.0));
    let mut bias: Vec<(Token, f32)> = (0..random.below(4))
        .map(|_| (random.below(vocabulary) as Token, (random.unit() - 0.5) * 200.0))
        .collect();
    bias.sort_by_key(|entry| entry.0);
    bias.dedup_by_key(|entry| entry.0);
    Sampling {
        temperature: pick(random, temperature),
        top_k: top_k[random.below(top_k.len())] as u32,
        top_p: pick(random, top_p),
        min_p: pick(random, min_p),
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        bias,
        seed: u64::from(random.word()) << 32 | u64::from(random.word()),
    }
}

/// A row with parameters, history, bans and mask.
pub(crate) fn random_wish(vocabulary: usize, random: &mut Random) -> Wish {
    // Ids a little beyond the vocabulary, which must have no effect.
    let id = |random: &mut Random| random.below(vocabulary + vocabulary / 8 + 2) as Token;
    let tokens: Vec<Token> = (0..random.below(30)).map(|_| id(random)).collect();
    let mut banned: Vec<Token> = match random.below(8) {
        0 => (0..vocabulary as Token).collect(),
        1..4 => (0..random.below(6)).map(|_| id(random)).collect(),
        _ => Vec::new(),
    };
    banned.sort_unstable();
    banned.dedup();
    let word = |random: &mut Random| u64::from(random.word()) << 32 | u64::from(random.word());
    let words = random.below(vocabulary / 64 + 3);
    let mask: Option<Vec<u64>> = match random.below(8) {
        0 => Some((0..words).map(|_| word(random)).collect()),
        1 => Some((0..words).map(|_| word(random) & 9).collect()),
        2 => Some(vec![0; words]),
        _ => None,
    };
    let prompt = random.below(40);
    Wish {
        sampling: random_sampling(vocabulary, random),
        history: History { tokens: tokens.into(), prompt },
        banned,
        mask: mask.map(|words| TokenMask(Arc::from(words))),
        position: random.word() >> 1,
        ..Wish::greedy(random_logits(vocabulary, random))
    }
}
