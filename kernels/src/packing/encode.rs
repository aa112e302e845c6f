//! Codes of rows become the bytes of lanes, as `matrix.cuh` says.

use rewind_formats::nf4;

use super::{PANEL_ROWS, QUAD_BYTES, TILE_ROWS};

/// Bytes of a row of 4-bit integers whose codes are 0.
pub(super) const ZERO_NIBBLES: u8 = 0x88;

/// Bytes of an NF4 row whose numbers are 0.
pub(super) const ZERO_NUMBERS: u8 = nf4::ZERO * 0x11;

/// A 6-bit code that is 0.
pub(super) const ZERO_SIX: u8 = 32;

/// Where a group's lanes put their bytes: the tile's bytes in a unit, the group in the tile.
#[derive(Clone, Copy)]
pub(super) struct Place {
    tile: usize,
    group: usize,
}

impl Place {
    /// Byte of the first lane's quad where a tile takes `tile_bytes`.
    fn quad(self, tile_bytes: usize) -> usize {
        self.tile * tile_bytes + 64 * self.group
    }

    /// Byte of the first lane's pair, behind the quads of both tiles.
    fn pair(self) -> usize {
        2 * QUAD_BYTES + self.tile * (QUAD_BYTES / 2) + 32 * self.group
    }
}

/// Packs a panel unit by unit, of `unit_bytes` each. `BYTES` are a row's of one unit; `fill` stands where rows end
/// or are none. `encode` gets a tile's rows g and g + 8, and makes the bytes of lanes 4g .. 4g + 4.
pub(super) fn pack_units<const BYTES: usize>(
    rows: &[&[u8]; PANEL_ROWS],
    fill: u8,
    unit_bytes: usize,
    out: &mut [u8],
    encode: impl Fn(&[u8; BYTES], &[u8; BYTES], Place, &mut [u8]),
) {
    for (unit, out) in out.chunks_exact_mut(unit_bytes).enumerate() {
        let stretch = |row: usize| {
            let bytes = rows[row].get(unit * BYTES..).unwrap_or(&[]);
            bytes.first_chunk().copied().unwrap_or_else(|| {
                let mut padded = [fill; BYTES];
                padded[..bytes.len()].copy_from_slice(bytes);
                padded
            })
        };
        for (tile, group) in (0..2).flat_map(|tile| (0..8).map(move |group| (tile, group))) {
            let row = tile * TILE_ROWS + group;
            encode(&stretch(row), &stretch(row + 8), Place { tile, group }, out);
        }
    }
}

fn put(out: &mut [u8], at: usize, word: u32) {
    out[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

pub(super) fn encode_f32(low: &[u8; 64], high: &[u8; 64], place: Place, out: &mut [u8]) {
    let start = place.quad(2 * QUAD_BYTES);
    let (low, high) = (low.as_chunks::<4>().0, high.as_chunks::<4>().0);
    for (i, (low, high)) in low.iter().zip(high).enumerate() {
        let (lane, input) = (i / 4, i % 4);
        let at = input / 2 * QUAD_BYTES + start + 16 * lane + input % 2 * 8;
        out[at..at + 4].copy_from_slice(low);
        out[at + 4..at + 8].copy_from_slice(high);
    }
}

pub(super) fn encode_16(low: &[u8; 32], high: &[u8; 32], place: Place, out: &mut [u8]) {
    let pairs = low.as_chunks::<2>().0.iter().zip(high.as_chunks::<2>().0);
    for (i, (&low, &high)) in pairs.enumerate() {
        let word = u32::from(u16::from_le_bytes(low)) | u32::from(u16::from_le_bytes(high)) << 16;
        put(out, place.quad(QUAD_BYTES) + 4 * i, word);
    }
}

/// With some bits of each code turned over.
pub(super) fn encode_8<const FLIP: u8>(
    low: &[u8; 32],
    high: &[u8; 32],
    place: Place,
    out: &mut [u8],
) {
    let pairs = low.as_chunks::<2>().0.iter().zip(high.as_chunks::<2>().0);
    for (i, (&low, &high)) in pairs.enumerate() {
        let word = u32::from(u16::from_le_bytes(low)) | u32::from(u16::from_le_bytes(high)) << 16;
        put(out, place.quad(QUAD_BYTES) + 4 * i, word ^ u32::from_le_bytes([FLIP; 4]));
    }
}

pub(super) fn encode_4(low: &[u8; 32], high: &[u8; 32], place: Place, out: &mut [u8]) {
    // A lane's eight neighbours become a word for each step: of its four, the nibbles 0, 4, 2 and 6. Those of
    // the other row go between.
    let spread = |nibbles: [u8; 4]| {
        let nibbles = u64::from(u32::from_le_bytes(nibbles));
        let steps = nibbles & 0xffff | (nibbles & 0xffff_0000) << 16;
        steps & 0x0000_0f0f_0000_0f0f | (steps & 0x0000_f0f0_0000_f0f0) << 12
    };
    let lanes = low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0);
    for (i, (&low, &high)) in lanes.enumerate() {
        let at = place.quad(QUAD_BYTES) + i % 4 * 16 + i / 4 * 8;
        let words = spread(low) | spread(high) << 4;
        out[at..at + 8].copy_from_slice(&words.to_le_bytes());
    }
}

/// Codes + 32, a byte each.
pub(super) fn encode_6(low: &[u8; 64], high: &[u8; 64], place: Place, out: &mut [u8]) {
    let lanes = low.as_chunks::<8>().0.iter().zip(high.as_chunks::<8>().0);
    for (i, (low, high)) in lanes.enumerate() {
        let (lane, block) = (i % 4, i / 4);
        let (mut nibbles, mut pairs) = ([0_u32; 2], 0_u32);
        for (half, codes) in [low, high].into_iter().enumerate() {
            for (input, &code) in codes.iter().enumerate() {
                let (step, register) = (input / 4, input % 4 / 2 * 2 + half);
                nibbles[step] |= u32::from(code & 15) << (4 * (register + input % 2 * 4));
                pairs |= u32::from(code >> 4) << (8 * step + 2 * register + 16 * (input % 2));
            }
        }
        for (step, word) in nibbles.into_iter().enumerate() {
            put(out, place.quad(QUAD_BYTES) + 16 * lane + 8 * block + 4 * step, word);
        }
        put(out, place.pair() + 8 * lane + 4 * block, pairs);
    }
}

pub(super) fn encode_nf4(low: &[u8; 32], high: &[u8; 32], place: Place, out: &mut [u8]) {
    let lanes = low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0);
    for (i, (low, high)) in lanes.enumerate() {
        let at = place.quad(QUAD_BYTES) + i % 4 * 16 + i / 4 * 8;
        for (to, from) in out[at..at + 8].as_chunks_mut().0.iter_mut().zip(low.iter().zip(high)) {
            *to = [*from.0, *from.1];
        }
    }
}
