use std::sync::Arc;

use rewind_checkpoint::{Architecture, RopeScaling, TensorName};
use rewind_cpu::{Config, CpuExecutor, CpuModel, Isa, LoadOptions};
use rewind_engine::{Outputs, Weights as Copies};
use rewind_executor_suite::bench::{Bench, prompt, prompt_rows};
use rewind_executor_suite::{Precision, TinyModel, small_spec};
use rewind_formats::Mixture;

use super::*;

const VOCABULARY: usize = 300;

fn model(architecture: Architecture, scaling: RopeScaling) -> TinyModel {
    let mut spec = small_spec(architecture, VOCABULARY);
    spec.rope.scaling = scaling;
    let draft: Option<Mixture> = None;
    TinyModel { spec, precision: Precision::F32, draft, shadow: true, oddity: None }
}

/// What the executor has before the first layer and after each, `[layers + 1][positions * hidden]`. Its own tests
/// compare it with a textbook in f64.
fn tapped(model: &TinyModel, tokens: &[u32]) -> Vec<Vec<f32>> {
    let options = LoadOptions { draft: None, shadow: true, threads: 1, isa: Isa::detect() };
    let loaded = CpuModel::load(&model.spec, model.source(), options, |_| ()).unwrap();
    let positions = tokens.len();
    let config =
        Config { threads: 1, slots: 1, rows: positions, pages: 8, page_tokens: 16, positions };
    let mut bench = Bench::of(CpuExecutor::new(Arc::new(loaded), config).unwrap());
    let layers = model.spec.layers as u16;
    let rows = prompt_rows(0, tokens, |_| Outputs { taps: 0..layers + 1, ..Outputs::default() });
    let results = bench.run(Copies::Full, rows).unwrap();
    let hidden = model.spec.hidden_size;
    let states = |layer: usize| {
        results.iter().flat_map(|row| &row.taps[layer * hidden..][..hidden]).copied().collect()
    };
    (0..=model.spec.layers).map(states).collect()
}

/// Root of the mean square of the difference, over that of what is expected.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

fn weights(model: &TinyModel, layer: usize) -> Weights {
    let tensors = LayerTensor::ALL.into_iter();
    let there = tensors.filter(|&t| model.spec.shape(TensorName::Layer(layer, t)).is_some());
    there.map(|t| (t, model.tensor(TensorName::Layer(layer, t)).data.to_f32())).collect()
}

#[test]
fn every_layer_is_what_the_executor_makes_of_it() {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 64.0,
    };
    for (architecture, scaling) in [
        (Architecture::Llama, RopeScaling::None),
        (Architecture::Llama, RopeScaling::Linear { factor: 4.0 }),
        (Architecture::Llama, llama3),
        (Architecture::Mistral, RopeScaling::None),
        (Architecture::Qwen2, RopeScaling::None),
        (Architecture::Qwen3, RopeScaling::None),
    ] {
        let model = model(architecture, scaling);
        // Of different lengths, and each a sequence of its own.
        let chunks =
            [prompt(1, 70, VOCABULARY), prompt(2, 1, VOCABULARY), prompt(3, 33, VOCABULARY)];
        let expected = chunks.each_ref().map(|chunk| tapped(&model, chunk));
        let forward = Forward::new(&model.spec, 70, 2);
        let mut states: Vec<_> = expected.iter().map(|layers| layers[0].clone()).collect();
        for layer in 0..model.spec.layers {
            forward.block(&mut states, &weights(&model, layer));
            for (states, expected) in states.iter().zip(&expected) {
                let off = off(states, &expected[layer + 1]);
                assert!(off < 1e-5, "{architecture:?}, layer {layer}: off by {off}");
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let model = model(Architecture::Qwen2, RopeScaling::None);
    let start: Vec<Vec<f32>> =
        (1..6).map(|seed| tapped(&model, &prompt(seed, 9 * seed, VOCABULARY))[0].clone()).collect();
    let [one, two, three] = [1, 2, 3].map(|threads| {
        let mut states = start.clone();
        Forward::new(&model.spec, 45, threads).block(&mut states, &weights(&model, 0));
        states
    });
    assert!(one == two && two == three);
}
