//! Packing, checked from outside: what comes back, how far off it may be, what is refused.

use half::{bf16, f16};
use proptest::prelude::*;
use rewind_formats::{Format, Group, PackError, Packed, Scales, e4m3, nf4};

const FORMATS: [Format; 17] = [
    Format::F16,
    Format::Bf16,
    Format::Int8,
    Format::Int8Group(Group::G32),
    Format::Int8Group(Group::G64),
    Format::Int8Group(Group::G128),
    Format::Int6Group(Group::G32),
    Format::Int6Group(Group::G64),
    Format::Int6Group(Group::G128),
    Format::Int4Group(Group::G32),
    Format::Int4Group(Group::G64),
    Format::Int4Group(Group::G128),
    Format::Int4Affine(Group::G32),
    Format::Int4Affine(Group::G64),
    Format::Int4Affine(Group::G128),
    Format::Nf4,
    Format::Fp8,
];

fn code_range(format: Format) -> (i32, i32) {
    match format.code_bits() {
        4 => (-8, 7),
        6 => (-32, 31),
        _ => (-127, 127),
    }
}

fn dequantize(packed: &Packed) -> Vec<f32> {
    let mut out = vec![f32::NAN; packed.rows() * packed.cols()];
    for (row, out) in out.chunks_exact_mut(packed.cols()).enumerate() {
        packed.dequantize_row(row, out);
    }
    out
}

/// Every code is a nearest one to its weight given the scale, and no group is worse than with the
/// plain scale that clips nothing.
fn check_integer(packed: &Packed, weights: &[f32]) -> Result<(), TestCaseError> {
    let (format, cols) = (packed.format(), packed.cols());
    let (low, high) = code_range(format);
    let group = format.group().map_or(cols, Group::len);
    let restored = dequantize(packed);
    for row in 0..packed.rows() {
        for start in (0..cols).step_by(group) {
            let span = start..cols.min(start + group);
            let (mut error, mut largest) = (0.0_f64, 0.0_f32);
            for col in span.clone() {
                let (w, x) = (weights[row * cols + col], restored[row * cols + col]);
                let (code, scale) = (packed.code(row, col), packed.scale(row, col));
                prop_assert!((low..=high).contains(&i32::from(code)));
                prop_assert_eq!(x, f32::from(code) * scale);
                let off = (f64::from(w) - f64::from(x)).abs();
                let least = (low..=high)
                    .map(|q| (f64::from(w) - f64::from(q) * f64::from(scale)).abs())
                    .fold(f64::INFINITY, f64::min);
                // Dividing in f32 may settle a tie either way.
                let tie = f64::from(w.abs().max(scale.abs())) * 1e-6;
                prop_assert!(off <= least + tie, "{w} became {x}, scale {scale}");
                if (f64::from(w) / f64::from(scale)) <= f64::from(high)
                    && (f64::from(w) / f64::from(scale)) >= f64::from(low)
                {
                    prop_assert!(off <= f64::from(scale.abs()) / 2.0 + tie);
                }
                error += off * off;
                largest = largest.max(w.abs());
            }
            let plain = largest / high as f32;
            let plain = match packed.scales() {
                Scales::PerGroup(_) => f16::from_f32(plain).to_f32(),
                _ => plain,
            };
            let plain_error: f64 = span
                .map(|col| {
                    let w = f64::from(weights[row * cols + col]);
                    let q = if plain == 0.0 { 0.0 } else { (w / f64::from(plain)).round() };
                    (w - q.clamp(f64::from(low), f64::from(high)) * f64::from(plain)).powi(2)
                })
                .sum();
            // Below 1e-30 squares leave the range of f32, and the search has nothing to compare.
            prop_assert!(
                error <= plain_error * 1.0001 + 1e-30 * f64::from(largest).max(1.0),
                "{error} against {plain_error}"
            );
        }
    }
    Ok(())
}

/// Every number is a nearest one to its weight given the scale, and no row is worse than with the plain
/// scale that clips nothing.
fn check_e4m3(packed: &Packed, weights: &[f32]) -> Result<(), TestCaseError> {
    let mut numbers: Vec<f64> = e4m3::table().into_iter().map(f64::from).collect();
    numbers.retain(|number| !number.is_nan());
    let least = |w: f64, scale: f64| {
        let off = numbers.iter().map(|number| (w - number * scale).abs());
        off.fold(f64::INFINITY, f64::min)
    };
    let rows = weights.chunks_exact(packed.cols()).enumerate();
    for (row, weights) in rows {
        let (scale, mut error, mut plain_error) = (packed.scale(row, 0), 0.0, 0.0);
        let largest = weights.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
        let plain = f64::from(largest / e4m3::MAX);
        for (col, &w) in weights.iter().enumerate() {
            let code = packed.row_codes(row)[col];
            prop_assert_eq!(packed.value(row, col), e4m3::value(code) * scale);
            let w = f64::from(w);
            let off = (w - f64::from(packed.value(row, col))).abs();
            // Dividing in f32 may settle a tie either way; below, numbers are subnormal in f32.
            let tie = w.abs() * 1e-6 + 1e-44;
            prop_assert!(off <= least(w, f64::from(scale)) + tie, "{w}, scale {scale}");
            error += off * off;
            plain_error += least(w, plain).powi(2);
        }
        prop_assert!(
            error <= plain_error * 1.0001 + 1e-30 * f64::from(largest).max(1.0),
            "{error} against {plain_error}"
        );
    }
    Ok(())
}

/// Every code is a nearest one to its weight on the grid of its group, and no group is worse than with the
/// grid from its lowest weight to its highest.
fn check_affine(packed: &Packed, weights: &[f32]) -> Result<(), TestCaseError> {
    let (cols, half) = (packed.cols(), |x: f64| f64::from(f16::from_f64(x).to_f32()));
    let len = packed.format().group().unwrap().len();
    for (row, weights) in weights.chunks_exact(cols).enumerate() {
        for (group, weights) in weights.chunks(len).enumerate() {
            let first = group * len;
            let (scale, offset) = (packed.scale(row, first), packed.offset(row, first));
            let (low, high) = weights
                .iter()
                .fold((f64::MAX, f64::MIN), |(l, h), &w| (l.min(w.into()), h.max(w.into())));
            let plain = half((high - low) / 15.0);
            let plain = [plain, half(low + 8.0 * plain)];
            let least = |w: f64, [scale, offset]: [f64; 2]| {
                let off = (-8..=7).map(|q| (w - (f64::from(q) * scale + offset)).abs());
                off.fold(f64::INFINITY, f64::min)
            };
            let (mut error, mut plain_error) = (0.0, 0.0);
            for (i, &w) in weights.iter().enumerate() {
                let (code, value) = (packed.code(row, first + i), packed.value(row, first + i));
                prop_assert!((-8..=7).contains(&code));
                prop_assert_eq!(value, f32::from(code) * scale + offset);
                let (w, off) = (f64::from(w), (f64::from(w) - f64::from(value)).abs());
                // Dividing in f32 may settle a tie either way, and sums round.
                let tie = w.abs().max(f64::from(offset.abs())) * 1e-6;
                let nearest = least(w, [scale, offset].map(f64::from));
                prop_assert!(off <= nearest + tie, "{w} became {value}: {scale}, {offset}");
                error += off * off;
                plain_error += least(w, plain).powi(2);
            }
            let largest = low.abs().max(high.abs());
            prop_assert!(
                error
                    <= plain_error * 1.0001 + 1e-30 * largest.max(1.0) + largest * largest * 1e-11,
                "{error} against {plain_error}"
            );
        }
    }
    Ok(())
}

/// Every code is a nearest one to its weight over the block's largest, and no number is further off than half
/// the widest gap between two of them, and what rounding the scale to 8 bits and fitting it move.
fn check_nf4(packed: &Packed, weights: &[f32]) -> Result<(), TestCaseError> {
    let Scales::Nested { rows, groups } = packed.scales() else { panic!("{:?}", packed.scales()) };
    let per_row = packed.format().groups_per_row(packed.cols());
    prop_assert_eq!((rows.len(), groups.len()), (packed.rows(), packed.rows() * per_row));
    for (row, weights) in weights.chunks_exact(packed.cols()).enumerate() {
        let step = f64::from(rows[row]);
        for (block, weights) in weights.chunks(64).enumerate() {
            let largest = weights.iter().fold(0.0_f64, |m, &w| m.max(f64::from(w).abs()));
            let scale = f64::from(packed.scale(row, block * 64));
            prop_assert_eq!(scale as f32, f32::from(groups[row * per_row + block]) * rows[row]);
            let (mut error, mut covering) = (0.0, 0.0);
            for (i, &w) in weights.iter().enumerate() {
                let col = block * 64 + i;
                let (number, value) = (packed.number(row, col), packed.value(row, col));
                prop_assert_eq!(value, number * packed.scale(row, col));
                let (number, w) = (f64::from(number), f64::from(w));
                let share = if largest == 0.0 { 0.0 } else { w / largest };
                let off = |number: f64| (number - share).abs();
                let nearest = nf4::NUMBERS.iter().map(|&n| off(n.into())).fold(2.0, f64::min);
                // Below the normal numbers divisions round coarsely.
                let tie = if largest < 1e-36 { 1.0 } else { 1e-6 };
                prop_assert!(off(number) <= nearest + tie, "{w} of {largest} became {number}");
                error += (w - number * scale).powi(2);
                covering += (w - number * largest).powi(2);
            }
            // The fitted scale is no worse than the largest magnitude, but for its rounding to a step.
            let rounding = (weights.len() as f64).sqrt() * (step / 2.0 + largest * 1e-5) + 1e-40;
            prop_assert!(error.sqrt() <= covering.sqrt() + rounding, "{error} against {covering}");
        }
    }
    Ok(())
}

fn check(format: Format, rows: usize, cols: usize, weights: &[f32]) -> Result<(), TestCaseError> {
    let packed = Packed::quantize(format, rows, cols, weights).unwrap();
    prop_assert_eq!((packed.format(), packed.rows(), packed.cols()), (format, rows, cols));
    prop_assert_eq!(packed.codes().len(), rows * format.row_code_bytes(cols).unwrap());
    let bits = format.bits_per_weight(cols) * (rows * cols) as f64;
    prop_assert_eq!(packed.bytes(), (bits / 8.0).round() as usize);
    prop_assert_eq!(&packed, &Packed::quantize(format, rows, cols, weights).unwrap());
    match format {
        Format::F16 => {
            let expected: Vec<_> = weights.iter().map(|&w| f16::from_f32(w).to_f32()).collect();
            prop_assert_eq!(dequantize(&packed), expected);
        }
        Format::Bf16 => {
            let expected: Vec<_> = weights.iter().map(|&w| bf16::from_f32(w).to_f32()).collect();
            prop_assert_eq!(dequantize(&packed), expected);
        }
        Format::Fp8 => check_e4m3(&packed, weights)?,
        Format::Int4Affine(_) => check_affine(&packed, weights)?,
        Format::Nf4 => check_nf4(&packed, weights)?,
        _ => check_integer(&packed, weights)?,
    }
    Ok(())
}

/// A matrix, its rows and columns; weights of one magnitude between denormal and large.
fn matrices() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    (1_usize..4, 1_usize..300, -45_i32..4).prop_flat_map(|(rows, cols, exponent)| {
        let weight = prop_oneof![
            8 => -1.0_f64..1.0,
            1 => Just(0.0),
            1 => -0.01_f64..0.01,
        ];
        let magnitude = 10_f64.powi(exponent);
        proptest::collection::vec(weight.prop_map(move |w| (w * magnitude) as f32), rows * cols)
            .prop_map(move |weights| (rows, cols, weights))
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_format_keeps_its_promise((rows, cols, weights) in matrices()) {
        for format in FORMATS {
            check(format, rows, cols, &weights)?;
        }
    }
}

#[test]
fn zeros_stay_zero() {
    for format in FORMATS {
        let packed = Packed::quantize(format, 2, 70, &[0.0; 140]).unwrap();
        assert_eq!(dequantize(&packed), [0.0; 140]);
    }
}

#[test]
fn representable_weights_are_exact() {
    // All codes of a group, times a scale that f16 holds.
    let weights: Vec<f32> = (0..32).map(|i| (i % 16 - 8) as f32 * 0.125).collect();
    let packed = Packed::quantize(Format::Int4Group(Group::G32), 1, 32, &weights).unwrap();
    assert_eq!(dequantize(&packed), weights);
    // The other sign uses -8 for the positive end.
    let weights: Vec<f32> = weights.iter().map(|w| -w).collect();
    let packed = Packed::quantize(Format::Int4Group(Group::G32), 1, 32, &weights).unwrap();
    assert_eq!(dequantize(&packed), weights);
    let weights: Vec<f32> = (-127..=127).map(|i| i as f32 * 0.25).collect();
    let packed = Packed::quantize(Format::Int8, 1, 255, &weights).unwrap();
    assert_eq!(dequantize(&packed), weights);
}

#[test]
fn nibbles_lie_as_documented() {
    let weights = [-8.0, 7.0, 1.0, -8.0, -3.0, 0.0, 5.0, 7.0, 6.0, -7.0, -8.0];
    let packed = Packed::quantize(Format::Int4Group(Group::G32), 1, 11, &weights).unwrap();
    assert_eq!(packed.scale(0, 0), 1.0);
    let expected = [0xf0, 0x09, 0x85, 0xfd, 0x1e, 0x80];
    assert_eq!(packed.row_codes(0), expected);
    for (col, w) in weights.iter().enumerate() {
        assert_eq!(f32::from(packed.code(0, col)), *w);
    }
}

#[test]
fn numbers_of_the_code_book_are_exact_and_lie_as_documented() {
    let weights = [1.0, -1.0, nf4::NUMBERS[3], 0.0, nf4::NUMBERS[12]];
    let packed = Packed::quantize(Format::Nf4, 1, 5, &weights).unwrap();
    assert_eq!(packed.row_codes(0), [0x0f, 0x73, 0x7c]);
    assert_eq!(packed.scale(0, 0), 1.0);
    assert_eq!(dequantize(&packed), weights);
    // A block of a quarter of the size takes 64 of 255 steps.
    let weights = [[1.0; 64], [-0.25; 64]].concat();
    let packed = Packed::quantize(Format::Nf4, 1, 128, &weights).unwrap();
    let Scales::Nested { rows, groups } = packed.scales() else { panic!("{:?}", packed.scales()) };
    assert_eq!((&rows[..], &groups[..]), (&[1.0 / 255.0][..], &[255, 64][..]));
}

#[test]
fn an_offset_takes_up_what_a_group_has_in_common() {
    let weights: Vec<f32> = (0..32).map(|i| 5.0 + (i % 16) as f32 * 0.25).collect();
    let packed = Packed::quantize(Format::Int4Affine(Group::G32), 1, 32, &weights).unwrap();
    assert_eq!((packed.scale(0, 0), packed.offset(0, 31)), (0.25, 7.0));
    assert_eq!(packed.row_codes(0)[..3], [0x10, 0x32, 0x54]);
    assert_eq!(dequantize(&packed), weights);
}

#[test]
fn six_bit_codes_lie_as_documented() {
    let weights = [-32.0, 31.0, 1.0, -1.0, 0.0, 7.0, -20.0];
    let packed = Packed::quantize(Format::Int6Group(Group::G32), 1, 7, &weights).unwrap();
    assert_eq!(packed.scale(0, 0), 1.0);
    // + 32: 0, 63, 33, 31 and 32, 39, 12, in six bits each from the lowest on.
    let first = 63 << 6 | 33 << 12 | 31 << 18;
    let last = 32 | 39 << 6 | 12 << 12;
    let expected = [first, last].map(|bits: u32| {
        let [a, b, c, _] = bits.to_le_bytes();
        [a, b, c]
    });
    assert_eq!(packed.row_codes(0), expected.as_flattened());
    for (col, w) in weights.iter().enumerate() {
        assert_eq!(f32::from(packed.code(0, col)), *w);
    }
}

#[test]
fn groups_end_with_the_row() {
    // The second row starts a group of its own.
    let weights = [[1.0; 40], [100.0; 40]].concat();
    let packed = Packed::quantize(Format::Int8Group(Group::G32), 2, 40, &weights).unwrap();
    let Scales::PerGroup(scales) = packed.scales() else { panic!("{:?}", packed.scales()) };
    assert_eq!(scales.len(), 4);
    assert!(scales[1] < scales[2]);
    for (x, w) in dequantize(&packed).iter().zip(&weights) {
        assert!((x - w).abs() < w * 1e-3, "{w} became {x}");
    }
}

#[test]
fn extremes_of_each_format_are_taken_and_what_lies_beyond_is_not() {
    for (format, limit) in [
        (Format::F16, 65504.0),
        (Format::Bf16, bf16::MAX.to_f32()),
        (Format::Int8, f32::MAX / 256.0 * 127.0),
        (Format::Int8Group(Group::G32), 65504.0 * 127.0),
        (Format::Int6Group(Group::G128), 65504.0 * 31.0),
        (Format::Int4Group(Group::G64), 65504.0 * 7.0),
        (Format::Int4Affine(Group::G32), 65504.0),
        (Format::Nf4, f32::MAX / 256.0),
        (Format::Fp8, f32::MAX / 2.0),
    ] {
        let packed = Packed::quantize(format, 1, 3, &[limit, -limit, -limit]).unwrap();
        for (x, w) in dequantize(&packed).iter().zip([limit, -limit, -limit]) {
            assert!(x.is_finite() && (x - w).abs() <= limit * 1e-3, "{format}: {w} became {x}");
        }
        let beyond = -f32::from_bits(limit.to_bits() + 1);
        let error = Packed::quantize(format, 2, 2, &[0.0, 0.0, 0.0, beyond]).unwrap_err();
        assert!(matches!(error, PackError::OutOfRange { row: 1, col: 1, .. }), "{format}: {error}");
    }
}

#[test]
fn tiny_weights_do_not_divide_by_zero() {
    for format in FORMATS {
        let weights = [f32::from_bits(1), -f32::from_bits(3), f32::MIN_POSITIVE, 0.0];
        let packed = Packed::quantize(format, 1, 4, &weights).unwrap();
        for x in dequantize(&packed) {
            assert!(x.abs() <= 2.0 * f32::MIN_POSITIVE, "{format}: {x}");
        }
    }
}

#[test]
fn what_is_not_finite_is_named() {
    for (value, at) in [(f32::NAN, 5), (f32::INFINITY, 0), (f32::NEG_INFINITY, 7)] {
        for format in FORMATS {
            let mut weights = [0.5; 8];
            weights[at] = value;
            let error = Packed::quantize(format, 2, 4, &weights).unwrap_err();
            let PackError::NotFinite { row, col, .. } = error else { panic!("{error}") };
            assert_eq!((row, col), (at / 4, at % 4));
        }
    }
}

#[test]
fn shapes_are_checked() {
    let quantize = |rows, cols, weights: &[f32]| {
        Packed::quantize(Format::Int8, rows, cols, weights).map(|_| ()).unwrap_err()
    };
    assert_eq!(quantize(2, 3, &[0.0; 5]), PackError::Shape { rows: 2, cols: 3, len: 5 });
    assert_eq!(quantize(0, 3, &[]), PackError::Empty { rows: 0, cols: 3 });
    assert_eq!(quantize(3, 0, &[]), PackError::Empty { rows: 3, cols: 0 });
    let huge = usize::MAX / 2 + 1;
    assert_eq!(quantize(huge, 2, &[]), PackError::Shape { rows: huge, cols: 2, len: 0 });
}

#[test]
fn parts_make_the_matrix_that_they_came_from() {
    for name in rewind_formats::FORMAT_NAMES.split(", ") {
        let format: Format = name.parse().unwrap();
        for (rows, cols) in [(1, 1), (3, 65), (5, 66), (4, 67), (2, 128)] {
            let weights: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.7).sin()).collect();
            let packed = Packed::quantize(format, rows, cols, &weights).unwrap();
            let parts = |codes: &[u8], scales: &Scales| {
                Packed::from_parts(format, rows, cols, codes, scales.clone())
            };
            assert_eq!(parts(packed.codes(), packed.scales()).as_ref(), Ok(&packed), "{name}");
            let order: Vec<usize> = (0..rows).rev().chain([0]).collect();
            let turned = Packed::from_rows(order.iter().map(|&row| (&packed, row))).unwrap();
            assert_eq!((turned.rows(), turned.cols()), (rows + 1, cols));
            for (at, &row) in order.iter().enumerate() {
                for col in 0..cols {
                    assert_eq!(turned.value(at, col), packed.value(row, col), "{name}");
                }
            }
            let short = parts(&packed.codes()[1..], packed.scales());
            assert!(matches!(short, Err(PackError::Parts { .. })), "{name}: {short:?}");
            let other = match packed.scales() {
                Scales::None => Scales::PerRow(vec![1.0; rows].into()),
                _ => Scales::None,
            };
            assert_eq!(parts(packed.codes(), &other), Err(PackError::Scales { format }), "{name}");
            let none = Scales::PerRow([].into());
            assert!(parts(packed.codes(), &none).is_err(), "{name}");
        }
    }
}

#[test]
fn parts_that_stand_for_no_weights_are_named() {
    use half::f16;

    let group = |scale: f32| Scales::PerGroup([f16::from_f32(scale)].into());
    let row = |scale: f32| Scales::PerRow([scale].into());
    let code = |format: &str, cols, codes: &[u8], scales| {
        let error = Packed::from_parts(format.parse().unwrap(), 1, cols, codes, scales);
        match error.unwrap_err() {
            PackError::Code { row: 0, byte, .. } => byte,
            other => panic!("{format}: {other}"),
        }
    };
    assert_eq!(code("int8", 3, &[1, 0x80, 0x80], row(1.0)), 1);
    assert_eq!(code("int8-g32", 2, &[0, 0x80], group(1.0)), 1);
    assert_eq!(code("fp8", 2, &[0x7e, 0xff], row(1.0)), 1);
    assert_eq!(code("f16", 1, &[0, 0x7c], Scales::None), 0);
    assert_eq!(code("bf16", 2, &[0, 0, 0x80, 0xff], Scales::None), 2);
    // Spare nibbles and bits.
    assert_eq!(code("int4-g32", 3, &[0x88, 0x08], group(1.0)), 1);
    assert_eq!(code("int6-g32", 5, &[0, 0, 0, 0x40], group(1.0)), 3);
    let nested = Scales::Nested { rows: [1.0].into(), groups: [1].into() };
    assert_eq!(code("nf4", 1, &[0x80], nested), 0);

    let scale = |format: &str, codes: &[u8], scales| {
        let error = Packed::from_parts(format.parse().unwrap(), 1, 2, codes, scales);
        assert!(matches!(error, Err(PackError::Scale { row: 0, .. })), "{format}: {error:?}");
    };
    for bad in [f32::NAN, f32::INFINITY] {
        scale("int4-g32", &[0x88], group(bad));
        scale("int8", &[1, 2], row(bad));
    }
    // Finite, but not times the largest number.
    scale("int8", &[1, 2], row(1e37));
    scale("fp8", &[1, 2], row(1e36));
    let halves = |x: f32| [f16::from_f32(x)].into();
    let affine = Scales::Affine { scales: halves(1.0), offsets: halves(f32::NAN) };
    scale("int4a-g32", &[0x88], affine);
    let huge = Packed::from_parts(Format::F16, usize::MAX, 2, vec![], Scales::None);
    assert!(matches!(huge, Err(PackError::Parts { expected: None, .. })), "{huge:?}");
    assert!(huge.unwrap_err().to_string().contains("more than any number"));
    let one = |format| Packed::quantize(format, 1, 2, &[0.5, 1.0]).unwrap();
    let (a, b) = (one(Format::Int8), one(Format::Fp8));
    let mixed = Packed::from_rows([(&a, 0), (&b, 0)]);
    assert!(matches!(mixed, Err(PackError::Mixed { .. })), "{mixed:?}");
    assert_eq!(Packed::from_rows([]), Err(PackError::Empty { rows: 0, cols: 0 }));
}
