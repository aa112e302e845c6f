//! Activation-aware scaling: inputs that are large lose less if their weights are rounded at a larger scale.
//!
//! Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv
//! 2306.00978), equations 4 and 5: W is replaced by W · diag(s) and its inputs x by x / s, where s = (mean |x|)^α for
//! each input, and α is searched on a grid. What is searched for here is the least squared error of the outputs over
//! the calibration, tr(Δ H Δᵀ) with the statistics H of [`Hessian`], summed over all projections of the inputs.

use rewind_formats::{Format, PackError, Packed};

use super::product::{View, product};
use super::workers::map;
use super::{Hessian, MethodError, TILE, below};

/// Steps of α, from 0 up by their inverse: α = 0 is plain rounding.
pub(crate) const STEPS: u32 = 20;

/// Least magnitude of an input, as a share of the mean: one that was never seen must not be divided by.
const LEAST: f64 = 1e-4;

/// Scales of inputs, and what they gain.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// What the weights of each input are multiplied with, and the input divided by; `None` where nothing is better
    /// than plain rounding.
    pub scales: Option<Vec<f32>>,
    /// Squared error of the outputs with them, in any unit.
    pub error: f64,
    /// The same of plain rounding.
    pub plain_error: f64,
}

/// Finds scales for the inputs of `projections`, each `[any, cols]` and row-major. `inputs` are chunks of whole rows of
/// `cols`.
///
/// Floats are left as they are: a scale changes next to nothing there. The result does not depend on the number of
/// `threads`.
///
/// # Errors
/// See [`MethodError`].
pub fn scaling(
    format: Format,
    cols: usize,
    projections: &[&[f32]],
    inputs: &[Vec<f32>],
    threads: usize,
) -> Result<Scaling, MethodError> {
    if matches!(format, Format::F16 | Format::Bf16) {
        return Ok(Scaling { scales: None, error: 0.0, plain_error: 0.0 });
    }
    let magnitudes = magnitudes(inputs, cols, threads)?;
    let hessian = Hessian::of(inputs, cols, threads).dense();
    let error = |scales: &[f32]| -> Result<f64, PackError> {
        let errors = projections
            .iter()
            .map(|&weights| squared_error(format, weights, scales, &hessian, threads));
        errors.sum()
    };
    let plain_error = error(&vec![1.0; cols])?;
    let mut best = Scaling { scales: None, error: plain_error, plain_error };
    for step in 1..STEPS {
        let scales = normalized(&magnitudes, f64::from(step) / f64::from(STEPS));
        match error(&scales) {
            Ok(error) if error < best.error => {
                best = Scaling { scales: Some(scales), error, plain_error };
            }
            // With scales so far apart that a format cannot hold them, there is nothing to gain.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(best)
}

/// Mean |x| of each input, over the mean of all inputs.
fn magnitudes(inputs: &[Vec<f32>], cols: usize, threads: usize) -> Result<Vec<f64>, MethodError> {
    let sums = map(threads, inputs.len(), |chunk| {
        let mut sums = vec![0.0_f64; cols];
        for row in inputs[chunk].chunks(cols) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.abs()));
        }
        sums
    });
    let mut all = vec![0.0_f64; cols];
    for sums in sums {
        all.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
    }
    let mean = all.iter().sum::<f64>() / cols as f64;
    if !mean.is_finite() {
        return Err(MethodError::Inputs);
    }
    // Nothing but zeros: all inputs are alike.
    let mean = if mean == 0.0 { 1.0 } else { mean };
    Ok(all.into_iter().map(|sum| (sum / mean).max(LEAST)).collect())
}

/// s = m^α, about 1: divided by the geometric mean of the largest and the least, as the authors' program does.
fn normalized(magnitudes: &[f64], exponent: f64) -> Vec<f32> {
    let scales: Vec<f64> = magnitudes.iter().map(|m| m.powf(exponent)).collect();
    let (least, largest) =
        scales.iter().fold((f64::MAX, 0.0_f64), |(low, high), &s| (low.min(s), high.max(s)));
    let middle = (least * largest).sqrt();
    scales.into_iter().map(|scale| (scale / middle) as f32).collect()
}

/// tr(Δ H Δᵀ), where Δ is what rounding at these scales does to the weights.
fn squared_error(
    format: Format,
    weights: &[f32],
    scales: &[f32],
    hessian: &[f32],
    threads: usize,
) -> Result<f64, PackError> {
    let cols = scales.len();
    let tiles: Vec<&[f32]> = weights.chunks(TILE * cols).collect();
    let errors = map(threads, tiles.len(), |number| {
        let weights = tiles[number];
        let mut difference = scaled(weights, scales);
        let rows = weights.len() / cols;
        let packed = Packed::quantize(format, rows, cols, &difference)
            .map_err(|error| below(error, number * TILE))?;
        let rows = difference.chunks_mut(cols).zip(weights.chunks(cols));
        for (row, (difference, weights)) in rows.enumerate() {
            packed.dequantize_row(row, difference);
            for ((d, w), s) in difference.iter_mut().zip(weights).zip(scales) {
                *d = *d / s - w;
            }
        }
        let weighed = product(View::dense(&difference, cols), View::dense(hessian, cols));
        let pairs = weighed.iter().zip(&difference);
        Ok(pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>())
    });
    errors.into_iter().sum()
}

/// W · diag(s).
pub(crate) fn scaled(weights: &[f32], scales: &[f32]) -> Vec<f32> {
    let rows = weights.chunks(scales.len());
    rows.flat_map(|row| row.iter().zip(scales).map(|(w, s)| w * s)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs of which a few are much larger than the others.
    fn case(rows: usize, cols: usize) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut random = fastrand::Rng::with_seed(3);
        let mut number = move || (0..4).map(|_| random.f32()).sum::<f32>() - 2.0;
        let weights = (0..rows * cols).map(|_| 0.1 * number()).collect();
        let mut chunk = || {
            let inputs = (0..50 * cols).map(|at| {
                let outlier = if at % cols % 37 == 5 { 40.0 } else { 1.0 };
                outlier * number()
            });
            inputs.collect::<Vec<f32>>()
        };
        (weights, vec![chunk(), chunk()])
    }

    /// Squared error of the outputs, the long way.
    fn error(format: Format, weights: &[f32], scales: &[f32], inputs: &[Vec<f32>]) -> f64 {
        let cols = scales.len();
        let packed =
            Packed::quantize(format, weights.len() / cols, cols, &scaled(weights, scales)).unwrap();
        let rows = inputs.iter().flat_map(|chunk| chunk.chunks(cols));
        let of = |row: usize, input: &[f32]| {
            let terms = (0..cols).map(|col| {
                let off = f64::from(packed.value(row, col)) / f64::from(scales[col])
                    - f64::from(weights[row * cols + col]);
                off * f64::from(input[col])
            });
            terms.sum::<f64>().powi(2)
        };
        rows.map(|input| (0..packed.rows()).map(|row| of(row, input)).sum::<f64>()).sum()
    }

    #[test]
    fn large_inputs_lose_less() {
        let (rows, cols) = (70, 160);
        let (weights, inputs) = case(rows, cols);
        for (name, least) in [
            ("int4-g32", 0.7),
            ("int4-g128", 0.95),
            ("int4a-g32", 0.95),
            ("nf4", 0.95),
            ("int8", 0.99),
        ] {
            let format: Format = name.parse().unwrap();
            // Two projections of the same inputs.
            let projections = [&weights[..30 * cols], &weights[30 * cols..]];
            let found = scaling(format, cols, &projections, &inputs, 2).unwrap();
            let scales = found.scales.unwrap();
            let [with, without] = [&scales[..], &vec![1.0; cols]].map(|scales| {
                let errors = projections.map(|weights| error(format, weights, scales, &inputs));
                errors.into_iter().sum::<f64>()
            });
            println!("{name}: {:.3} of the error of rounding", with / without);
            assert!(with < least * without, "{name}: {with} against {without}");
            // What was searched by is that error.
            let (searched, real) = (found.error / found.plain_error, with / without);
            assert!((searched / real - 1.0).abs() < 1e-3, "{name}: {searched}, {real}");
            assert!(scales[5] > 1.2 * scales[6], "{name}: {} and {}", scales[5], scales[6]);
            for threads in [1, 3] {
                let again = scaling(format, cols, &projections, &inputs, threads).unwrap();
                assert_eq!(again.scales.as_deref(), Some(&scales[..]), "{threads} threads");
            }
        }
    }

    #[test]
    fn where_there_is_nothing_to_gain_there_are_no_scales() {
        let (rows, cols) = (3, 64);
        let (weights, mut inputs) = case(rows, cols);
        let found = |format: &str, inputs: &[Vec<f32>]| {
            scaling(format.parse().unwrap(), cols, &[&weights], inputs, 1).unwrap().scales
        };
        assert_eq!(found("bf16", &inputs), None);
        inputs.iter_mut().flatten().for_each(|x| *x = x.signum());
        assert_eq!(found("int4-g32", &inputs), None, "all are as large");
        inputs.iter_mut().flatten().for_each(|x| *x = 0.0);
        assert_eq!(found("int4-g32", &inputs), None, "nothing was seen");
    }

    #[test]
    fn what_was_never_seen_keeps_a_finite_scale() {
        let (rows, cols) = (5, 64);
        let (weights, mut inputs) = case(rows, cols);
        inputs.iter_mut().flat_map(|chunk| chunk.chunks_mut(cols)).for_each(|row| row[9] = 0.0);
        let format = "int4-g32".parse().unwrap();
        let scales = scaling(format, cols, &[&weights], &inputs, 1).unwrap().scales.unwrap();
        assert!(scales.iter().all(|scale| scale.is_finite() && *scale > 0.0));
        inputs[1][7] = f32::NAN;
        let error = scaling(format, cols, &[&weights], &inputs, 1).unwrap_err();
        assert_eq!(error, MethodError::Inputs);
        inputs[1][7] = f32::INFINITY;
        let error = scaling(format, cols, &[&weights], &inputs, 1).unwrap_err();
        assert_eq!(error, MethodError::Inputs);
    }
}
