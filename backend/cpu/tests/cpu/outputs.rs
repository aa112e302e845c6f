//! What a row answers.

use std::sync::Arc;

use rewind_checkpoint::{Architecture, LayerTensor, ModelSpec, Tensor, TensorData, TensorName};
use rewind_cpu::{CpuExecutor, CpuModel, LoadOptions};
use rewind_engine::sampling::{self, Sampling, Scratch};
use rewind_engine::{ExecutorError, Input, Outputs, Row, RowResult, Slot, TokenMask, Weights};
use rewind_monitor::{Detector, Gate, Statistics, oracle};

use crate::tiny::{self, Precision};

fn tiny_executor() -> CpuExecutor {
    let model = tiny::model(&tiny::spec(Architecture::Llama), Precision::F16, "int4-g32");
    tiny::executor(&model, tiny::config())
}

fn one(executor: &mut CpuExecutor, row: Row) -> RowResult {
    let mut results =
        tiny::run(executor, tiny::pass(Weights::Full, vec![row])).expect("a good pass");
    results.pop().expect("one row, one result")
}

#[test]
fn statistics_and_choice_agree_with_the_logits() {
    let mut executor = tiny_executor();
    for result in tiny::feed(&mut executor, Weights::Draft, 0, &tiny::prompt(1, 50), 50) {
        let logits = result.logits.as_deref().expect("wanted");
        let exact = oracle::statistics(logits);
        let found = result.statistics;
        assert!((found.entropy - exact.entropy).abs() < 1e-4, "{found:?} {exact:?}");
        assert!((found.varentropy - exact.varentropy).abs() < 1e-3, "{found:?} {exact:?}");
        assert!((found.top1 - exact.top1).abs() < 1e-5, "{found:?} {exact:?}");
        assert!((found.margin - exact.margin).abs() < 1e-5, "{found:?} {exact:?}");
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        assert_eq!(result.token, Some(order[0] as u32));
        assert_eq!(result.runner_up, Some(order[1] as u32));
        let p = oracle::softmax(logits);
        assert_eq!(result.logprobs.len(), 4);
        for (entry, rank) in result.logprobs.iter().zip([0, 0, 1, 2]) {
            assert_eq!((entry.token, entry.rank), (order[rank] as u32, rank as u32 + 1));
            assert!((f64::from(entry.logprob) - p[order[rank]].ln()).abs() < 1e-5);
        }
    }
}

#[test]
fn rows_answer_only_what_they_are_asked() {
    let mut executor = tiny_executor();
    let tokens = tiny::prompt(2, 3);
    let all = tiny::feed(&mut executor, Weights::Full, 0, &tokens, 3);
    let ask = |outputs| tiny::row(0, 2, tokens[2], outputs);

    let nothing = one(&mut executor, ask(Outputs::default()));
    assert!(nothing.token.is_none() && nothing.logits.is_none() && nothing.tap.is_none());
    assert!(nothing.logprobs.is_empty() && !nothing.suspect && nothing.statistics.finite);

    let choose = Outputs { choose: Some(tiny::greedy(2)), ..Outputs::default() };
    let token = one(&mut executor, ask(choose));
    assert_eq!((token.token, token.runner_up), (all[2].token, all[2].runner_up));
    let margin = Statistics { margin: all[2].statistics.margin, ..nothing.statistics };
    assert_eq!(token.statistics, margin);

    let statistics = Outputs { statistics: true, ..Outputs::default() };
    let statistics = one(&mut executor, ask(statistics)).statistics;
    assert_eq!(statistics, Statistics { margin: 0.0, ..all[2].statistics });

    let logprobs = Outputs { logprobs: Some(2), ..Outputs::default() };
    let logprobs = one(&mut executor, ask(logprobs)).logprobs;
    assert_eq!(logprobs[..], all[2].logprobs[1..3]);

    for layer in 0..=2 {
        let tap = Outputs { tap: Some(layer), ..Outputs::default() };
        let tap = one(&mut executor, ask(tap)).tap.expect("wanted");
        assert_eq!(tap.len(), 72);
        assert_eq!(Some(&tap) == all[2].tap.as_ref(), layer == 1);
    }
}

#[test]
fn sampling_is_the_engines() {
    let mut executor = tiny_executor();
    let tokens = tiny::prompt(3, 40);
    let expected = tiny::feed(&mut executor, Weights::Full, 0, &tokens, 40);
    let sampling = Arc::new(Sampling {
        temperature: 0.8,
        top_k: 50,
        repetition_penalty: 1.3,
        bias: vec![(5, 1.0)],
        seed: 9,
        ..Sampling::GREEDY
    });
    let mask = TokenMask(Arc::from(vec![0x5555_5555_5555_5555_u64; 1100_usize.div_ceil(64)]));
    let row = |position: usize| {
        let mut row = tiny::row(0, position, tokens[position], tiny::everything(position));
        let choose = row.outputs.choose.as_mut().expect("everything");
        choose.sampling = Arc::clone(&sampling);
        choose.history.tokens = tokens[..=position].into();
        choose.banned = Arc::new([0, 2, 4]);
        choose.mask = (position.is_multiple_of(2)).then(|| mask.clone());
        row
    };
    let rows: Vec<_> = (0..40).map(row).collect();
    let found = tiny::run(&mut executor, tiny::pass(Weights::Full, rows.clone())).expect("good");
    let mut changed = 0;
    for ((row, found), greedy) in rows.iter().zip(&found).zip(&expected) {
        let choose = row.outputs.choose.as_ref().expect("everything");
        let choice = sampling::choose(
            greedy.logits.as_deref().expect("wanted"),
            &choose.sampling,
            &choose.history,
            &choose.banned,
            choose.mask.as_ref(),
            choose.position,
            &mut Scratch::default(),
        );
        assert_eq!((found.token, found.runner_up), (Some(choice.token), choice.runner_up));
        assert_eq!(found.statistics, Statistics { margin: choice.margin, ..greedy.statistics });
        assert_eq!(found.logprobs[0].token, choice.token);
        changed += u32::from(found.token != greedy.token);
    }
    assert!(changed > 10, "sampling changed {changed} of 40 tokens");
}

#[test]
fn the_gate_judges_by_its_detector_even_if_statistics_are_not_reported() {
    let mut executor = tiny_executor();
    let token = tiny::prompt(4, 1)[0];
    let all = one(&mut executor, tiny::row(0, 0, token, tiny::everything(0)));
    for detector in [Detector::Entropy, Detector::Top1, Detector::Margin] {
        let score = detector.score(&all.statistics);
        for (threshold, suspect) in [(score, false), (score - 1e-3, true), (f32::INFINITY, false)] {
            for statistics in [false, true] {
                let choose = Some(tiny::greedy(0));
                let outputs = Outputs { choose, statistics, ..Outputs::default() };
                let mut row = tiny::row(0, 0, token, outputs);
                row.gate = Some(Gate { detector, threshold });
                assert_eq!(one(&mut executor, row).suspect, suspect, "{detector} {threshold}");
            }
        }
    }
}

#[test]
fn the_last_token_of_a_slot_is_remembered() {
    let mut executor = tiny_executor();
    let mut tokens = tiny::prompt(5, 4);
    let mut last = tiny::feed(&mut executor, Weights::Draft, 0, &tokens, 4).pop().expect("four");
    for position in 4..8 {
        tokens.push(last.token.expect("chosen"));
        let mut row = tiny::row(0, position, 0, tiny::everything(position));
        row.input = Input::LastOf(Slot(0));
        let pass = tiny::pass(Weights::Draft, vec![row]);
        last = tiny::run(&mut executor, pass).expect("a good pass").pop().expect("one row");
    }
    let mut fresh = tiny_executor();
    let expected = tiny::feed(&mut fresh, Weights::Draft, 3, &tokens, 8);
    assert_eq!(tiny::bits(&expected[7]), tiny::bits(&last));

    let mut row = tiny::row(1, 0, 0, Outputs::default());
    row.input = Input::LastOf(Slot(6));
    let error =
        tiny::run(&mut executor, tiny::pass(Weights::Draft, vec![row])).expect_err("no token");
    let ExecutorError::InvalidPass(message) = error else { panic!("{error}") };
    assert!(message.contains("slot 6"), "{message}");
}

/// A model with a logit that overflows for token 7 alone: no other token, and no layer, has anything in
/// the last element of the residual stream, which that logit reads.
fn overflowing(spec: &ModelSpec) -> Arc<CpuModel> {
    let last = spec.hidden_size - 1;
    let source = |name| {
        let mut tensor = tiny::tensor(spec, name, Precision::F32);
        let columns = *tensor.shape.last().expect("a shape");
        if let TensorData::F32(values) = &mut tensor.data {
            let mut rows = values.chunks_mut(columns);
            match name {
                TensorName::Embedding => rows.enumerate().for_each(|(token, row)| {
                    row[last] = if token == 7 { 1e4 } else { 0.0 };
                }),
                TensorName::Layer(_, LayerTensor::Output | LayerTensor::Down) => {
                    rows.nth(last).expect("a last row").fill(0.0);
                }
                TensorName::Head => rows.nth(9).expect("a row")[last] = f32::MAX,
                _ => {}
            }
        }
        Ok::<Tensor, std::convert::Infallible>(tensor)
    };
    let options = LoadOptions { draft: None, shadow: true, threads: 1 };
    Arc::new(CpuModel::load(spec, source, options, |_| ()).expect("finite weights"))
}

#[test]
fn a_row_that_is_not_finite_is_suspect_and_harms_no_other() {
    let model = overflowing(&tiny::spec(Architecture::Mistral));
    let mut executor = tiny::executor(&model, tiny::config());
    let mut rows = vec![
        tiny::row(0, 0, 5, tiny::everything(0)),
        tiny::row(1, 0, 7, tiny::everything(0)),
        tiny::row(2, 0, 6, tiny::everything(0)),
    ];
    rows[1].gate = Some(Gate { detector: Detector::Margin, threshold: f32::INFINITY });
    let found = tiny::run(&mut executor, tiny::pass(Weights::Full, rows.clone())).expect("good");
    assert!(found[1].suspect && found[1].token.is_none() && found[1].logprobs.is_empty());
    assert_eq!(found[1].statistics, Statistics::NOT_FINITE);
    rows.remove(1);
    let alone = tiny::run(&mut executor, tiny::pass(Weights::Full, rows)).expect("good");
    tiny::assert_same(&alone, &[found[0].clone(), found[2].clone()], "neighbours");
    assert!(alone.iter().all(|result| result.token.is_some() && !result.suspect));

    // The slot has no last token now.
    let mut row = tiny::row(1, 1, 0, Outputs::default());
    row.input = Input::LastOf(Slot(1));
    assert!(tiny::run(&mut executor, tiny::pass(Weights::Full, vec![row])).is_err());
}
