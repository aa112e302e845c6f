//! The forward pass of the textbook, in `f64`: the order of sums, of rounding and of memory is nobody's.

use rewind_checkpoint::{LayerTensor, ModelSpec, Rope, RopeScaling, TensorName};
use rewind_engine::Token;

use crate::model::TinyModel;

/// What the textbook says of every position.
pub(crate) struct Textbook {
    /// The residual stream before the first layer and after each, `[layer][position][element]`.
    pub(crate) streams: Vec<Vec<Vec<f64>>>,
    /// `[position][token]`.
    pub(crate) logits: Vec<Vec<f64>>,
}

/// Runs the model. `cached` is what the cache makes of keys and values.
pub(crate) fn run(model: &TinyModel, tokens: &[Token], cached: impl Fn(f64) -> f64) -> Textbook {
    let spec = &model.spec;
    let embedding = weights(model, TensorName::Embedding);
    let mut stream: Vec<Vec<f64>> = tokens
        .iter()
        .map(|&token| embedding[token as usize * spec.hidden_size..][..spec.hidden_size].to_vec())
        .collect();
    let mut streams = vec![stream.clone()];
    for number in 0..spec.layers {
        layer(model, number, &mut stream, &cached);
        streams.push(stream.clone());
    }
    let norm_weight = weights(model, TensorName::FinalNorm);
    let head = weights(model, TensorName::Head);
    let logits = stream.iter().map(|x| apply(&head, &norm(x, &norm_weight, spec))).collect();
    Textbook { streams, logits }
}

/// One decoder block over all positions.
fn layer(model: &TinyModel, number: usize, stream: &mut [Vec<f64>], cached: &impl Fn(f64) -> f64) {
    use LayerTensor as T;
    let spec = &model.spec;
    let get = |tensor| weights(model, TensorName::Layer(number, tensor));
    let [attention_norm, feed_forward_norm] = [T::AttentionNorm, T::FeedForwardNorm].map(get);
    let [query, key, value, output] = [T::Query, T::Key, T::Value, T::Output].map(get);
    let [gate, up, down] = [T::Gate, T::Up, T::Down].map(get);
    // Empty where the model has none.
    let [query_bias, key_bias, value_bias] = [T::QueryBias, T::KeyBias, T::ValueBias].map(get);
    let [query_norm, key_norm] = [T::QueryNorm, T::KeyNorm].map(get);
    let frequencies = frequencies(&spec.rope, spec.head_dim);

    let mut keys: Vec<Vec<f64>> = Vec::new();
    let mut values: Vec<Vec<f64>> = Vec::new();
    for (position, x) in stream.iter_mut().enumerate() {
        let normed = norm(x, &attention_norm, spec);
        let project = |matrix: &[f64], bias: &[f64]| {
            let mut y = apply(matrix, &normed);
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            y
        };
        let heads = |x: Vec<f64>, weight: &[f64]| -> Vec<f64> {
            let head = |head: &[f64]| {
                let head = if spec.qk_norm { norm(head, weight, spec) } else { head.to_vec() };
                rotate(&head, &frequencies, position)
            };
            x.chunks(spec.head_dim).flat_map(head).collect()
        };
        let q = heads(project(&query, &query_bias), &query_norm);
        let k = heads(project(&key, &key_bias), &key_norm);
        keys.push(k.into_iter().map(cached).collect());
        values.push(project(&value, &value_bias).into_iter().map(cached).collect());

        let attended = attend(&q, &keys, &values, spec);
        x.iter_mut().zip(apply(&output, &attended)).for_each(|(x, y)| *x += y);

        let normed = norm(x, &feed_forward_norm, spec);
        let (gate, up) = (apply(&gate, &normed), apply(&up, &normed));
        let inner: Vec<f64> =
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        x.iter_mut().zip(apply(&down, &inner)).for_each(|(x, y)| *x += y);
    }
}

fn attend(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], spec: &ModelSpec) -> Vec<f64> {
    let dim = spec.head_dim;
    let group = spec.heads / spec.kv_heads;
    let head = |(number, q): (usize, &[f64])| {
        let at = number / group * dim;
        let score = |k: &Vec<f64>| {
            let dot: f64 = q.iter().zip(&k[at..at + dim]).map(|(q, k)| q * k).sum();
            (dot / (dim as f64).sqrt()).exp()
        };
        let weights: Vec<f64> = keys.iter().map(score).collect();
        let total: f64 = weights.iter().sum();
        let element = move |d: usize| {
            weights.iter().zip(values).map(|(w, v)| w * v[at + d]).sum::<f64>() / total
        };
        (0..dim).map(element)
    };
    q.chunks(dim).enumerate().flat_map(head).collect()
}

/// Element i turns with element i + dim / 2.
fn rotate(head: &[f64], frequencies: &[f64], position: usize) -> Vec<f64> {
    let (first, second) = head.split_at(head.len() / 2);
    let pairs = || first.iter().zip(second).zip(frequencies.iter().map(|f| f * position as f64));
    let turned = pairs().map(|((a, b), angle)| a * angle.cos() - b * angle.sin());
    turned.chain(pairs().map(|((a, b), angle)| b * angle.cos() + a * angle.sin())).collect()
}

/// Radians a position that each pair of a head turns by.
fn frequencies(rope: &Rope, dim: usize) -> Vec<f64> {
    let scaled = |pair: usize| {
        let plain = f64::from(rope.theta).powf(-2.0 * pair as f64 / dim as f64);
        match &rope.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / f64::from(*factor),
            RopeScaling::Divisors(divisors) => plain / f64::from(divisors[pair]),
            &RopeScaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => {
                let [factor, low, high, context] =
                    [factor, low_frequency_factor, high_frequency_factor, original_context]
                        .map(f64::from);
                // Turns in the original context, put on a scale from `low` (0) to `high` (1).
                let turns = context * plain / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                plain * (kept + (1.0 - kept) / factor)
            }
        }
    };
    (0..dim / 2).map(scaled).collect()
}

fn norm(x: &[f64], weight: &[f64], spec: &ModelSpec) -> Vec<f64> {
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = (square + f64::from(spec.rms_epsilon)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x / scale * w).collect()
}

fn apply(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn weights(model: &TinyModel, name: TensorName) -> Vec<f64> {
    if model.spec.shape(name).is_none() {
        return Vec::new();
    }
    model.tensor(name).data.to_f32().into_iter().map(f64::from).collect()
}
