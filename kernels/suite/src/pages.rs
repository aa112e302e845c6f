//! Page copies: whole pages, in order, nothing else touched.

use anyhow::Result;
use rewind_kernels::arguments::{Cache, CopyPagesArguments};
use rewind_kernels::geometry;

use crate::lab::same_bits;
use crate::{Case, Lab, Random};

pub(crate) const CASES: &[Case] = &[Case { name: "pages: chained copies", run: chained_copies }];

fn chained_copies(lab: &mut Lab<'_>) -> Result<()> {
    let mut random = Random::new(1);
    for (layers, heads, dim) in [(1, 1, 32), (2, 3, 64), (1, 1, 96)] {
        let mut cache = Cache { data: lab.zeros::<u16>(0)?, layers, heads, dim, pages: 6 };
        let page = geometry::page_elements(&cache);
        let mut expected: Vec<u16> = (0..6 * page).map(|_| random.word() as u16).collect();
        cache.data = lab.put(&expected)?;
        // The second copy reads what the first wrote, the third overwrites what the second read.
        let copies: [[u32; 2]; 5] = [[0, 4], [4, 2], [5, 4], [1, 1], [2, 5]];
        let arguments = CopyPagesArguments {
            cache,
            copies: lab.put(&copies)?,
            count: copies.len() as u32,
            unused: 0,
        };
        lab.run(geometry::copy_pages(&cache), &arguments)?;
        for [from, to] in copies.map(|copy| copy.map(|page| page as usize)) {
            expected.copy_within(from * page..(from + 1) * page, to * page);
        }
        let got = lab.get::<u16>(cache.data, expected.len())?;
        same_bits(&format!("{layers} layers, {heads} heads, dim {dim}"), &got, &expected)?;
    }
    Ok(())
}
