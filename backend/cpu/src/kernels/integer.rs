//! Products with integer weights and 8-bit activations, see [`crate::order::integer_dot`].
//!
//! The integer sums of a block are exact, so only the multiplication by the scales and the float sums
//! over blocks have an order. Four rows of activations at a time share the unpacking of a block: their
//! integer and float sums, the codes and the constants fill sixteen registers. A panel is small enough
//! to stay in the L1 cache while all rows pass over it.

use std::hint::black_box;

use half::f16;

use super::{Product, put};
use crate::aligned::LINE;
use crate::arch::{Panel, QUADS};
use crate::matrix::{BlockScales, Groups};
use crate::rows::ActivationBlock;

/// A width of codes.
pub(super) trait Width {
    /// Four bytes of a row: as many codes, or parts of more.
    type Quad: Copy;
    /// Vectors of them in a block.
    const QUADS: usize;
    /// Sums of one block: `codes` has [`QUADS`](Self::QUADS) lanes.
    fn dot<P: Panel, const A: usize>(
        p: P,
        codes: &[P::Lanes<Self::Quad>],
        x: [&ActivationBlock; A],
    ) -> [P::I; A];
}

/// 8-bit codes.
pub(super) struct Eight;

impl Width for Eight {
    type Quad = [i8; 4];
    const QUADS: usize = QUADS;

    #[inline(always)]
    fn dot<P: Panel, const A: usize>(
        p: P,
        codes: &[P::Lanes<[i8; 4]>],
        x: [&ActivationBlock; A],
    ) -> [P::I; A] {
        p.dot8(codes, x)
    }
}

/// 6-bit codes.
pub(super) struct Six;

impl Width for Six {
    type Quad = [u8; 4];
    const QUADS: usize = QUADS / 4 * 3;

    #[inline(always)]
    fn dot<P: Panel, const A: usize>(
        p: P,
        codes: &[P::Lanes<[u8; 4]>],
        x: [&ActivationBlock; A],
    ) -> [P::I; A] {
        p.dot6(codes, x)
    }
}

/// 4-bit codes.
pub(super) struct Four;

impl Width for Four {
    type Quad = [u8; 4];
    const QUADS: usize = QUADS / 2;

    #[inline(always)]
    fn dot<P: Panel, const A: usize>(
        p: P,
        codes: &[P::Lanes<[u8; 4]>],
        x: [&ActivationBlock; A],
    ) -> [P::I; A] {
        p.dot4(codes, x)
    }
}

/// Scales of a panel.
trait Scales<P: Panel>: Copy {
    /// Those of a block.
    type Block: Copy;
    fn of(&self, p: P, block: usize) -> Self::Block;
    /// Adds the dot products of a block to `total`.
    fn add(p: P, scales: Self::Block, dots: P::F, x: &ActivationBlock, total: P::F) -> P::F;
}

/// One for each row.
struct RowScales<'a, P: Panel>(&'a P::Lanes<f32>);

/// One for each row and each `1 << shift` blocks.
struct GroupScales<'a, P: Panel> {
    groups: &'a [P::Lanes<f16>],
    shift: u32,
}

/// As many scales, and offsets.
struct AffineScales<'a, P: Panel> {
    scales: GroupScales<'a, P>,
    offsets: GroupScales<'a, P>,
}

impl<P: Panel> Scales<P> for RowScales<'_, P> {
    type Block = P::F;

    #[inline(always)]
    fn of(&self, p: P, _: usize) -> P::F {
        p.load(self.0)
    }

    #[inline(always)]
    fn add(p: P, scales: P::F, dots: P::F, x: &ActivationBlock, total: P::F) -> P::F {
        p.fma(dots, p.mul(scales, p.splat(x.scale)), total)
    }
}

impl<'a, P: Panel> GroupScales<'a, P> {
    #[inline(always)]
    fn new(groups: &'a Groups, panel: usize) -> Self {
        let Groups { values, per_row, shift } = groups;
        Self { groups: &P::lanes(values)[panel * per_row..][..*per_row], shift: *shift }
    }
}

impl<P: Panel> Scales<P> for GroupScales<'_, P> {
    type Block = P::F;

    #[inline(always)]
    fn of(&self, p: P, block: usize) -> P::F {
        p.load_f16(&self.groups[block >> self.shift])
    }

    #[inline(always)]
    fn add(p: P, scales: P::F, dots: P::F, x: &ActivationBlock, total: P::F) -> P::F {
        RowScales::add(p, scales, dots, x, total)
    }
}

impl<P: Panel> Scales<P> for AffineScales<'_, P> {
    type Block = [P::F; 2];

    #[inline(always)]
    fn of(&self, p: P, block: usize) -> [P::F; 2] {
        [self.scales.of(p, block), self.offsets.of(p, block)]
    }

    #[inline(always)]
    fn add(
        p: P,
        [scales, offsets]: [P::F; 2],
        dots: P::F,
        x: &ActivationBlock,
        total: P::F,
    ) -> P::F {
        let total = RowScales::add(p, scales, dots, x, total);
        p.fma(offsets, p.splat(x.scale * x.sum as f32), total)
    }
}

/// All outputs of `product.panels`; `codes` are those of the whole matrix, `blocks` a row's.
#[inline(always)]
pub(super) fn product<P: Panel, W: Width>(
    p: P,
    codes: &[W::Quad],
    scales: &BlockScales,
    blocks: usize,
    product: &mut Product<'_>,
) {
    let codes = P::lanes(codes);
    for panel in product.panels(P::WIDTH) {
        let codes = &codes[panel * blocks * W::QUADS..][..blocks * W::QUADS];
        match scales {
            BlockScales::Row(scales) => {
                let scales = RowScales::<P>(&P::lanes(scales)[panel]);
                across::<P, W, _>(p, codes, scales, panel, product);
            }
            BlockScales::Group(groups) => {
                let scales = GroupScales::<P>::new(groups, panel);
                across::<P, W, _>(p, codes, scales, panel, product);
            }
            BlockScales::Affine { scales, offsets } => {
                let [scales, offsets] = [scales, offsets].map(|g| GroupScales::new(g, panel));
                let scales = AffineScales::<P> { scales, offsets };
                across::<P, W, _>(p, codes, scales, panel, product);
            }
        }
    }
}

/// A panel with all rows of activations.
#[inline(always)]
fn across<P: Panel, W: Width, S: Scales<P>>(
    p: P,
    codes: &[P::Lanes<W::Quad>],
    scales: S,
    panel: usize,
    product: &mut Product<'_>,
) {
    let mut m = 0;
    while m < product.out.len() {
        m += match product.out.len() - m {
            1 => tile::<P, W, S, 1>(p, codes, scales, panel, product, m),
            2 => tile::<P, W, S, 2>(p, codes, scales, panel, product, m),
            3 => tile::<P, W, S, 3>(p, codes, scales, panel, product, m),
            _ => tile::<P, W, S, 4>(p, codes, scales, panel, product, m),
        };
    }
}

/// A panel with A rows of activations from `m` on; gives A.
#[inline(always)]
fn tile<P: Panel, W: Width, S: Scales<P>, const A: usize>(
    p: P,
    codes: &[P::Lanes<W::Quad>],
    scales: S,
    panel: usize,
    product: &mut Product<'_>,
    m: usize,
) -> usize {
    let blocks = codes.len() / W::QUADS;
    let mut x: [&[ActivationBlock]; A] = [&[]; A];
    for a in 0..A {
        x[a] = product.input.quantized.row(m + a);
        // Said once, so that the loop below needs no checks.
        assert!(x[a].len() == blocks);
    }
    let mut totals = [p.splat(0.0); A];
    // Hidden: see `Panel::dot8`.
    let quads = black_box(W::QUADS);
    for (block, codes) in codes.chunks_exact(quads).take(blocks).enumerate() {
        if A < 3 {
            // More rows compute longer than they read.
            for quad in (0..W::QUADS).step_by(LINE / size_of::<P::Lanes<W::Quad>>()) {
                p.prefetch(&codes[quad]);
            }
        }
        let mut activations = [&x[0][block]; A];
        for a in 1..A {
            activations[a] = &x[a][block];
        }
        let dots = W::dot(p, codes, activations);
        let scales = scales.of(p, block);
        for a in 0..A {
            totals[a] = S::add(p, scales, p.float(dots[a]), activations[a], totals[a]);
        }
    }
    put(p, product, panel, m, totals);
    A
}

impl<P: Panel> Clone for RowScales<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Panel> Copy for RowScales<'_, P> {}

impl<P: Panel> Clone for GroupScales<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Panel> Copy for GroupScales<'_, P> {}

impl<P: Panel> Clone for AffineScales<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Panel> Copy for AffineScales<'_, P> {}
