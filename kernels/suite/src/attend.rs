//! Attention of generated and prompt rows.
//!
//! Against plain f64 arithmetic over the same f16 entries within [`TOLERANCE`]; against itself bit for bit:
//! alone and in company, on other pages, in other grids, cut into any tiles. Whatever no row may see
//! is NaN in every case here.

use anyhow::{Result, ensure};
use half::f16;
use rewind_kernels::arguments::{Address, AttendArguments, Cache, PADDING, PAGE_TOKENS, Row};
use rewind_kernels::geometry;

use crate::lab::same_bits;
use crate::norm::{canonical, saturated};
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[
    Case { name: "attend: head sizes and groups", run: shapes },
    Case { name: "attend: more splits than lanes", run: many_splits },
    Case { name: "attend: a row alone and in company", run: company },
    Case { name: "attend: prompt tiles of any cut", run: tiles },
    Case { name: "attend: later rows of a tile do not poison", run: poison },
    Case { name: "attend: queries of any magnitude", run: magnitudes },
    Case { name: "attend: output in f16", run: narrow_output },
];

/// Largest difference from f64, relative to the largest value. The emulator stays below 1e-6; GPUs
/// cut sums of products where it rounds, so they get room.
const TOLERANCE: f64 = 2e-5;

/// Outputs that nobody may write.
const UNTOUCHED: f32 = 7.5;

/// Positions around everything that has a border, and a row that is none.
const BORDERS: [u32; 9] = [0, 1, 31, 32, PADDING, 255, 256, 257, 700];

fn shapes(lab: &mut Lab<'_>) -> Result<()> {
    for (head_dim, kv_heads, group) in [
        (2, 1, 1),
        (8, 2, 1),
        (10, 1, 3),
        (64, 3, 3),
        (80, 1, 4),
        (96, 1, 8),
        (128, 2, 9),
        (256, 1, 1),
        (32, 1, 20),
    ] {
        let sequence = Sequence::new(head_dim, kv_heads, group, 701);
        let out = sequence.generated(lab, &BORDERS, Setting::default())?;
        sequence.compare(&BORDERS, &out)?;
    }
    Ok(())
}

fn many_splits(lab: &mut Lab<'_>) -> Result<()> {
    let sequence = Sequence::new(8, 1, 2, 8500);
    let positions = [32 * 256 - 1, 32 * 256, 33 * 256 + 5, 8499];
    let generated = sequence.generated(lab, &positions, Setting::default())?;
    sequence.compare(&positions, &generated)?;
    let prompt = sequence.prompt(lab, &positions, 4, Setting::default())?;
    same_bits("prompt and generated rows", &prompt, &generated)
}

fn company(lab: &mut Lab<'_>) -> Result<()> {
    let sequence = Sequence::new(64, 2, 3, 701);
    let all: Vec<u32> = [257, 3, 700, 64, 0, 255, 31, 256, 511, 512, 90, 33, 600, 1, 127, 128, 300]
        .into_iter()
        .collect();
    let together = sequence.generated(lab, &all, Setting::default())?;
    let width = sequence.row_len();
    for (i, count) in [1, 2, 3, 8, 17].into_iter().enumerate() {
        // Other pages and more splits each time; the rows from the end, so that neighbours differ.
        let setting = Setting { scatter: 1 + i, spare_splits: i as u32, ..Setting::default() };
        for (n, rows) in all.rchunks(count).enumerate().take(3) {
            let end = all.len() - n * count;
            let some = sequence.generated(lab, rows, setting)?;
            let expected = &together[(end - rows.len()) * width..end * width];
            same_bits(&format!("{count} rows, up to {end}"), &some, expected)?;
        }
    }
    Ok(())
}

fn tiles(lab: &mut Lab<'_>) -> Result<()> {
    for (head_dim, kv_heads, group) in [(64, 1, 3), (128, 1, 9), (10, 2, 1), (16, 1, 40)] {
        let sequence = Sequence::new(head_dim, kv_heads, group, 520);
        let ranges: [Vec<u32>; 3] = [
            (0..12).collect(),
            (250..262).collect(),
            vec![3, 31, 32, 200, 255, 256, 300, 511, 512, 519],
        ];
        for positions in ranges {
            let generated = sequence.generated(lab, &positions, Setting::default())?;
            for cut in [usize::MAX, 1, 3] {
                let setting = Setting { scatter: cut % 5, ..Setting::default() };
                let prompt = sequence.prompt(lab, &positions, cut, setting)?;
                let what = format!("head_dim {head_dim}, group {group}, tiles of {cut}");
                same_bits(&format!("{what}, positions {positions:?}"), &prompt, &generated)?;
            }
        }
    }
    // Padding behind the rows of a tile.
    let sequence = Sequence::new(64, 1, 3, 40);
    let positions = [30, 31, 32, PADDING, PADDING];
    let prompt = sequence.prompt(lab, &positions, usize::MAX, Setting::default())?;
    sequence.compare(&positions, &prompt)
}

fn poison(lab: &mut Lab<'_>) -> Result<()> {
    // The second row of a tile of three, so that the first must not see its neighbour.
    const BROKEN: usize = 257;
    const DIM: usize = 5;
    let clean = Sequence::new(20, 1, 3, 300);
    let positions: Vec<u32> = (250..265).collect();
    let expected = clean.generated(lab, &positions, Setting::default())?;

    let mut broken_value = clean.clone();
    broken_value.values[BROKEN * 20 + DIM] = f16::NAN;
    let mut broken_key = clean.clone();
    broken_key.keys[BROKEN * 20 + DIM] = f16::NAN;
    for (what, sequence) in [("value", broken_value), ("key", broken_key)] {
        let mut expected = expected.clone();
        for (row, position) in expected.chunks_exact_mut(clean.row_len()).zip(&positions) {
            for (i, out) in row.iter_mut().enumerate() {
                if *position as usize >= BROKEN && (what == "key" || i % 20 == DIM) {
                    *out = f32::NAN;
                }
            }
        }
        let generated = sequence.generated(lab, &positions, Setting::default())?;
        same_bits(&format!("generated, {what}"), &canonical(&generated), &canonical(&expected))?;
        for cut in [usize::MAX, 1, 3] {
            let prompt = sequence.prompt(lab, &positions, cut, Setting::default())?;
            let what = format!("prompt, tiles of {cut}, {what}");
            same_bits(&what, &canonical(&prompt), &canonical(&expected))?;
        }
    }
    Ok(())
}

fn magnitudes(lab: &mut Lab<'_>) -> Result<()> {
    let positions = [0, 40, 300];
    // The largest makes scores of about 1e7, so that one position takes all; beyond f16 by far.
    for magnitude in [1e-38, 1e-30, 1e-4, 1e6] {
        let mut sequence = Sequence::new(64, 1, 3, 301);
        sequence.magnitude = magnitude;
        let out = sequence.generated(lab, &positions, Setting::default())?;
        sequence.compare(&positions, &out)?;
    }
    for magnitude in [f32::INFINITY, f32::NAN] {
        let mut sequence = Sequence::new(64, 1, 3, 301);
        sequence.magnitude = magnitude;
        let generated = sequence.generated(lab, &positions, Setting::default())?;
        let prompt = sequence.prompt(lab, &positions, usize::MAX, Setting::default())?;
        for out in [generated, prompt] {
            ensure!(out.iter().all(|x| x.is_nan()), "a query of {magnitude} gives {:?}", out[0]);
        }
    }
    Ok(())
}

fn narrow_output(lab: &mut Lab<'_>) -> Result<()> {
    let sequence = Sequence::new(10, 2, 3, 301);
    let positions = [5, PADDING, 300];
    let wide = sequence.generated(lab, &positions, Setting::default())?;
    let expected: Vec<f32> = wide.iter().map(|x| saturated(*x).to_f32()).collect();
    let setting = Setting { out_f16: true, ..Setting::default() };
    let generated = sequence.generated(lab, &positions, setting)?;
    same_bits("generated", &generated, &expected)?;
    let wide = sequence.prompt(lab, &[5, 300], 2, Setting::default())?;
    let expected: Vec<f32> = wide.iter().map(|x| saturated(*x).to_f32()).collect();
    same_bits("prompt", &sequence.prompt(lab, &[5, 300], 2, setting)?, &expected)
}

/// How a sequence is laid out and run; the bits must not depend on it.
#[derive(Clone, Copy, Debug, Default)]
struct Setting {
    /// Which pages it gets.
    scatter: usize,
    /// Splits of the grid and of the partials that nobody needs.
    spare_splits: u32,
    /// Outputs in f16.
    out_f16: bool,
}

/// Keys and values of one sequence.
#[derive(Clone)]
struct Sequence {
    head_dim: usize,
    kv_heads: usize,
    heads: usize,
    len: usize,
    /// [position][key-value head][dim]
    keys: Vec<f16>,
    values: Vec<f16>,
    /// Of the queries, which are otherwise a function of their position.
    magnitude: f32,
}

impl Sequence {
    fn new(head_dim: usize, kv_heads: usize, group: usize, len: usize) -> Self {
        let mut random = Random::new((head_dim * 1000 + group) as u64);
        let mut halves = || {
            random.normals(len * kv_heads * head_dim, 1.0).into_iter().map(f16::from_f32).collect()
        };
        let (keys, values) = (halves(), halves());
        Self { head_dim, kv_heads, heads: kv_heads * group, len, keys, values, magnitude: 2.0 }
    }

    fn row_len(&self) -> usize {
        self.heads * self.head_dim
    }

    /// [head][dim]
    fn query(&self, position: u32) -> Vec<f32> {
        Random::new(u64::from(position)).normals(self.row_len(), self.magnitude)
    }

    /// Attention of a row in f64.
    fn reference(&self, position: u32) -> Vec<f64> {
        let (dim, query) = (self.head_dim, self.query(position));
        let mut out = Vec::new();
        for (head, query) in query.chunks_exact(dim).enumerate() {
            let kv_head = head / (self.heads / self.kv_heads);
            let entry = |of: &[f16], position: usize, d: usize| {
                of[(position * self.kv_heads + kv_head) * dim + d].to_f64()
            };
            let scores: Vec<f64> = (0..=position as usize)
                .map(|p| {
                    let dot: f64 =
                        (0..dim).map(|d| f64::from(query[d]) * entry(&self.keys, p, d)).sum();
                    dot / (dim as f64).sqrt()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..dim).map(|d| {
                let product = |(p, weight): (usize, &f64)| weight * entry(&self.values, p, d);
                weights.iter().enumerate().map(product).sum::<f64>() / sum
            }));
        }
        out
    }

    /// Compares rows with the reference; padding must be untouched.
    fn compare(&self, positions: &[u32], out: &[f32]) -> Result<()> {
        ensure!(out.len() == positions.len() * self.row_len(), "{} outputs", out.len());
        let largest = self.values.iter().map(|x| x.to_f64().abs()).fold(0.0, f64::max);
        for (row, position) in out.chunks_exact(self.row_len()).zip(positions) {
            if *position == PADDING {
                ensure!(row.iter().all(|x| *x == UNTOUCHED), "a padding row was written");
                continue;
            }
            for (i, (x, exact)) in row.iter().zip(self.reference(*position)).enumerate() {
                let error = (f64::from(*x) - exact).abs() / largest;
                ensure!(
                    error <= TOLERANCE,
                    "head_dim {}, {} heads, position {position}: output {i} is {x}, not {exact}: {error:e}",
                    self.head_dim,
                    self.heads
                );
            }
        }
        Ok(())
    }

    /// Runs rows as generated ones.
    fn generated(
        &self,
        lab: &mut Lab<'_>,
        positions: &[u32],
        setting: Setting,
    ) -> Result<Vec<f32>> {
        let mut arguments = self.arguments(lab, positions, setting)?;
        let (heads, rows) = (arguments.heads, positions.len() as u32);
        let last = positions.iter().filter(|position| **position != PADDING).max();
        arguments.count = rows;
        arguments.splits = geometry::splits(last.copied().unwrap_or(0)) + setting.spare_splits;
        let partials = geometry::partials(&arguments.cache, heads, arguments.splits, rows);
        arguments.partials = lab.room::<f32>(partials)?;
        lab.run(geometry::attend(&arguments.cache, heads, arguments.splits, rows), &arguments)?;
        lab.run(geometry::merge(heads, arguments.head_dim, rows), &arguments)?;
        self.outputs(lab, &arguments, positions.len())
    }

    /// Runs rows as prompt ones, in tiles of up to `cut`.
    fn prompt(
        &self,
        lab: &mut Lab<'_>,
        positions: &[u32],
        cut: usize,
        setting: Setting,
    ) -> Result<Vec<f32>> {
        let mut arguments = self.arguments(lab, positions, setting)?;
        let room = geometry::prompt_rows(&arguments.cache, arguments.heads) as usize;
        let cut = cut.min(room);
        let tiles: Vec<[u32; 2]> = (0..positions.len())
            .step_by(cut)
            .map(|first| [first as u32, cut.min(positions.len() - first) as u32])
            .collect();
        arguments.tiles = lab.put(&tiles)?;
        arguments.count = tiles.len() as u32;
        let geometry = geometry::attend_prompt(&arguments.cache, arguments.heads, arguments.count);
        lab.run(geometry, &arguments)?;
        self.outputs(lab, &arguments, positions.len())
    }

    /// Puts rows, queries and the sequence on the device: layer 1 of 2, scattered over the pages of a cache that
    /// is NaN everywhere else, its table the second of two.
    fn arguments(
        &self,
        lab: &mut Lab<'_>,
        positions: &[u32],
        setting: Setting,
    ) -> Result<AttendArguments> {
        const LAYERS: usize = 2;
        const LAYER: usize = 1;
        const TABLE: usize = 3;
        let tokens = PAGE_TOKENS as usize;
        let dim = self.head_dim.next_multiple_of(32);
        let used = self.len.div_ceil(tokens);
        let page_count = used + 3;
        let mut pages: Vec<u32> = (0..page_count as u32).collect();
        let mut random = Random::new(setting.scatter as u64);
        for i in (1..page_count).rev() {
            pages.swap(i, random.below(i + 1));
        }
        let size = tokens * dim;
        let mut entries = vec![f16::NAN.to_bits(); page_count * LAYERS * self.kv_heads * 2 * size];
        for position in 0..self.len {
            let page = pages[position / tokens] as usize;
            let slot = position % tokens;
            for head in 0..self.kv_heads {
                let entry = ((page * LAYERS + LAYER) * self.kv_heads + head) * 2 * size;
                let from = (position * self.kv_heads + head) * self.head_dim;
                for d in 0..dim {
                    let bits =
                        |of: &[f16]| if d < self.head_dim { of[from + d].to_bits() } else { 0 };
                    entries[entry + slot * dim + d] = bits(&self.keys);
                    entries[entry + size + d * tokens + slot] = bits(&self.values);
                }
            }
        }
        let mut table = vec![u32::MAX; TABLE];
        table.extend(&pages[..used]);

        let mut queries = Vec::new();
        let mut rows = Vec::new();
        for (slot, &position) in positions.iter().enumerate() {
            rows.push(Row { token: 0, position, table: TABLE as u32, slot: slot as u32 });
            for head in self.query(position).chunks_exact(self.head_dim) {
                queries.extend(head);
                queries.resize(queries.len() + dim - self.head_dim, 0.0);
            }
        }
        let out_stride = self.row_len() + 8;
        let untouched = f16::from_f32(UNTOUCHED).to_bits();
        let out = if setting.out_f16 {
            lab.put(&vec![untouched; positions.len() * out_stride])?
        } else {
            lab.put(&vec![UNTOUCHED; positions.len() * out_stride])?
        };
        Ok(AttendArguments {
            queries: lab.put(&queries)?,
            rows: lab.put(&rows)?,
            pages: lab.put(&table)?,
            cache: Cache {
                data: lab.put(&entries)?,
                layers: LAYERS as u32,
                heads: self.kv_heads as u32,
                dim: dim as u32,
                pages: page_count as u32,
            },
            tiles: Address::NULL,
            partials: Address::NULL,
            out,
            layer: LAYER as u32,
            count: 0,
            heads: self.heads as u32,
            head_dim: self.head_dim as u32,
            splits: 0,
            out_stride: out_stride as u32,
            out_f16: u32::from(setting.out_f16),
            scale: 1.0 / (self.head_dim as f32).sqrt(),
        })
    }

    /// Reads outputs; what stands behind a row must be untouched.
    fn outputs(
        &self,
        lab: &mut Lab<'_>,
        arguments: &AttendArguments,
        rows: usize,
    ) -> Result<Vec<f32>> {
        let stride = arguments.out_stride as usize;
        let all = if arguments.out_f16 == 1 {
            let bits = lab.get::<u16>(arguments.out, rows * stride)?;
            bits.into_iter().map(|x| f16::from_bits(x).to_f32()).collect()
        } else {
            lab.get::<f32>(arguments.out, rows * stride)?
        };
        let mut out = Vec::new();
        for row in all.chunks_exact(stride) {
            let (row, behind) = row.split_at(self.row_len());
            ensure!(behind.iter().all(|x| *x == UNTOUCHED), "columns behind a row were written");
            out.extend(row);
        }
        Ok(out)
    }
}
