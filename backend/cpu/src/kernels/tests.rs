//! Every format, every instruction set, any number of rows: the bits of [`crate::order`].

use rewind_formats::{FORMAT_NAMES, Format, Packed, Scales};

use super::{Input, Norm, Product, Put, Quantize, SwiGlu};
use crate::arch::Isa;
use crate::matrix::{Elements, Matrix, Storage};
use crate::order;
use crate::pool::share;
use crate::rows::{Quantized, Rows};

/// Numbers of rows that are computed together.
const COMPANIES: [usize; 8] = [1, 2, 3, 8, 16, 17, 64, 257];

/// Pseudo-random numbers of mixed size; some blocks are all zero.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut size = 1.0;
    let number = |i: usize| {
        if i.is_multiple_of(32) {
            size = [1.0, 0.03, 20.0, 0.0, 1.0][(i / 32) % 5];
        }
        next() * size
    };
    (0..len).map(number).collect()
}

/// The same weights as matrices of this executor and in the canonical form.
struct Case {
    /// For each instruction set.
    matrices: Vec<(Isa, Matrix)>,
    packed: Option<Packed>,
    rows: usize,
    cols: usize,
}

impl Case {
    fn new(storage: Storage, rows: usize, cols: usize) -> Self {
        let weights = noise(7, rows * cols);
        let matrix = |isa: Isa| {
            let mut matrix = Matrix::zeroed(storage, isa.panel_width(), rows, cols);
            for mut part in matrix.parts_mut(16) {
                let range = part.range();
                let weights = Elements::F32(&weights[range.start * cols..range.end * cols]);
                match storage {
                    Storage::F32 => part.copy(0, weights),
                    Storage::Format(format) => part.quantize(0, format, weights).expect("finite"),
                }
            }
            (isa, matrix)
        };
        let packed = match storage {
            Storage::F32 => None,
            Storage::Format(format) => {
                Some(Packed::quantize(format, rows, cols, &weights).expect("finite"))
            }
        };
        Self { matrices: Isa::all().into_iter().map(matrix).collect(), packed, rows, cols }
    }

    /// One output for one row of activations, by the naive order.
    fn expected(&self, n: usize, x: &[f32]) -> f32 {
        match &self.packed {
            Some(packed) if packed.format().is_integer() => {
                let codes: Vec<i8> = (0..self.cols).map(|col| packed.code(n, col)).collect();
                let scale = |block| packed.scale(n, block * 32);
                match packed.scales() {
                    Scales::Affine { .. } => {
                        order::affine_dot(&codes, scale, |block| packed.offset(n, block * 32), x)
                    }
                    _ => order::integer_dot(&codes, scale, x),
                }
            }
            Some(packed) if packed.format().code_bits() < 16 => {
                let numbers: Vec<f32> = (0..self.cols).map(|col| packed.number(n, col)).collect();
                match packed.scales() {
                    Scales::Nested { rows, groups } => {
                        let groups = &groups[n * self.cols.div_ceil(64)..];
                        order::scaled_dot(&numbers, |run| groups[run].into(), x) * rows[n]
                    }
                    _ => order::float_dot(&numbers, x) * packed.scale(n, 0),
                }
            }
            _ => {
                let mut weights = vec![0.0; self.cols];
                self.matrices[0].1.row_values(n, &mut weights);
                order::float_dot(&weights, x)
            }
        }
    }

    /// All outputs for some rows of activations, dealt to `workers` as the executor does it.
    fn product(
        &self,
        (isa, weights): &(Isa, Matrix),
        activations: &[Vec<f32>],
        first: usize,
        workers: usize,
        put: Put,
    ) -> Vec<Vec<f32>> {
        // Rows in front that do not take part.
        let (mut rows, mut quantized) = (
            Rows::new(first + activations.len(), self.cols),
            Quantized::new(first + activations.len(), self.cols),
        );
        for (i, x) in activations.iter().enumerate() {
            rows.row_mut(first + i)[..self.cols].copy_from_slice(x);
        }
        let all = first..first + activations.len();
        for i in all.clone() {
            isa.run(Quantize { x: rows.row(i), out: quantized.row_mut(i) });
        }
        let (rows, quantized) = (rows.block().rows(all.clone()), quantized.block().rows(all));
        let input = Input { rows, quantized };
        let mut out = Rows::new(activations.len(), self.rows);
        (0..activations.len()).for_each(|row| out.row_mut(row)[..self.rows].fill(BEFORE));
        let panels = self.rows.div_ceil(weights.panel_width());
        let row = |panel: usize| (panel * weights.panel_width()).min(self.rows);
        let shares = (0..workers).map(|w| share(panels, workers, w));
        let ranges: Vec<_> = shares.map(|panels| row(panels.start)..row(panels.end)).collect();
        for rows in ranges {
            let out = out.columns_mut(rows.clone());
            Product { weights, rows, input, put, out }.run(*isa);
        }
        (0..activations.len()).map(|row| out.row(row)[..self.rows].to_vec()).collect()
    }
}

/// What the outputs hold before.
const BEFORE: f32 = 0.75;

fn storages() -> Vec<Storage> {
    let formats = FORMAT_NAMES.split(", ").map(|name| name.parse::<Format>().expect("listed"));
    formats.map(Storage::Format).chain([Storage::F32]).collect()
}

fn check(case: &Case, storage: Storage, company: usize, first: usize, workers: usize, put: Put) {
    let activations: Vec<_> = (0..company).map(|row| noise(100 + row as u64, case.cols)).collect();
    for matrix in &case.matrices {
        let found = case.product(matrix, &activations, first, workers, put);
        // The oracle is slow; in large companies it looks at some rows, which are enough, for every
        // row is also computed in the small ones.
        for row in (0..company).filter(|row| company < 20 || row % 29 == 3 || row + 2 > company) {
            for (n, found) in found[row].iter().enumerate() {
                let sum = case.expected(n, &activations[row]);
                let expected = if put == Put::Add { BEFORE + sum } else { sum };
                let place = (matrix.0, storage, case.rows, case.cols, company, row, n);
                assert_eq!(found.to_bits(), expected.to_bits(), "{found} {expected} {place:?}");
            }
        }
    }
}

#[test]
fn products_have_the_bits_of_the_naive_order_in_any_company() {
    for storage in storages() {
        let case = Case::new(storage, 77, 300);
        for (i, company) in COMPANIES.into_iter().enumerate() {
            let put = if i % 2 == 0 { Put::Store } else { Put::Add };
            check(&case, storage, company, i % 3, 1 + i % 4, put);
        }
    }
}

#[test]
fn products_of_odd_sizes() {
    for storage in storages() {
        for (rows, cols) in
            [(1, 1), (2, 31), (3, 32), (5, 33), (17, 95), (40, 256), (4, 577), (9, 1200)]
        {
            let case = Case::new(storage, rows, cols);
            for (company, workers) in [(1, 1), (2, 3), (5, 2)] {
                check(&case, storage, company, 0, workers, Put::Store);
            }
        }
    }
}

#[test]
fn a_bad_activation_spoils_its_row_and_no_other() {
    for storage in storages() {
        let case = Case::new(storage, 9, 70);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut activations: Vec<_> = (0..5).map(|row| noise(row, 70)).collect();
            let clean = case.product(&case.matrices[0], &activations, 0, 1, Put::Store);
            activations[2][66] = bad;
            for matrix in &case.matrices {
                let found = case.product(matrix, &activations, 0, 1, Put::Store);
                let place = (matrix.0, storage);
                assert!(found[2].iter().all(|x| !x.is_finite()), "{place:?}");
                for row in [0, 1, 3, 4] {
                    assert_eq!(found[row], clean[row], "{place:?}");
                }
            }
        }
    }
}

#[test]
fn activations_are_quantized_as_documented() {
    for cols in [1, 31, 32, 64, 300] {
        let x = noise(3, cols);
        let mut rows = Rows::new(1, cols);
        rows.row_mut(0)[..cols].copy_from_slice(&x);
        for isa in Isa::all() {
            let mut quantized = Quantized::new(1, cols);
            isa.run(Quantize { x: rows.row(0), out: quantized.row_mut(0) });
            let row = quantized.row(0);
            for (block, x) in x.chunks(32).enumerate() {
                let (codes, scale) = order::quantize_block(x);
                assert_eq!(row[block].codes, codes, "{isa:?}");
                assert_eq!(row[block].scale.to_bits(), scale.to_bits());
                let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                assert_eq!(row[block].sum, sum, "{isa:?}");
            }
        }
    }
}

#[test]
fn norms_have_the_documented_order() {
    for cols in [1, 31, 32, 100, 576] {
        let (x, weight) = (noise(3, cols), noise(4, cols));
        let mut rows = Rows::new(1, cols);
        rows.row_mut(0)[..cols].copy_from_slice(&x);
        let scale = 1.0 / (order::square_sum(&x) / cols as f32 + 1e-5).sqrt();
        for isa in Isa::all() {
            let mut out = vec![0.0; cols];
            isa.run(Norm { x: rows.row(0), weight: &weight, epsilon: 1e-5, out: &mut out });
            for ((out, x), weight) in out.iter().zip(&x).zip(&weight) {
                assert_eq!(out.to_bits(), (x * scale * weight).to_bits(), "{isa:?}");
            }
        }
    }
}

#[test]
fn swiglu_is_close_to_f64_and_equal_everywhere() {
    for len in [1, 7, 8, 19, 64] {
        let (gate, up) = (noise(5, len), noise(6, len));
        let run = |isa: Isa| {
            let mut out = gate.clone();
            isa.run(SwiGlu { gate: &mut out, up: &up });
            out
        };
        let found = run(Isa::detect());
        for ((gate, up), found) in gate.iter().zip(&up).zip(&found) {
            let (g, u) = (f64::from(*gate), f64::from(*up));
            let exact = g / (1.0 + (-g).exp()) * u;
            assert!((f64::from(*found) - exact).abs() <= 1e-6 * exact.abs() + 1e-12);
        }
        let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(found), bits(run(Isa::portable())));
    }
    let mut far = [100.0, -100.0, 0.0];
    Isa::detect().run(SwiGlu { gate: &mut far, up: &[1.0; 3] });
    assert!((far[0] - 100.0).abs() < 1e-4 && far[1].abs() < 1e-30 && far[2] == 0.0, "{far:?}");
}
