//! Detectors fitted to one half of the documents and measured on the other.

use std::collections::BTreeMap;

use rewind_monitor::profile::{FusedThreshold, MarginNoise, Threshold};
use rewind_monitor::{Detector, DetectorName, PromptEntropies, Statistics};
use serde::Serialize;

use crate::bootstrap::{Resampling, interval};
use crate::document::{Document, FEWEST_DOCUMENTS, Half};
use crate::error::CalibrationError;
use crate::logistic::Logistic;
use crate::noise::MarginNoiseFit;
use crate::ranking::{Ranking, Step};
use crate::record::{Record, Trace};
use crate::target::{Candidate, Target};

/// Budgets at which detectors are compared: shares of steps that are flagged.
pub const BUDGETS: [f64; 4] = [0.05, 0.1, 0.2, 0.3];

/// Most points of a ROC curve.
const ROC_POINTS: usize = 50;

/// Draws for an interval of σ: each is a search of its own.
const SIGMA_DRAWS: usize = 200;

/// A document, its half and what was traced.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// The document.
    pub document: &'a Document,
    /// Whether fits may see it.
    pub half: Half,
    /// Draft and shadow on it.
    pub trace: &'a Trace,
}

/// What one domain taught.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// The domain.
    pub domain: String,
    /// What thresholds aim at, as profiles tell it.
    pub target: String,
    /// The documents that fits saw.
    pub train: Counts,
    /// Those that were held out; all figures below are of them.
    pub test: Counts,
    /// Thresholds of all detectors but the fused one.
    pub thresholds: Thresholds,
    /// The fused detector: threshold and weights.
    pub fused: FusedThreshold,
    /// How good each detector is.
    pub detectors: Vec<Judged>,
    /// Other ways to read the same statistics, for comparison; no profile has them.
    pub variants: Vec<Variant>,
    /// With noise, for each temperature; the detectors are those of above.
    pub sampled: Vec<SampledJudged>,
    /// The noise of the margin.
    pub margin_noise: Option<MarginNoise>,
    /// The entropies of prompts, of the train half; `None` if all are the same.
    pub prompt: Option<PromptEntropies>,
}

/// One half in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Documents.
    pub documents: usize,
    /// Positions that are judged.
    pub steps: usize,
    /// Positions where draft and shadow choose different tokens.
    pub disagreements: usize,
    /// Mean shadow regret of the draft, nothing repaired, nats.
    pub regret: f64,
    /// Mean KL(shadow ‖ draft), nats.
    pub divergence: f64,
}

/// Thresholds of the detectors that read one statistic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Thresholds {
    /// Of the entropy.
    pub entropy: ThresholdAt,
    /// Of 1 − the largest probability.
    pub top1: ThresholdAt,
    /// Of −margin.
    pub margin: ThresholdAt,
}

/// A threshold at KT = 1 and its parts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ThresholdAt {
    /// The threshold: base + noise floor.
    pub threshold: f32,
    /// Its base.
    pub base: f64,
    /// Its noise floor.
    pub noise_floor: f64,
}

impl ThresholdAt {
    /// As a profile has it.
    pub(crate) fn parts(self) -> Threshold {
        Threshold { base: self.base, noise_floor: self.noise_floor }
    }
}

/// A detector on the documents that were held out.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// Which.
    pub detector: DetectorName,
    /// Area under the ROC curve.
    pub auc: Option<f64>,
    /// Its 95 % interval.
    pub auc_interval: Option<[f64; 2]>,
    /// By how much that is more than the margin's, on the same draws of documents.
    pub over_margin: Option<f64>,
    /// Its 95 % interval.
    pub over_margin_interval: Option<[f64; 2]>,
    /// Share of the disagreements that are caught at each of [`BUDGETS`].
    pub caught_at: [Option<f64>; 4],
    /// At the fitted threshold: share of steps above it.
    pub rate: Option<f64>,
    /// Share of the disagreements above it.
    pub caught: Option<f64>,
    /// Mean shadow regret once the steps above it are repaired, nats.
    pub regret: f64,
    /// The curve.
    pub roc: Vec<[f64; 2]>,
}

/// Another score, on the documents that were held out.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// What it is.
    pub name: &'static str,
    /// Area under the ROC curve.
    pub auc: Option<f64>,
    /// By how much that is more than the margin's.
    pub over_margin: Option<f64>,
    /// Its 95 % interval.
    pub over_margin_interval: Option<[f64; 2]>,
}

/// Detectors where tokens are sampled.
#[derive(Clone, Debug, Serialize)]
pub struct SampledJudged {
    /// The temperature.
    pub temperature: f32,
    /// Positions of the test half where draft and shadow sample different tokens from the same noise.
    pub disagreements: usize,
    /// Area under the ROC curve by detector.
    pub auc: BTreeMap<DetectorName, Option<f64>>,
    /// Share of steps above the threshold that greedy steps gave, by detector.
    pub rate: BTreeMap<DetectorName, Option<f64>>,
    /// Share of the disagreements above it.
    pub caught: BTreeMap<DetectorName, Option<f64>>,
}

/// A record of document number so-and-so.
#[derive(Clone, Copy)]
struct Seen<'a> {
    document: usize,
    record: &'a Record,
}

/// One half of a domain.
struct Part<'a> {
    documents: usize,
    seen: Vec<Seen<'a>>,
}

impl<'a> Part<'a> {
    fn of(held: &[Held<'a>], half: Half) -> Self {
        let mut numbers = BTreeMap::new();
        let mut seen = Vec::new();
        for one in held.iter().filter(|one| one.half == half) {
            let name = (&one.document.domain, &one.document.name);
            let next = numbers.len();
            let document = *numbers.entry(name).or_insert(next);
            seen.extend(one.trace.records.iter().map(|record| Seen { document, record }));
        }
        Self { documents: numbers.len(), seen }
    }

    fn counts(&self) -> Counts {
        let steps = self.seen.len();
        let mean = |value: fn(&Record) -> f32| {
            self.seen.iter().map(|seen| f64::from(value(seen.record))).sum::<f64>()
                / steps.max(1) as f64
        };
        Counts {
            documents: self.documents,
            steps,
            disagreements: self.seen.iter().filter(|seen| !seen.record.agrees()).count(),
            regret: mean(|record| record.regret),
            divergence: mean(|record| record.divergence),
        }
    }

    /// Ranked by a score of the draft's statistics.
    fn ranked(&self, score: impl Fn(&Statistics) -> f32) -> Ranking {
        let step = |seen: &Seen<'_>| Step {
            score: score(&seen.record.draft.statistics),
            differs: !seen.record.agrees(),
            document: seen.document,
        };
        Ranking::new(self.seen.iter().map(step).collect())
    }

    /// Features and outcomes of the steps that have something to choose between.
    fn examples<const N: usize>(
        &self,
        features: impl Fn(&Statistics) -> [f64; N],
    ) -> (Vec<[f64; N]>, Vec<bool>) {
        self.seen
            .iter()
            .map(|seen| (features(&seen.record.draft.statistics), !seen.record.agrees()))
            .filter(|(features, _)| features.iter().all(|x| x.is_finite()))
            .unzip()
    }
}

/// What the fused detector reads.
fn features(statistics: &Statistics) -> [f64; 4] {
    let Statistics { entropy, varentropy, top1, margin, .. } = *statistics;
    [entropy.into(), varentropy.into(), f64::from(top1).ln(), margin.into()]
}

/// The margin over a σ that depends on how sure the draft is, as the slope of a logit: m · (a + b H + c ln top1).
fn scaled_margin(statistics: &Statistics) -> [f64; 3] {
    let [entropy, _, ln_top1, margin] = features(statistics);
    [margin, margin * entropy, margin * ln_top1]
}

/// All that the fused detector reads, and these products.
fn with_products(statistics: &Statistics) -> [f64; 6] {
    let [entropy, varentropy, ln_top1, margin] = features(statistics);
    [entropy, varentropy, ln_top1, margin, margin * entropy, margin * ln_top1]
}

impl Calibration {
    /// Weights of the fused detector for all documents of the train half, whatever their domain; `None` if all steps
    /// have one outcome.
    pub fn fuse(held: &[Held<'_>]) -> Option<Logistic<4>> {
        let (examples, outcomes) = Part::of(held, Half::Train).examples(features);
        Logistic::fit(&examples, &outcomes).ok()
    }

    /// Fits to the train half of `held` and measures on the test half. With `fused`, the weights of the fused detector
    /// are these (its threshold is of this domain all the same), and those that the domain itself would give are a
    /// variant.
    ///
    /// # Errors
    /// There is too little to learn from.
    pub fn fit(
        domain: &str,
        held: &[Held<'_>],
        target: Target,
        fused: Option<Logistic<4>>,
        resampling: Resampling,
    ) -> Result<Self, CalibrationError> {
        let [train, test] = [Half::Train, Half::Test].map(|half| Part::of(held, half));
        let documents = train.documents + test.documents;
        if documents < FEWEST_DOCUMENTS {
            return Err(CalibrationError::Documents { domain: domain.to_owned(), documents });
        }
        for (part, half) in [(&train, "the train half"), (&test, "the test half")] {
            if part.seen.is_empty() {
                return Err(CalibrationError::EmptyHalf { domain: domain.to_owned(), half });
            }
        }
        let counts = train.counts();
        let (domain, steps) = (domain.to_owned(), counts.steps);
        if counts.disagreements == 0 {
            return Err(CalibrationError::NoDisagreement { domain, steps });
        }
        let (examples, outcomes) = train.examples(features);
        let Ok(own) = Logistic::fit(&examples, &outcomes) else {
            return Err(CalibrationError::NoAgreement { domain, steps });
        };
        let fitted = Fitting { train: &train, target };
        let fused = fitted.fused(&fused.unwrap_or(own));
        let thresholds = Thresholds {
            entropy: fitted.threshold(Detector::Entropy),
            top1: fitted.threshold(Detector::Top1),
            margin: fitted.threshold(Detector::Margin),
        };
        let at = |name, detector, threshold| Fitted { name, detector, threshold };
        let fused_threshold = (fused.base + fused.noise_floor) as f32;
        let detectors = [
            at(DetectorName::Entropy, Detector::Entropy, thresholds.entropy.threshold),
            at(DetectorName::Top1, Detector::Top1, thresholds.top1.threshold),
            at(DetectorName::Margin, Detector::Margin, thresholds.margin.threshold),
            at(DetectorName::Fused, Detector::Fused(fused.weights()), fused_threshold),
        ];
        let judge =
            Judge { margin: test.ranked(|s| Detector::Margin.score(s)), test: &test, resampling };
        Ok(Self {
            target: target.to_string(),
            train: counts,
            test: test.counts(),
            thresholds,
            fused,
            detectors: detectors.map(|fitted| judge.detector(fitted)).into(),
            variants: judge.variants(&train, &own),
            sampled: judge.sampled(&detectors),
            margin_noise: margin_noise(&train, resampling),
            prompt: prompt(held),
            domain,
        })
    }
}

/// A detector with its threshold.
#[derive(Clone, Copy)]
struct Fitted {
    name: DetectorName,
    detector: Detector,
    threshold: f32,
}

/// What thresholds are fitted to.
struct Fitting<'a> {
    train: &'a Part<'a>,
    target: Target,
}

impl Fitting<'_> {
    fn threshold(&self, detector: Detector) -> ThresholdAt {
        let candidate = |seen: &Seen<'_>| Candidate {
            score: detector.score(&seen.record.draft.statistics),
            differs: !seen.record.agrees(),
            regret: seen.record.regret.into(),
        };
        let threshold = self.target.threshold(self.train.seen.iter().map(candidate).collect());
        let noise_floor = self.noise_floor(detector);
        ThresholdAt { threshold, base: f64::from(threshold) - noise_floor, noise_floor }
    }

    /// Standard deviation of the score, draft minus shadow.
    fn noise_floor(&self, detector: Detector) -> f64 {
        let gaps: Vec<f64> = self
            .train
            .seen
            .iter()
            .map(|seen| {
                let [draft, shadow] = [seen.record.draft, seen.record.shadow]
                    .map(|side| f64::from(detector.score(&side.statistics)));
                draft - shadow
            })
            .filter(|gap| gap.is_finite())
            .collect();
        let [_, deviation] = mean_and_deviation(&gaps);
        deviation
    }

    fn fused(&self, model: &Logistic<4>) -> FusedThreshold {
        let [entropy, varentropy, ln_top1, margin] = model.weights;
        let mut fused = FusedThreshold {
            base: 0.0,
            noise_floor: 0.0,
            bias: model.bias,
            entropy,
            varentropy,
            ln_top1,
            margin,
        };
        let at = self.threshold(Detector::Fused(fused.weights()));
        (fused.base, fused.noise_floor) = (at.base, at.noise_floor);
        fused
    }
}

/// Measures on the test half.
struct Judge<'a> {
    test: &'a Part<'a>,
    /// The half ranked by the margin, which others are compared with.
    margin: Ranking,
    resampling: Resampling,
}

impl Judge<'_> {
    fn interval(&self, figure: impl FnMut(&[f64]) -> Option<f64>) -> Option<[f64; 2]> {
        interval(self.test.documents, self.resampling, figure)
    }

    /// How much better than the margin, with its interval.
    fn over_margin(&self, ranking: &Ranking) -> (Option<f64>, Option<[f64; 2]>) {
        let difference = Option::zip(ranking.auc(), self.margin.auc()).map(|(a, b)| a - b);
        let interval = self.interval(|weights| {
            Some(ranking.weighted_auc(weights)? - self.margin.weighted_auc(weights)?)
        });
        (difference, interval)
    }

    fn detector(&self, Fitted { name, detector, threshold }: Fitted) -> Judged {
        let ranking = self.test.ranked(|statistics| detector.score(statistics));
        let (over_margin, over_margin_interval) = self.over_margin(&ranking);
        let [rate, caught] = ranking.above(threshold);
        let left: f64 = self
            .test
            .seen
            .iter()
            .filter(|seen| detector.score(&seen.record.draft.statistics) <= threshold)
            .map(|seen| f64::from(seen.record.regret))
            .sum();
        Judged {
            detector: name,
            auc: ranking.auc(),
            auc_interval: self.interval(|weights| ranking.weighted_auc(weights)),
            over_margin,
            over_margin_interval,
            caught_at: BUDGETS.map(|share| ranking.caught(share)),
            rate,
            caught,
            regret: left / self.test.seen.len() as f64,
            roc: ranking.roc(ROC_POINTS),
        }
    }

    fn variants(&self, train: &Part<'_>, own: &Logistic<4>) -> Vec<Variant> {
        fn fitted<const N: usize>(
            train: &Part<'_>,
            features: fn(&Statistics) -> [f64; N],
        ) -> Option<impl Fn(&Statistics) -> f32> {
            let (examples, outcomes) = train.examples(features);
            let model = Logistic::fit(&examples, &outcomes).ok()?;
            Some(move |statistics: &Statistics| model.logit(&features(statistics)) as f32)
        }
        let mut found = vec![self.variant("fused, weights of this domain", |statistics| {
            own.logit(&features(statistics)) as f32
        })];
        let scaled = fitted(train, scaled_margin);
        found.extend(
            scaled.map(|score| self.variant("margin over a sigma of entropy and top1", score)),
        );
        let products = fitted(train, with_products);
        found
            .extend(products.map(|score| self.variant("fused with products of the margin", score)));
        found
    }

    fn variant(&self, name: &'static str, score: impl Fn(&Statistics) -> f32) -> Variant {
        let ranking = self.test.ranked(score);
        let (over_margin, over_margin_interval) = self.over_margin(&ranking);
        Variant { name, auc: ranking.auc(), over_margin, over_margin_interval }
    }

    fn sampled(&self, detectors: &[Fitted]) -> Vec<SampledJudged> {
        let temperatures = self.test.seen.first().map_or(0, |seen| seen.record.sampled.len());
        (0..temperatures)
            .map(|place| {
                let of = |seen: &Seen<'_>| seen.record.sampled[place];
                let rankings: Vec<_> = detectors
                    .iter()
                    .map(|&Fitted { name, detector, threshold }| {
                        let step = |seen: &Seen<'_>| {
                            let sampled = of(seen);
                            let greedy = seen.record.draft.statistics;
                            let statistics = Statistics { margin: sampled.margin, ..greedy };
                            Step {
                                score: detector.score(&statistics),
                                differs: sampled.draft != sampled.shadow,
                                document: seen.document,
                            }
                        };
                        let ranking = Ranking::new(self.test.seen.iter().map(step).collect());
                        (name, ranking.auc(), ranking.above(threshold))
                    })
                    .collect();
                let differs = |seen: &&Seen<'_>| of(seen).draft != of(seen).shadow;
                SampledJudged {
                    temperature: self.test.seen[0].record.sampled[place].temperature,
                    disagreements: self.test.seen.iter().filter(differs).count(),
                    auc: rankings.iter().map(|&(name, auc, _)| (name, auc)).collect(),
                    rate: rankings.iter().map(|&(name, _, [rate, _])| (name, rate)).collect(),
                    caught: rankings.iter().map(|&(name, _, [_, caught])| (name, caught)).collect(),
                }
            })
            .collect()
    }
}

fn margin_noise(train: &Part<'_>, resampling: Resampling) -> Option<MarginNoise> {
    let steps = train.seen.iter().map(|seen| {
        let margin = f64::from(seen.record.draft.statistics.margin);
        (seen.document, margin, !seen.record.agrees())
    });
    let once = steps.clone().map(|(_, margin, disagrees)| (margin, disagrees, 1.0));
    let fit = MarginNoiseFit::fit(once)?;
    let resampling = Resampling { draws: resampling.draws.min(SIGMA_DRAWS), ..resampling };
    let sigma_interval = interval(train.documents, resampling, |weights| {
        let weighted = steps
            .clone()
            .map(|(document, margin, disagrees)| (margin, disagrees, weights[document]));
        Some(fit.again(weighted)?.sigma)
    })?;
    Some(MarginNoise { sigma: fit.sigma, sigma_interval })
}

fn prompt(held: &[Held<'_>]) -> Option<PromptEntropies> {
    let train = || held.iter().filter(|one| one.half == Half::Train).map(|one| one.trace.prompt);
    let [mean, mean_deviation] = mean_and_deviation(&train().map(|p| p.mean).collect::<Vec<_>>());
    let [spread, spread_deviation] =
        mean_and_deviation(&train().map(|p| p.spread).collect::<Vec<_>>());
    let differ = mean_deviation > 0.0 && spread_deviation > 0.0;
    differ.then_some(PromptEntropies { mean, mean_deviation, spread, spread_deviation })
}

/// The deviation is that of the population, estimated from this sample.
fn mean_and_deviation(values: &[f64]) -> [f64; 2] {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    [mean, (squares / (count - 1.0).max(1.0)).sqrt()]
}
