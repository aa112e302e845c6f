//! RMS norm, bit for bit: every step of it is rounded once and its order is written down in norm.cu.

use anyhow::Result;
use half::f16;
use rewind_kernels::arguments::{Address, NormArguments};
use rewind_kernels::geometry;

use crate::lab::same_bits;
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[
    Case { name: "norm: odd widths", run: widths },
    Case { name: "norm: gathered rows", run: gathered },
    Case { name: "norm: large, tiny and broken numbers", run: extremes },
];

/// Elements that nobody may write.
const UNTOUCHED: f32 = 7.5;

struct Shape {
    rows: usize,
    cols: usize,
    stream_stride: usize,
    out_stride: usize,
}

fn widths(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(1);
    for cols in [1, 2, 3, 4, 5, 31, 576, 1000, 1023, 1024, 1025, 4096] {
        let rows = if cols > 1000 { 2 } else { 3 };
        let stride = usize::next_multiple_of(cols, 4);
        let shape = Shape { rows, cols, stream_stride: stride, out_stride: stride + 32 };
        let stream = random.normals(rows * stride, 3.0);
        let weight = random.normals(cols, 1.0);
        check(lab, &shape, &stream, None, &weight, 1e-5)?;
    }
    Ok(())
}

fn gathered(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(2);
    let shape = Shape { rows: 4, cols: 100, stream_stride: 104, out_stride: 128 };
    let stream = random.normals(9 * shape.stream_stride, 1.0);
    let weight = random.normals(shape.cols, 1.0);
    check(lab, &shape, &stream, Some(&[8, 0, 3, 3]), &weight, 1e-6)
}

fn extremes(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(3);
    let shape = Shape { rows: 5, cols: 64, stream_stride: 64, out_stride: 64 };
    let mut stream = random.normals(5 * 64, 1.0);
    stream[..64].fill(0.0);
    stream[64..128].iter_mut().for_each(|x| *x *= 1e-22);
    // Beyond f16 after the norm: saturates there.
    stream[130] = 1e6;
    stream[200] = f32::INFINITY;
    stream[300] = f32::NAN;
    let mut weight = random.normals(64, 1.0);
    weight[2] = 3e4;
    check(lab, &shape, &stream, None, &weight, 1e-5)
}

fn check(
    lab: &mut Lab<'_>,
    shape: &Shape,
    stream: &[f32],
    index: Option<&[u32]>,
    weight: &[f32],
    epsilon: f32,
) -> Result<()> {
    let &Shape { rows, cols, stream_stride, out_stride } = shape;
    let mut expected = vec![UNTOUCHED; rows * out_stride];
    for (i, out) in expected.chunks_exact_mut(out_stride).enumerate() {
        let row = index.map_or(i, |index| index[i] as usize);
        let x = &stream[row * stream_stride..][..cols];
        let scale = 1.0 / (squares(x) / cols as f32 + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }

    let len = rows * out_stride;
    let mut arguments = NormArguments {
        stream: lab.put(stream)?,
        index: index.map_or(Ok(Address::NULL), |index| lab.put(index))?,
        weight: lab.put(weight)?,
        out: lab.put(&vec![UNTOUCHED; len])?,
        count: rows as u32,
        cols: cols as u32,
        stream_stride: stream_stride as u32,
        out_stride: out_stride as u32,
        epsilon,
        unused: 0,
    };
    lab.run(geometry::norm(false, rows as u32), &arguments)?;
    let wide = lab.get::<f32>(arguments.out, len)?;
    same_bits(&format!("{cols} columns"), &canonical(&wide), &canonical(&expected))?;

    arguments.out = lab.put(&vec![f16::from_f32(UNTOUCHED).to_bits(); len])?;
    lab.run(geometry::norm(true, rows as u32), &arguments)?;
    let narrow = lab.get::<u16>(arguments.out, len)?;
    let narrow: Vec<f32> = narrow.into_iter().map(|x| f16::from_bits(x).to_f32()).collect();
    let expected: Vec<f32> = expected.iter().map(|x| saturated(*x).to_f32()).collect();
    same_bits(&format!("{cols} columns in f16"), &canonical(&narrow), &canonical(&expected))
}

/// Sum of squares in the order of norm.cu.
fn squares(x: &[f32]) -> f32 {
    let mut threads = [0.0_f32; 256];
    for (i, x) in x.iter().enumerate() {
        let thread = &mut threads[i / 4 % 256];
        *thread = x.mul_add(*x, *thread);
    }
    threads.chunks_exact(32).map(butterfly).reduce(|sum, warp| sum + warp).unwrap_or_default()
}

/// Sum of a warp's lanes, added in pairs 16, 8, 4, 2, 1 apart.
pub(crate) fn butterfly(lanes: &[f32]) -> f32 {
    let mut lanes = lanes.to_vec();
    for apart in [16, 8, 4, 2, 1] {
        for i in 0..apart {
            lanes[i] += lanes[i + apart];
        }
    }
    lanes[0]
}

/// To f16, nearest even, saturating; NaN stays.
pub(crate) fn saturated(x: f32) -> f16 {
    f16::from_f32(if x.is_nan() { x } else { x.clamp(-65504.0, 65504.0) })
}

/// Which NaN comes out of an operation is the machine's choice: all become one.
pub(crate) fn canonical(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }).collect()
}
