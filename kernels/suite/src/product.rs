//! Matrix products against sums in f64, and a row's bits against those it has in other company.
//!
//! Inside one `mma` the order of the additions is the hardware's, so sums of many inputs are compared
//! within a bound: one half step of f32 for each addition, twice over since tensor cores may truncate,
//! relative to Σ|w·x|. Where just one input is not zero nothing is added, and the bits must be right.

use anyhow::{Result, ensure};
use half::f16;
use rewind_kernels::arguments::{
    Address, EPILOGUE_ADD, EPILOGUE_STORE, EPILOGUE_SWIGLU, FORMAT_BF16, FORMAT_F16, FORMAT_F32,
    FORMAT_FP8, FORMAT_INT8, FORMAT_INT8_GROUP, Matrix, ProductArguments,
};
use rewind_kernels::packing::Order;
use rewind_kernels::product;

use crate::lab::same_bits;
use crate::weights::{Weights, every_format, put};
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[
    Case { name: "product: each input alone", run: one_input },
    Case { name: "product: odd sizes", run: sizes },
    Case { name: "product: long rows", run: long },
    Case { name: "product: matrices stacked as one", run: stacked },
    Case { name: "product: added to what is there", run: added },
    Case { name: "product: SwiGLU", run: swiglu },
    Case { name: "product: a row's bits in any company", run: company },
    Case { name: "product: a row's bits in any company, long rows", run: company_of_long },
    Case { name: "product: NaN stays in its row", run: not_a_number },
];

/// Numbers of rows that a row's bits are compared over.
const COUNTS: [usize; 7] = [1, 2, 3, 8, 16, 17, 64];

/// All rows of the pool that those are taken from.
const POOL: usize = 70;

/// What stands behind the columns of an output, which nobody may write.
const UNTOUCHED: f32 = 7.5;

/// Row k of the activations has only input k, so output (k, o) is one weight times that input.
fn one_input(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(1);
    let (rows, cols) = (40, 150);
    for weights in Weights::in_every_format(rows, cols, &mut random)? {
        let mut x = Activations::random(cols, cols, &weights, &mut random);
        for (k, row) in x.values.chunks_exact_mut(cols).enumerate() {
            // A power of two now and then: nothing at all is rounded then, in any format.
            let alone = if k % 2 == 0 { 0.5 } else { row[k] };
            row.fill(0.0);
            row[k] = alone;
        }
        let matrix = weights.put(lab)?;
        let out = x.times(lab, &matrix, Epilogue::Store)?;
        for (k, out) in out.chunks_exact(rows).enumerate() {
            let input = x.values[k * cols + k];
            for (o, &got) in out.iter().enumerate() {
                let what = || format!("{}: weight ({o}, {k}) times {input}", weights.name);
                if let Some(expected) = weights.alone(o, k, input) {
                    ensure!(got == expected, "{} is {got}, not {expected}", what());
                } else {
                    // The sum of the parts of the input: two steps of f32 at most. Less than the last part.
                    let expected = f64::from(weights.value(o, k)) * f64::from(input);
                    let bound = if k % 2 == 0 { 0.0 } else { expected.abs() * 2.0_f64.powi(-22) };
                    let error = (f64::from(got) - expected).abs();
                    ensure!(error <= bound, "{} is {got}, not {expected}", what());
                }
            }
        }
    }
    Ok(())
}

fn sizes(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(2);
    let mut counts = [1, 3, 9, 16, 17].into_iter().cycle();
    for rows in [1, 15, 16, 33, 100] {
        for cols in [8, 32, 33, 64, 100, 576] {
            for weights in Weights::in_every_format(rows, cols, &mut random)? {
                // Formats and sizes take turns with the numbers of rows, all of which meet every format.
                let count = counts.next().unwrap_or(1);
                check(lab, &weights, count, &mut random)?;
            }
            counts.next();
        }
    }
    Ok(())
}

/// Rows so long that warps load units again and again.
fn long(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(3);
    for weights in Weights::in_every_format(33, 4700, &mut random)? {
        for count in [2, 9] {
            check(lab, &weights, count, &mut random)?;
        }
    }
    Ok(())
}

fn stacked(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(4);
    for format in every_format()? {
        let cols = 72;
        let parts = [24, 9, 9]
            .into_iter()
            .map(|rows| Weights::new(format, rows, cols, &mut random))
            .collect::<Result<Vec<_>>>()?;
        let x = Activations::random(5, cols, &parts[0], &mut random);
        let matrix = put(lab, &parts.iter().collect::<Vec<_>>(), Order::Stacked)?;
        let together = x.times(lab, &matrix, Epilogue::Store)?;
        let mut first = 0;
        for part in &parts {
            let matrix = part.put(lab)?;
            let alone = x.times(lab, &matrix, Epilogue::Store)?;
            for (together, alone) in together.chunks_exact(42).zip(alone.chunks_exact(part.rows)) {
                same_bits(&part.name, &together[first..][..part.rows], alone)?;
            }
            first += part.rows;
        }
    }
    Ok(())
}

fn added(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(5);
    for weights in Weights::in_every_format(45, 100, &mut random)? {
        let x = Activations::random(11, weights.cols, &weights, &mut random);
        let matrix = weights.put(lab)?;
        let sums = x.times(lab, &matrix, Epilogue::Store)?;
        let before = random.normals(sums.len(), 1.0);
        let after = x.times(lab, &matrix, Epilogue::Add(&before))?;
        let expected: Vec<f32> = before.iter().zip(&sums).map(|(a, b)| a + b).collect();
        same_bits(&weights.name, &after, &expected)?;
    }
    Ok(())
}

fn swiglu(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(6);
    for format in every_format()? {
        let (rows, cols) = (35, 100);
        let gate = Weights::new(format, rows, cols, &mut random)?;
        let up = Weights::new(format, rows, cols, &mut random)?;
        let mut x = Activations::random(10, cols, &gate, &mut random);
        // Beyond f16 after the product of the two.
        x.values[3 * cols..4 * cols].iter_mut().for_each(|x| *x = (*x * 1000.0).round());
        let matrix = put(lab, &[&gate, &up], Order::Interleaved)?;
        let together = x.times(lab, &matrix, Epilogue::Swiglu)?;
        let (gate_matrix, up_matrix) = (gate.put(lab)?, up.put(lab)?);
        let gates = x.times(lab, &gate_matrix, Epilogue::Store)?;
        let ups = x.times(lab, &up_matrix, Epilogue::Store)?;
        for (i, &got) in together.iter().enumerate() {
            let (g, u) = (f64::from(gates[i]), f64::from(ups[i]));
            let mut expected = g / (1.0 + (-g).exp()) * u;
            let mut bound = expected.abs() * 1e-6 + 1e-30;
            if gate.takes_half() {
                // To f16: half a step, and half the step of subnormals.
                expected = expected.clamp(-65504.0, 65504.0);
                bound += expected.abs() * 2.0_f64.powi(-11) + 2.0_f64.powi(-25);
            }
            let error = (f64::from(got) - expected).abs();
            ensure!(error <= bound, "{}: element {i} is {got}, not {expected}", gate.name);
        }
        let saturated = together[3 * rows..4 * rows].iter().any(|x| x.abs() == 65504.0);
        ensure!(saturated == gate.takes_half(), "{}: saturation: {saturated}", gate.name);
    }
    Ok(())
}

fn company(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(7);
    for format in every_format()? {
        let gate = Weights::new(format, 20, 100, &mut random)?;
        let up = Weights::new(format, 20, 100, &mut random)?;
        let x = Activations::random(POOL, gate.cols, &gate, &mut random);
        let before = random.normals(POOL * gate.rows, 1.0);
        let one = gate.put(lab)?;
        let two = put(lab, &[&gate, &up], Order::Interleaved)?;
        check_company(lab, &gate.name, &one, &x, Epilogue::Store)?;
        check_company(lab, &gate.name, &one, &x, Epilogue::Add(&before))?;
        check_company(lab, &gate.name, &two, &x, Epilogue::Swiglu)?;
    }
    Ok(())
}

fn company_of_long(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(8);
    for weights in Weights::in_every_format(17, 2200, &mut random)? {
        let x = Activations::random(POOL, weights.cols, &weights, &mut random);
        let matrix = weights.put(lab)?;
        check_company(lab, &weights.name, &matrix, &x, Epilogue::Store)?;
    }
    Ok(())
}

fn not_a_number(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(9);
    for weights in Weights::in_every_format(33, 100, &mut random)? {
        for count in [8, 20] {
            let mut x = Activations::random(count, weights.cols, &weights, &mut random);
            let matrix = weights.put(lab)?;
            let mut expected = x.times(lab, &matrix, Epilogue::Store)?;
            x.values[5 * weights.cols + 77] = f32::NAN;
            let mut got = x.times(lab, &matrix, Epilogue::Store)?;
            let broken = 5 * weights.rows..6 * weights.rows;
            let all = got[broken.clone()].iter().all(|x| x.is_nan());
            ensure!(all, "{}: {:?}", weights.name, &got[broken.clone()]);
            got.drain(broken.clone());
            expected.drain(broken);
            same_bits(&weights.name, &got, &expected)?;
        }
    }
    Ok(())
}

/// Compares with sums in f64.
fn check(lab: &mut Lab<'_>, weights: &Weights, count: usize, random: &mut Random) -> Result<()> {
    let Weights { rows, cols, .. } = *weights;
    let x = Activations::random(count, cols, weights, random);
    let matrix = weights.put(lab)?;
    let out = x.times(lab, &matrix, Epilogue::Store)?;
    // A block of 32 inputs, or 16 as several parts; a warp's blocks; the warps.
    let block = if weights.takes_half() { 32 } else { 96 };
    let additions = block + cols.div_ceil(16).div_ceil(8) + 8;
    let step = additions as f64 * 2.0_f64.powi(-23);
    for (m, out) in out.chunks_exact(rows).enumerate() {
        for (o, &got) in out.iter().enumerate() {
            let terms = (0..cols)
                .map(|k| f64::from(weights.value(o, k)) * f64::from(x.values[m * cols + k]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
            let error = (f64::from(got) - sum).abs();
            ensure!(
                error <= size * step,
                "{}, {count} rows: output {o} of row {m} is {got}, not {sum}",
                weights.name
            );
        }
    }
    Ok(())
}

/// Takes rows of a pool in several numbers and orders; each must have the bits it has among all.
fn check_company(
    lab: &mut Lab<'_>,
    name: &str,
    matrix: &Matrix,
    pool: &Activations,
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let all = pool.times(lab, matrix, epilogue)?;
    let columns = all.len() / pool.rows();
    for count in COUNTS {
        // 3 and the size of the pool have no common divisor, so no row comes twice.
        let rows: Vec<_> = (0..count).map(|i| (5 * count + 3 * i) % pool.rows()).collect();
        let pick = |values: &[f32]| -> Vec<f32> {
            rows.iter().flat_map(|&row| &values[row * columns..][..columns]).copied().collect()
        };
        let few = pool.take(&rows);
        let got = match epilogue {
            Epilogue::Add(before) => few.times(lab, matrix, Epilogue::Add(&pick(before)))?,
            Epilogue::Store | Epilogue::Swiglu => few.times(lab, matrix, epilogue)?,
        };
        same_bits(&format!("{name}, {count} rows, {epilogue:.8?}"), &got, &pick(&all))?;
    }
    Ok(())
}

/// What follows a product, with what is in its output before.
#[derive(Clone, Copy, Debug)]
enum Epilogue<'a> {
    Store,
    Add(&'a [f32]),
    Swiglu,
}

/// Rows that a matrix is multiplied with.
struct Activations {
    /// Row-major; those for integer formats are numbers of f16.
    values: Vec<f32>,
    cols: usize,
    half: bool,
}

impl Activations {
    fn random(rows: usize, cols: usize, weights: &Weights, random: &mut Random) -> Self {
        let half = weights.takes_half();
        let mut values = random.normals(rows * cols, 1.0);
        if half {
            values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        }
        Self { values, cols, half }
    }

    fn rows(&self) -> usize {
        self.values.len() / self.cols
    }

    /// Some of the rows.
    fn take(&self, rows: &[usize]) -> Self {
        let row = |&row: &usize| &self.values[row * self.cols..][..self.cols];
        let values = rows.iter().flat_map(row).copied().collect();
        Self { values, cols: self.cols, half: self.half }
    }

    /// Runs the product and returns its columns, row-major.
    fn times(
        &self,
        lab: &mut Lab<'_>,
        matrix: &Matrix,
        epilogue: Epilogue<'_>,
    ) -> Result<Vec<f32>> {
        // As short as the contract allows, so that whatever reads further is found out.
        let unit = match matrix.format {
            FORMAT_F32 | FORMAT_F16 | FORMAT_BF16 => 16,
            FORMAT_INT8 | FORMAT_INT8_GROUP | FORMAT_FP8 => 32,
            _ => 64,
        };
        let stride = self.cols.next_multiple_of(unit);
        let mut x = vec![0.0; self.rows() * stride];
        for (to, from) in x.chunks_exact_mut(stride).zip(self.values.chunks_exact(self.cols)) {
            to[..self.cols].copy_from_slice(from);
        }
        let x = self.put(lab, &x, self.half)?;

        let (code, columns, half, before) = match epilogue {
            Epilogue::Store => (EPILOGUE_STORE, matrix.rows, false, None),
            Epilogue::Add(before) => (EPILOGUE_ADD, matrix.rows, false, Some(before)),
            Epilogue::Swiglu => (EPILOGUE_SWIGLU, matrix.rows / 2, self.half, None),
        };
        let columns = columns as usize;
        let out_stride = columns + 3;
        let mut out = vec![UNTOUCHED; self.rows() * out_stride];
        if let Some(before) = before {
            for (to, from) in out.chunks_exact_mut(out_stride).zip(before.chunks_exact(columns)) {
                to[..columns].copy_from_slice(from);
            }
        }
        let address = self.put(lab, &out, half)?;
        let arguments = ProductArguments {
            matrix: *matrix,
            x,
            out: address,
            count: self.rows() as u32,
            x_stride: stride as u32,
            out_stride: out_stride as u32,
            epilogue: code,
        };
        lab.run(product::product(matrix, arguments.count), &arguments)?;
        let out = if half {
            lab.get::<u16>(address, out.len())?
                .iter()
                .map(|&x| f16::from_bits(x).to_f32())
                .collect()
        } else {
            lab.get::<f32>(address, out.len())?
        };
        let mut columns_of_all = Vec::new();
        for row in out.chunks_exact(out_stride) {
            ensure!(row[columns..].iter().all(|&x| x == UNTOUCHED), "written behind the columns");
            columns_of_all.extend_from_slice(&row[..columns]);
        }
        Ok(columns_of_all)
    }

    /// Puts numbers on the device as f16 or f32.
    fn put(&self, lab: &mut Lab<'_>, values: &[f32], half: bool) -> Result<Address> {
        if half {
            lab.put(&values.iter().map(|&x| f16::from_f32(x).to_bits()).collect::<Vec<_>>())
        } else {
            lab.put(values)
        }
    }
}
