use proptest::prelude::*;

use super::super::Hessian;
use super::*;

const FORMATS: &str =
    "int8 int8-g32 int6-g32 int6-g64 int4-g32 int4-g64 int4-g128 int4a-g32 int4a-g128 nf4";

fn formats() -> Vec<Format> {
    FORMATS.split(' ').map(|name| name.parse().unwrap()).collect()
}

fn normal(random: &mut fastrand::Rng) -> f32 {
    (0..12).map(|_| random.f32()).sum::<f32>() - 6.0
}

/// Weights, and inputs of which each is a mixture of few sources.
fn case(rows: usize, cols: usize, seed: u64) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let weights = (0..rows * cols).map(|_| normal(&mut random) * 0.05).collect();
    let sources = cols / 4;
    let mixing: Vec<f32> = (0..sources * cols).map(|_| normal(&mut random)).collect();
    let chunk = |random: &mut fastrand::Rng| {
        let mut inputs = Vec::new();
        for _ in 0..cols {
            let source: Vec<f32> = (0..sources).map(|_| normal(random)).collect();
            inputs.extend((0..cols).map(|col| {
                let pairs = source.iter().zip(&mixing[col * sources..]);
                pairs.map(|(a, b)| a * b).sum::<f32>() + 0.3 * normal(random)
            }));
        }
        inputs
    };
    (weights, vec![chunk(&mut random), chunk(&mut random)])
}

/// Squared error of the outputs.
fn error(packed: &Packed, weights: &[f32], inputs: &[Vec<f32>]) -> f64 {
    let cols = packed.cols();
    let mut difference = vec![0.0; weights.len()];
    for (row, difference) in difference.chunks_mut(cols).enumerate() {
        packed.dequantize_row(row, difference);
    }
    difference.iter_mut().zip(weights).for_each(|(d, w)| *d -= w);
    let of = |input: &[f32], row: &[f32]| {
        f64::from(input.iter().zip(row).map(|(a, b)| a * b).sum::<f32>()).powi(2)
    };
    let inputs = inputs.iter().flat_map(|chunk| chunk.chunks(cols));
    inputs.map(|input| difference.chunks(cols).map(|row| of(input, row)).sum::<f64>()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn outputs_are_nearer_than_by_rounding(seed: u64, cols in 65_usize..200) {
        let rows = 20;
        let (weights, inputs) = case(rows, cols, seed);
        let factor = Hessian::of(&inputs, cols, 1).inverse_factor().unwrap();
        for format in formats() {
            let plain = rounded(format, rows, cols, &weights, 1).unwrap();
            let made = compensated(format, rows, cols, &weights, &factor, 1).unwrap();
            let [plain, made] = [plain, made].map(|packed| error(&packed, &weights, &inputs));
            prop_assert!(made < 0.8 * plain, "{format}: {made} against {plain}");
        }
    }

    #[test]
    fn independent_inputs_leave_rounding(seed: u64, cols in 1_usize..200) {
        let rows = 3;
        let (weights, _) = case(rows, cols, seed);
        let factor = Hessian::identity(cols).inverse_factor().unwrap();
        for format in formats().into_iter().filter(|&format| format != Format::Nf4) {
            let plain = rounded(format, rows, cols, &weights, 1).unwrap();
            let made = compensated(format, rows, cols, &weights, &factor, 1).unwrap();
            prop_assert_eq!(made, plain, "{}", format);
        }
    }

    #[test]
    fn threads_change_no_bit(seed: u64) {
        let (rows, cols) = (150, 160);
        let (weights, inputs) = case(rows, cols, seed);
        let hessians = [1, 3].map(|threads| Hessian::of(&inputs, cols, threads));
        prop_assert!(hessians[0] == hessians[1]);
        let factor = hessians[0].inverse_factor().unwrap();
        for format in formats() {
            let [one, three] = [1, 3].map(|threads| {
                compensated(format, rows, cols, &weights, &factor, threads).unwrap()
            });
            prop_assert_eq!(one, three);
            let [one, three] =
                [1, 3].map(|threads| rounded(format, rows, cols, &weights, threads).unwrap());
            prop_assert_eq!(one, three);
        }
    }
}

#[test]
fn inputs_that_were_never_seen_are_rounded() {
    let (rows, cols) = (4, 64);
    let (weights, mut inputs) = case(rows, cols, 5);
    for row in inputs.iter_mut().flat_map(|chunk| chunk.chunks_mut(cols)) {
        row[10] = 0.0;
    }
    let factor = Hessian::of(&inputs, cols, 1).inverse_factor().unwrap();
    let format = "int8-g32".parse().unwrap();
    let made = compensated(format, rows, cols, &weights, &factor, 1).unwrap();
    for row in 0..rows {
        let off = (made.value(row, 10) - weights[row * cols + 10]).abs();
        assert!(off <= made.scale(row, 10).abs() * 0.51, "{off}");
    }
    // Nothing at all was seen.
    let nothing = Hessian::of(&[vec![0.0; 3 * cols]], cols, 1).inverse_factor().unwrap();
    let made = compensated(format, rows, cols, &weights, &nothing, 1).unwrap();
    assert_eq!(made, rounded(format, rows, cols, &weights, 1).unwrap());
}

#[test]
fn what_cannot_be_is_named() {
    let format = "int4-g32".parse().unwrap();
    let identity = Hessian::identity(4).inverse_factor().unwrap();
    let error = compensated(format, 1, 3, &[0.0; 3], &identity, 1).unwrap_err();
    assert_eq!(error, MethodError::Size { cols: 3, inputs: 4 });
    let hessian = Hessian::of(&[vec![f32::NAN; 4]], 4, 1);
    assert_eq!(hessian.inverse_factor().unwrap_err(), MethodError::Inputs);
    let mut weights = vec![0.0; 100 * 4];
    weights[4 * 70 + 1] = f32::INFINITY;
    let error = compensated(format, 100, 4, &weights, &identity, 2).unwrap_err();
    assert!(error.to_string().contains("row 70, column 1"), "{error}");
}
