//! The LM head: its logits against the plain product's, its tiles against their definition, and the whole
//! way from weights to answers against the contract.

use anyhow::{Context, Result, ensure};
use half::f16;
use rewind_engine::sampling::Sampling;
use rewind_kernels::arguments::{
    Address, Answer, Choice, EPILOGUE_STORE, HeadArguments, LogitTile, Matrix, PADDING,
    ProductArguments,
};
use rewind_kernels::packing::INPUT_UNIT;
use rewind_kernels::product::product;
use rewind_kernels::sampling::{head, logits_stride, tiles as tiles_of};
use rewind_monitor::Gate;

use crate::lab::same_bits;
use crate::sampling::{DETECTORS, Rows, Wish, random_sampling};
use crate::tile::tiles;
use crate::weights::Weights;
use crate::{Case, Lab, Random, finish, logprobs};

pub(crate) const CASES: &[Case] = &[
    Case { name: "head: every format, odd vocabularies", run: formats },
    Case { name: "head: from weights to answers", run: answers },
    Case { name: "head: a row's bits in any company", run: company },
    Case { name: "head: rows that are not finite", run: not_finite },
];

/// What logits are before, and behind the vocabulary stay.
const BEFORE: f32 = 7.5;

fn formats(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(1);
    let mut counts = [1, 3, 8, 9, 16, 17, 70].into_iter().cycle();
    for vocabulary in [1, 31, 32, 33, 100] {
        for weights in Weights::in_every_format(vocabulary, 72, &mut random)? {
            let count = counts.next().unwrap_or(1);
            let x = Inputs::random(count, &weights, &mut random);
            let matrix = weights.put(lab)?;
            let wishes = random_wishes(count, vocabulary, &mut random);
            let mut rows = Rows::new(&wishes);
            if count > 5 {
                rows.choices[4] = Choice::PADDING;
            }
            let made = Made::run(lab, &matrix, &x, &rows)?;
            made.check(lab, &matrix, &x, &rows)
                .with_context(|| format!("{}, {count} rows", weights.name))?;
        }
    }
    Ok(())
}

/// All kernels after one another, as a pass runs them.
fn answers(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(2);
    for weights in Weights::in_every_format(1000, 40, &mut random)?.into_iter().step_by(2) {
        let count = 10;
        let x = Inputs::random(count, &weights, &mut random);
        let matrix = weights.put(lab)?;
        let mut wishes = random_wishes(count, weights.rows, &mut random);
        let before = Rows::new(&wishes);
        let made = Made::run(lab, &matrix, &x, &before)?;
        let (choices, lists) = (before.choices, before.lists);
        for (wish, logits) in wishes.iter_mut().zip(&made.logits) {
            wish.logits.clone_from(logits);
        }
        let rows = Rows { wishes: &wishes, choices, lists };

        let at = lab.room::<Answer>(count)?;
        rows.choose(lab, made.logits_at, at)?;
        let (answers, last) = finish::launch(lab, &rows, made.logits_at, made.tiles_at, at)?;
        let lists = logprobs::launch(lab, &rows, made.logits_at, at)?;
        for (i, (wish, choice)) in wishes.iter().zip(&rows.choices).enumerate() {
            finish::check_answer(wish, choice, &answers[i], last[i])
                .and_then(|()| logprobs::check_entries(wish, choice, &answers[i], &lists[i]))
                .with_context(|| format!("{}, row {i}: {:?}", weights.name, answers[i]))?;
        }
    }
    Ok(())
}

fn company(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(3);
    for weights in Weights::in_every_format(45, 100, &mut random)? {
        let pool = 70;
        let x = Inputs::random(pool, &weights, &mut random);
        let matrix = weights.put(lab)?;
        let wishes = random_wishes(pool, weights.rows, &mut random);
        let all = Made::run(lab, &matrix, &x, &Rows::new(&wishes))?;
        for count in [1, 3, 8, 16, 17] {
            let picked: Vec<_> = (0..count).map(|i| (5 * count + 3 * i) % pool).collect();
            let few: Vec<_> = picked.iter().map(|&row| wishes[row].clone()).collect();
            let made = Made::run(lab, &matrix, &x.take(&picked), &Rows::new(&few))?;
            for (i, &row) in picked.iter().enumerate() {
                let what = format!("{}, {count} rows, row {row}", weights.name);
                same_bits(&what, &made.logits[i], &all.logits[row])?;
                same_tiles(&what, &made.tiles[i], &all.tiles[row])?;
            }
        }
    }
    Ok(())
}

fn not_finite(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(4);
    let weights = Weights::new(None, 70, 40, &mut random)?;
    let matrix = weights.put(lab)?;
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = Inputs::random(9, &weights, &mut random);
        x.values[3 * x.cols + 5] = bad;
        let wishes = random_wishes(9, weights.rows, &mut random);
        let made = Made::run(lab, &matrix, &x, &Rows::new(&wishes))?;
        for (i, tiles) in made.tiles.iter().enumerate() {
            // Zero weights make NaN of an infinity, so that is what every tile of the row says.
            let poisoned = tiles.iter().all(|tile| tile.max.is_nan());
            let clean = tiles.iter().all(|tile| tile.max.is_finite());
            ensure!(if i == 3 { poisoned } else { clean }, "{bad}: row {i}: {tiles:?}");
        }
    }
    Ok(())
}

/// Wishes of every kind, whose logits are not known yet.
fn random_wishes(count: usize, vocabulary: usize, random: &mut Random) -> Vec<Wish> {
    let mut wish = |i: usize| {
        let gate = Gate { detector: DETECTORS[i % DETECTORS.len()], threshold: 0.5 };
        let plain = |change: &dyn Fn(&mut Sampling)| Wish {
            position: 1000 + i as u32,
            gate: i.is_multiple_of(2).then_some(gate),
            sums: i.is_multiple_of(3),
            ..Wish::sampled(vec![0.0; vocabulary], change)
        };
        match i % 5 {
            0 => plain(&|s| s.temperature = 0.0),
            1 => plain(&|s| s.seed = 7),
            2 => Wish { logprobs: Some(4), ..plain(&|s| s.temperature = 0.3) },
            3 => {
                let sampling = random_sampling(vocabulary, random);
                Wish { sampling, ..plain(&|_| ()) }
            }
            _ => Wish { chooses: false, ..plain(&|_| ()) },
        }
    };
    (0..count).map(&mut wish).collect()
}

/// What the head wrote, and where.
struct Made {
    logits: Vec<Vec<f32>>,
    tiles: Vec<Vec<LogitTile>>,
    logits_at: Address,
    tiles_at: Address,
}

impl Made {
    fn run(lab: &mut Lab<'_>, matrix: &Matrix, x: &Inputs, rows: &Rows<'_>) -> Result<Self> {
        let (count, vocabulary) = (x.rows(), matrix.rows as usize);
        let stride = logits_stride(matrix.rows) as usize;
        let tile_stride = tiles_of(matrix.rows) as usize;
        let logits_at = lab.put(&vec![BEFORE; count * stride])?;
        let tiles_at = lab.zeros::<LogitTile>(count * tile_stride)?;
        let arguments = HeadArguments {
            matrix: *matrix,
            x: x.put(lab)?,
            logits: logits_at,
            tiles: tiles_at,
            choices: lab.put(&rows.choices)?,
            count: count as u32,
            x_stride: x.stride() as u32,
            logits_stride: stride as u32,
            tile_stride: tile_stride as u32,
        };
        lab.run(head(matrix, arguments.count), &arguments)?;
        let logits: Vec<f32> = lab.get(logits_at, count * stride)?;
        let behind =
            logits.chunks(stride).all(|row| row[vocabulary..].iter().all(|&l| l == BEFORE));
        ensure!(behind, "written behind the vocabulary");
        let tiles: Vec<LogitTile> = lab.get(tiles_at, count * tile_stride)?;
        Ok(Self {
            logits: logits.chunks(stride).map(|row| row[..vocabulary].to_vec()).collect(),
            tiles: tiles.chunks(tile_stride).map(<[LogitTile]>::to_vec).collect(),
            logits_at,
            tiles_at,
        })
    }

    /// Compares logits with those of the plain product, and tiles with what the logits say.
    fn check(&self, lab: &mut Lab<'_>, matrix: &Matrix, x: &Inputs, rows: &Rows<'_>) -> Result<()> {
        let products = x.times(lab, matrix)?;
        for (i, choice) in rows.choices.iter().enumerate() {
            let (logits, tiles_of_row) = (&self.logits[i], &self.tiles[i]);
            let what = format!("row {i}, {choice:?}");
            if choice.position == PADDING {
                let nothing = vec![bytemuck::Zeroable::zeroed(); tiles_of_row.len()];
                same_bits(&what, logits, &vec![BEFORE; logits.len()])?;
                same_tiles(&what, tiles_of_row, &nothing)?;
            } else {
                same_bits(&what, logits, &products[i])?;
                same_tiles(&what, tiles_of_row, &tiles(logits, choice))?;
            }
        }
        Ok(())
    }
}

fn same_tiles(what: &str, got: &[LogitTile], expected: &[LogitTile]) -> Result<()> {
    ensure!(got.len() == expected.len(), "{what}: {} tiles", got.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let same = bytemuck::bytes_of(got) == bytemuck::bytes_of(expected);
        ensure!(same, "{what}, tile {i}: {got:?}, expected {expected:?}");
    }
    Ok(())
}

/// Rows that the head takes.
struct Inputs {
    values: Vec<f32>,
    cols: usize,
    half: bool,
}

impl Inputs {
    fn random(rows: usize, weights: &Weights, random: &mut Random) -> Self {
        // Scaled so that logits are spread as a model's are.
        let values = random.normals(rows * weights.cols, 8.0);
        Self { values, cols: weights.cols, half: weights.takes_half() }
    }

    fn rows(&self) -> usize {
        self.values.len() / self.cols
    }

    fn stride(&self) -> usize {
        self.cols.next_multiple_of(INPUT_UNIT)
    }

    fn take(&self, rows: &[usize]) -> Self {
        let row = |&row: &usize| &self.values[row * self.cols..][..self.cols];
        Self { values: rows.iter().flat_map(row).copied().collect(), ..*self }
    }

    fn put(&self, lab: &mut Lab<'_>) -> Result<Address> {
        let mut padded = vec![0.0; self.rows() * self.stride()];
        for (to, from) in padded.chunks_mut(self.stride()).zip(self.values.chunks(self.cols)) {
            to[..self.cols].copy_from_slice(from);
        }
        if self.half {
            lab.put(&padded.iter().map(|&x| f16::from_f32(x).to_bits()).collect::<Vec<_>>())
        } else {
            lab.put(&padded)
        }
    }

    /// The plain product, which has a suite of its own.
    fn times(&self, lab: &mut Lab<'_>, matrix: &Matrix) -> Result<Vec<Vec<f32>>> {
        let columns = matrix.rows as usize;
        let out = lab.room::<f32>(self.rows() * columns)?;
        let arguments = ProductArguments {
            matrix: *matrix,
            x: self.put(lab)?,
            out,
            count: self.rows() as u32,
            x_stride: self.stride() as u32,
            out_stride: matrix.rows,
            epilogue: EPILOGUE_STORE,
        };
        lab.run(product(matrix, arguments.count), &arguments)?;
        let out: Vec<f32> = lab.get(out, self.rows() * columns)?;
        Ok(out.chunks(columns).map(<[f32]>::to_vec).collect())
    }
}
