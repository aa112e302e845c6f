//! Biases, norms, rotation and the paged write, bit for bit against plain Rust.

use anyhow::Result;
use rewind_kernels::arguments::{Address, Cache, PADDING, PAGE_TOKENS, RotateArguments, Row};
use rewind_kernels::geometry;

use crate::lab::same_bits;
use crate::norm::{butterfly, saturated};
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[
    Case { name: "rotate: head sizes", run: head_sizes },
    Case { name: "rotate: biases and norms", run: biases_and_norms },
    Case { name: "rotate: ragged batch over scattered pages", run: ragged },
];

/// What nobody may write, in queries and cache.
const UNTOUCHED: f32 = 7.5;
const UNTOUCHED_BITS: u16 = 0x4780;

#[derive(Clone, Copy)]
struct Shape {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    bias: bool,
    query_norm: bool,
    key_norm: bool,
}

fn head_sizes(lab: &mut Lab<'_>) -> Result<()> {
    for head_dim in [2, 8, 10, 62, 64, 80, 128, 256] {
        let plain = Shape {
            heads: 3,
            kv_heads: 1,
            head_dim,
            bias: false,
            query_norm: false,
            key_norm: false,
        };
        check(lab, plain, &[0, 33])?;
        check(lab, Shape { bias: true, query_norm: true, key_norm: true, ..plain }, &[5])?;
    }
    Ok(())
}

fn biases_and_norms(lab: &mut Lab<'_>) -> Result<()> {
    for bits in 0..8 {
        let shape = Shape {
            heads: 6,
            kv_heads: 2,
            head_dim: 20,
            bias: bits & 1 != 0,
            query_norm: bits & 2 != 0,
            key_norm: bits & 4 != 0,
        };
        check(lab, shape, &[40])?;
    }
    Ok(())
}

fn ragged(lab: &mut Lab<'_>) -> Result<()> {
    let shape = Shape {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        bias: true,
        query_norm: false,
        key_norm: true,
    };
    check(lab, shape, &[0, PADDING, 31, 32, 95, PADDING, 64])
}

/// One row at each position, each its own sequence of up to three pages.
fn check(lab: &mut Lab<'_>, shape: Shape, positions: &[u32]) -> Result<()> {
    const LAYERS: u32 = 2;
    const LAYER: u32 = 1;
    const EPSILON: f32 = 1e-6;
    let Shape { heads, kv_heads, head_dim, .. } = shape;
    let (dim, half) = (head_dim as usize, head_dim as usize / 2);
    let mut random = Random::new(u64::from(head_dim));
    let all = (heads + 2 * kv_heads) as usize;
    let stride = all * dim + 4;
    let qkv = random.normals(positions.len() * stride, 2.0);
    let bias = random.normals(all * dim, 1.0);
    let norms = [random.normals(dim, 1.0), random.normals(dim, 1.0)];
    let angles = random.normals(96 * half, 3.0);
    let cosines: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
    let sines: Vec<f32> = angles.iter().map(|x| x.sin()).collect();

    let page_count = 3 * positions.len() as u32;
    // 5 and the number of pages share no factor in any case.
    let pages: Vec<u32> = (0..page_count).map(|i| (5 * i + 2) % page_count).collect();
    let rows: Vec<Row> = (positions.iter().zip(0..))
        .map(|(&position, i)| Row { token: 0, position, table: 3 * i, slot: i })
        .collect();
    let padded = head_dim.next_multiple_of(32);
    let mut cache = Cache {
        data: Address::NULL,
        layers: LAYERS,
        heads: kv_heads,
        dim: padded,
        pages: page_count,
    };
    let cache_len = page_count as usize * geometry::page_elements(&cache);
    cache.data = lab.put(&vec![UNTOUCHED_BITS; cache_len])?;
    let padded = padded as usize;
    let queries_len = positions.len() * heads as usize * padded;
    let put_if = |lab: &mut Lab<'_>, wanted: bool, values: &[f32]| {
        if wanted { lab.put(values) } else { Ok(Address::NULL) }
    };
    let arguments = RotateArguments {
        qkv: lab.put(&qkv)?,
        bias: put_if(lab, shape.bias, &bias)?,
        query_norm: put_if(lab, shape.query_norm, &norms[0])?,
        key_norm: put_if(lab, shape.key_norm, &norms[1])?,
        cosines: lab.put(&cosines)?,
        sines: lab.put(&sines)?,
        rows: lab.put(&rows)?,
        pages: lab.put(&pages)?,
        queries: lab.put(&vec![UNTOUCHED; queries_len])?,
        cache,
        layer: LAYER,
        count: rows.len() as u32,
        heads,
        head_dim,
        qkv_stride: stride as u32,
        epsilon: EPSILON,
    };
    lab.run(geometry::rotate(&cache, heads, rows.len() as u32), &arguments)?;

    let mut queries = vec![UNTOUCHED; queries_len];
    let mut entries = vec![UNTOUCHED_BITS; cache_len];
    for (r, row) in rows.iter().enumerate().filter(|(_, row)| row.position != PADDING) {
        let angles = row.position as usize * half..(row.position as usize + 1) * half;
        for head in 0..all {
            let mut x = qkv[r * stride + head * dim..][..dim].to_vec();
            if shape.bias {
                x.iter_mut().zip(&bias[head * dim..]).for_each(|(x, bias)| *x += bias);
            }
            let is_query = head < heads as usize;
            let is_value = head >= (heads + kv_heads) as usize;
            if is_query && shape.query_norm {
                norm(&mut x, &norms[0], EPSILON);
            } else if !is_query && !is_value && shape.key_norm {
                norm(&mut x, &norms[1], EPSILON);
            }
            if !is_value {
                rotate(&mut x, &cosines[angles.clone()], &sines[angles.clone()]);
            }
            x.resize(padded, 0.0);
            if is_query {
                queries[(r * heads as usize + head) * padded..][..padded].copy_from_slice(&x);
                continue;
            }
            let head = (head - heads as usize) % kv_heads as usize;
            let page = pages[row.table as usize + (row.position / PAGE_TOKENS) as usize];
            let entry = ((page * LAYERS + LAYER) * kv_heads) as usize + head;
            let slot = (row.position % PAGE_TOKENS) as usize;
            let size = PAGE_TOKENS as usize * padded;
            for (d, x) in x.iter().enumerate() {
                let at = if is_value {
                    size + d * PAGE_TOKENS as usize + slot
                } else {
                    slot * padded + d
                };
                entries[2 * entry * size + at] = saturated(*x).to_bits();
            }
        }
    }
    let what = format!("head_dim {head_dim}, positions {positions:?}");
    let got = lab.get::<f32>(arguments.queries, queries_len)?;
    same_bits(&format!("queries, {what}"), &got, &queries)?;
    let got = lab.get::<u16>(cache.data, cache_len)?;
    same_bits(&format!("cache, {what}"), &got, &entries)
}

/// RMS norm of a head in the order of rotate.cu.
fn norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let half = x.len() / 2;
    let mut lanes = [0.0_f32; 32];
    for i in 0..half {
        let lane = &mut lanes[i % 32];
        *lane = x[i].mul_add(x[i], *lane);
        *lane = x[i + half].mul_add(x[i + half], *lane);
    }
    let scale = 1.0 / (butterfly(&lanes) / x.len() as f32 + epsilon).sqrt();
    x.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
}

fn rotate(x: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let half = x.len() / 2;
    for i in 0..half {
        let (a, b) = (x[i], x[i + half]);
        x[i] = a.mul_add(cosines[i], -(b * sines[i]));
        x[i + half] = b.mul_add(cosines[i], a * sines[i]);
    }
}
