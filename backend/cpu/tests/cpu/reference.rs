//! The whole forward pass against a naive one in f64.

use rewind_checkpoint::{Architecture, LayerTensor, ModelSpec, TensorName};
use rewind_engine::{Token, Weights};

use crate::tiny::{self, Precision};

/// Logits of every position, computed from the textbook.
fn logits(spec: &ModelSpec, precision: Precision, tokens: &[Token]) -> Vec<Vec<f64>> {
    let get = |name| -> Vec<f64> {
        let tensor = tiny::tensor(spec, name, precision);
        tensor.data.to_f32().into_iter().map(f64::from).collect()
    };
    let apply = |matrix: &[f64], x: &[f64]| -> Vec<f64> {
        matrix.chunks(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    let norm = |x: &[f64], weight: &[f64]| -> Vec<f64> {
        let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = (square + f64::from(spec.rms_epsilon)).sqrt();
        x.iter().zip(weight).map(|(x, w)| x / scale * w).collect()
    };
    let dim = spec.head_dim;
    let rotate = |x: &mut [f64], position: usize| {
        for head in x.chunks_mut(dim) {
            for i in 0..dim / 2 {
                let theta = f64::from(spec.rope.theta);
                let angle = position as f64 * theta.powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (head[i], head[i + dim / 2]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + dim / 2] = b * angle.cos() + a * angle.sin();
            }
        }
    };

    let embedding = get(TensorName::Embedding);
    let hidden = spec.hidden_size;
    let mut stream: Vec<Vec<f64>> =
        tokens.iter().map(|&t| embedding[t as usize * hidden..][..hidden].to_vec()).collect();
    for layer in 0..spec.layers {
        let get = |tensor| get(TensorName::Layer(layer, tensor));
        let mut entries: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
        for (position, x) in stream.iter_mut().enumerate() {
            let normed = norm(x, &get(LayerTensor::AttentionNorm));
            let project = |matrix, bias| {
                let mut y = apply(&get(matrix), &normed);
                if spec.qkv_bias {
                    y.iter_mut().zip(get(bias)).for_each(|(y, b)| *y += b);
                }
                y
            };
            let mut q = project(LayerTensor::Query, LayerTensor::QueryBias);
            let mut k = project(LayerTensor::Key, LayerTensor::KeyBias);
            let v = project(LayerTensor::Value, LayerTensor::ValueBias);
            if spec.qk_norm {
                let norms = [LayerTensor::QueryNorm, LayerTensor::KeyNorm].map(get);
                for (x, weight) in [(&mut q, &norms[0]), (&mut k, &norms[1])] {
                    *x = x.chunks(dim).flat_map(|head| norm(head, weight)).collect();
                }
            }
            rotate(&mut q, position);
            rotate(&mut k, position);
            entries.push((k, v));

            let mut attended = Vec::new();
            for (head, q) in q.chunks(dim).enumerate() {
                let at = head / (spec.heads / spec.kv_heads) * dim;
                let score = |k: &[f64]| -> f64 {
                    let dot: f64 = q.iter().zip(&k[at..at + dim]).map(|(q, k)| q * k).sum();
                    (dot / (dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = entries.iter().map(|(k, _)| score(k)).collect();
                let total: f64 = weights.iter().sum();
                attended.extend((0..dim).map(|d| {
                    weights.iter().zip(&entries).map(|(w, (_, v))| w * v[at + d]).sum::<f64>()
                        / total
                }));
            }
            let output = apply(&get(LayerTensor::Output), &attended);
            x.iter_mut().zip(output).for_each(|(x, y)| *x += y);

            let normed = norm(x, &get(LayerTensor::FeedForwardNorm));
            let gate = apply(&get(LayerTensor::Gate), &normed);
            let up = apply(&get(LayerTensor::Up), &normed);
            let inner: Vec<f64> =
                gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let down = apply(&get(LayerTensor::Down), &inner);
            x.iter_mut().zip(down).for_each(|(x, y)| *x += y);
        }
    }
    let (weight, head) = (get(TensorName::FinalNorm), get(TensorName::Head));
    stream.iter().map(|x| apply(&head, &norm(x, &weight))).collect()
}

/// Root of the mean squared error over that of the reference.
fn relative_error(found: &[f32], exact: &[f64]) -> f64 {
    let error: f64 = found.iter().zip(exact).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum();
    (error / exact.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

const ARCHITECTURES: [Architecture; 4] =
    [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3];

#[test]
fn the_shadow_is_exact_to_rounding() {
    let tokens = tiny::prompt(1, 40);
    for architecture in ARCHITECTURES {
        for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
            let spec = tiny::spec(architecture);
            let exact = logits(&spec, precision, &tokens);
            let model = tiny::model(&spec, precision, "int8");
            let mut executor = tiny::executor(&model, tiny::config());
            let found = tiny::feed(&mut executor, Weights::Full, 0, &tokens, 40);
            for (position, (found, exact)) in found.iter().zip(&exact).enumerate() {
                let error = relative_error(found.logits.as_deref().expect("wanted"), exact);
                assert!(error < 2e-6, "{architecture:?} {precision:?} {position}: {error:e}");
            }
        }
    }
}

#[test]
fn drafts_come_as_close_as_their_bits_allow() {
    let tokens = tiny::prompt(2, 20);
    let spec = tiny::spec(Architecture::Qwen3);
    let exact = logits(&spec, Precision::F32, &tokens);
    let bounds = [
        ("f16", 0.002),
        ("bf16", 0.02),
        ("int8", 0.04),
        ("int8-g32", 0.04),
        ("int8-g128", 0.04),
        ("int4-g32", 0.4),
        ("int4-g128", 0.5),
    ];
    for (format, bound) in bounds {
        let model = tiny::model(&spec, Precision::F32, format);
        let mut executor = tiny::executor(&model, tiny::config());
        let found = tiny::feed(&mut executor, Weights::Draft, 0, &tokens, 20);
        let errors: Vec<f64> = found
            .iter()
            .zip(&exact)
            .map(|(found, exact)| relative_error(found.logits.as_deref().expect("wanted"), exact))
            .collect();
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        println!("{format}: {mean:.4}");
        assert!(mean < bound, "{format}: {mean}");
        // A format that gave the shadow's logits would not have been used at all.
        assert!(mean > 1e-5, "{format}: {mean}");
    }
}
