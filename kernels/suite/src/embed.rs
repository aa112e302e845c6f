//! Embeddings, bit for bit: a weight's exact value is its code times its scale, rounded once.

use anyhow::Result;
use rewind_kernels::arguments::{EmbedArguments, LAST_OF, PADDING, Row};
use rewind_kernels::product;

use crate::lab::same_bits;
use crate::weights::Weights;
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[Case { name: "embed: every format", run: every_format }];

/// Elements that nobody may write.
const UNTOUCHED: f32 = 7.5;

fn every_format(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(1);
    for (vocabulary, cols) in [(1, 8), (37, 33), (50, 100), (20, 576)] {
        for weights in Weights::in_every_format(vocabulary, cols, &mut random)? {
            check(lab, &weights, &mut random)?;
        }
    }
    Ok(())
}

fn check(lab: &mut Lab<'_>, weights: &Weights, random: &mut Random) -> Result<()> {
    let Weights { rows: vocabulary, cols, .. } = *weights;
    let last: Vec<u32> = (0..4).map(|_| random.below(vocabulary) as u32).collect();
    // Every token, then the last ones of the slots, with rows in between that are none.
    let mut tokens: Vec<u32> = (0..vocabulary as u32).collect();
    tokens.extend((0..4).map(|slot| LAST_OF | slot));
    let rows: Vec<_> = tokens
        .into_iter()
        .enumerate()
        .map(|(i, token)| {
            let position = if i % 5 == 3 { PADDING } else { i as u32 };
            Row { token, position, table: 0, slot: 0 }
        })
        .collect();

    let stride = cols + 5;
    let matrix = weights.put(lab)?;
    let arguments = EmbedArguments {
        matrix,
        rows: lab.put(&rows)?,
        last: lab.put(&last)?,
        stream: lab.put(&vec![UNTOUCHED; rows.len() * stride])?,
        count: rows.len() as u32,
        stride: stride as u32,
    };
    lab.run(product::embed(arguments.count), &arguments)?;
    let got: Vec<f32> = lab.get(arguments.stream, rows.len() * stride)?;

    let mut expected = vec![UNTOUCHED; rows.len() * stride];
    for (out, row) in expected.chunks_exact_mut(stride).zip(&rows) {
        let token = match row.token & LAST_OF {
            0 => row.token,
            _ => last[(row.token & !LAST_OF) as usize],
        };
        for (col, out) in out[..cols].iter_mut().enumerate() {
            let padding = row.position == PADDING;
            *out = if padding { 0.0 } else { weights.value(token as usize, col) };
        }
    }
    same_bits(&weights.name, &got, &expected)
}
