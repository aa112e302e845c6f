use rewind_checkpoint::{Architecture, ModelSpec};
use rewind_executor_suite::bench::prompt;
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::Mixture;

use super::*;
use crate::methods::method::{View, product};
use crate::methods::parts::Parts;

const FORMAT: &str = "int4-g32";

fn model(architecture: Architecture) -> TinyModel {
    let draft: Option<Mixture> = None;
    let spec = small_spec(architecture, 300);
    TinyModel { spec, precision: Precision::F32, draft, shadow: true, oddity: None }
}

/// Weights of the first layer. A few of the rows that go into projections are far larger than the others, as they are in
/// language models.
fn weights(model: &TinyModel) -> Weights {
    let tensors = LayerTensor::ALL.into_iter();
    let there = tensors.filter(|&t| model.spec.shape(TensorName::Layer(0, t)).is_some());
    let mut weights: Weights =
        there.map(|t| (t, model.tensor(TensorName::Layer(0, t)).data.to_f32())).collect();
    for norm in [LayerTensor::AttentionNorm, LayerTensor::FeedForwardNorm] {
        let norm = weights.get_mut(&norm).unwrap();
        norm.iter_mut().skip(5).step_by(31).for_each(|weight| *weight *= 12.0);
    }
    weights.get_mut(&LayerTensor::Up).unwrap()[..72].iter_mut().for_each(|weight| *weight *= 20.0);
    weights
}

fn states(model: &TinyModel) -> Vec<Vec<f32>> {
    let embedding = model.tensor(TensorName::Embedding).data.to_f32();
    let state = |token: u32| {
        &embedding[token as usize * model.spec.hidden_size..][..model.spec.hidden_size]
    };
    (1..9)
        .map(|seed| prompt(seed, 40, 300).into_iter().flat_map(state).copied().collect())
        .collect()
}

/// The layer as a method makes it, and what comes out of it.
fn made(model: &TinyModel, method: Method, threads: usize) -> (Weights, Vec<Vec<f32>>) {
    let forward = Forward::new(&model.spec, 40, threads);
    let format = FORMAT.parse().unwrap();
    let mut layer = Layer::new(0, format, weights(model), &forward, threads);
    let mut states = states(model);
    let place = tempfile::tempdir().unwrap();
    let parts = Parts::new(place.path().to_owned(), "settings".to_owned());
    let path = parts.path(Some(0));
    if method == Method::Rtn {
        layer.round().unwrap();
        parts.write(&path, layer.finish()).unwrap();
        let weights = parts.weights(&path, &model.spec, 0).unwrap();
        forward.block(&mut states, &weights);
        return (weights, states);
    }
    layer.calibrate(method, &mut states).unwrap();
    parts.write(&path, layer.finish()).unwrap();
    (parts.weights(&path, &model.spec, 0).unwrap(), states)
}

fn error(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn what_comes_out_is_what_the_written_layer_gives() {
    for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
        let model = model(architecture);
        for method in [Method::Gptq, Method::Awq] {
            let (weights, out) = made(&model, method, 2);
            let mut again = states(&model);
            Forward::new(&model.spec, 40, 1).block(&mut again, &weights);
            assert!(out == again, "{architecture:?}, {method:?}");
            for threads in [1, 3] {
                assert!(
                    made(&model, method, threads).0 == weights,
                    "{method:?}, {threads} threads"
                );
            }
        }
    }
}

#[test]
fn calibrated_layers_are_nearer_to_the_original() {
    for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
        let model = model(architecture);
        let mut original = states(&model);
        Forward::new(&model.spec, 40, 2).block(&mut original, &weights(&model));
        let [rtn, gptq, awq] = [Method::Rtn, Method::Gptq, Method::Awq]
            .map(|method| error(&made(&model, method, 2).1, &original));
        println!("{architecture:?}: gptq {:.3}, awq {:.3} of rounding", gptq / rtn, awq / rtn);
        assert!(gptq < 0.9 * rtn, "{architecture:?}: {gptq} against {rtn}");
        assert!(awq < 0.9 * rtn, "{architecture:?}: {awq} against {rtn}");
    }
}

/// Keys and values before biases, norms and rotation.
fn cached(spec: &ModelSpec, weights: &Weights, states: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let normed = Forward::new(spec, 40, 1).normed(states, weights, LayerTensor::AttentionNorm);
    let all = normed.concat();
    let project = |tensor| {
        let rows = View::dense(&all, spec.hidden_size);
        product(rows, View::dense(&weights[&tensor], spec.hidden_size))
    };
    [LayerTensor::Key, LayerTensor::Value].map(project).into()
}

#[test]
fn folded_scales_change_neither_the_block_nor_what_is_cached() {
    for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
        let model = model(architecture);
        let before = weights(&model);
        let mut after = before.clone();
        let scale = |i: usize| 0.3 + 0.37 * ((i * 7) % 11) as f32;
        let hidden: Vec<f32> = (0..model.spec.hidden_size).map(scale).collect();
        let inner: Vec<f32> = (0..model.spec.intermediate_size).map(scale).collect();
        use LayerTensor as T;
        fold::into_norm(&mut after, T::AttentionNorm, &[T::Query, T::Key, T::Value], &hidden);
        fold::into_norm(&mut after, T::FeedForwardNorm, &[T::Gate, T::Up], &hidden);
        fold::into_up(&mut after, &inner);
        for tensor in [T::Query, T::Value, T::AttentionNorm, T::Gate, T::Up, T::Down] {
            assert_ne!(before[&tensor], after[&tensor], "{tensor:?}");
        }
        assert_eq!(before[&T::Output], after[&T::Output]);
        let start = states(&model);
        let size = |states: &[Vec<f32>]| -> f64 {
            states.iter().flatten().map(|&x| f64::from(x).powi(2)).sum()
        };
        let [plain, folded] = [&before, &after].map(|weights| {
            let mut states = start.clone();
            Forward::new(&model.spec, 40, 1).block(&mut states, weights);
            states
        });
        assert!(error(&plain, &folded) < 1e-10 * size(&plain), "{architecture:?}");
        let [plain, folded] = [&before, &after].map(|weights| cached(&model.spec, weights, &start));
        assert!(error(&plain, &folded) < 1e-10 * size(&plain), "{architecture:?}");
    }
}
