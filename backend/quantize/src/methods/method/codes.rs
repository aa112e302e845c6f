//! Codes of a row in the canonical layout of [`Packed`](rewind_formats::Packed).

use rewind_formats::{Format, nf4};

/// Appends the codes of one row; those of `nf4` are numbers of its code book.
pub(super) fn append_row(format: Format, row: &[i8], out: &mut Vec<u8>) {
    match format {
        Format::Int6Group(_) => {
            for four in row.chunks(4) {
                let place = |(j, &code): (usize, &i8)| ((i32::from(code) + 32) as u32) << (6 * j);
                let bits = four.iter().enumerate().map(place).fold(0, |bits, code| bits | code);
                // Three bytes for four codes, else one for each.
                out.extend(bits.to_le_bytes().into_iter().take(four.len().min(3)));
            }
        }
        Format::Int4Group(_) | Format::Int4Affine(_) | Format::Nf4 => {
            let (bias, spare) = if format == Format::Nf4 { (0, nf4::ZERO) } else { (8, 8) };
            let nibble = |code: i8| (code + bias) as u8;
            for pair in row.chunks(2) {
                out.push(nibble(pair[0]) | pair.get(1).map_or(spare, |&code| nibble(code)) << 4);
            }
        }
        _ => out.extend(row.iter().map(|&code| code as u8)),
    }
}
