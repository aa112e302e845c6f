//! A packed matrix out of parts that something else has made: a file, another matrix.
//!
//! What [`Packed::quantize`] guarantees by construction is checked here, so that kernels need not doubt a matrix
//! wherever it comes from: sizes fit, every code is one that the format has, every weight is finite.

use half::{bf16, f16};

use crate::{Format, PackError, Packed, Scales, e4m3, nf4};

impl Packed {
    /// A matrix of these codes and scales, in the canonical layout that [`Packed`] describes.
    ///
    /// # Errors
    ///
    /// An empty matrix; codes or scales of another number or kind than format and sizes demand; a code that the
    /// format does not have (-128 of 8 bits, NaN of E4M3FN, a spare nibble that is not the code of zero); a
    /// scale or offset that is not finite, or so large that a weight would not be. The row is named.
    pub fn from_parts(
        format: Format,
        rows: usize,
        cols: usize,
        codes: impl Into<Box<[u8]>>,
        scales: Scales,
    ) -> Result<Self, PackError> {
        let codes = codes.into();
        if rows == 0 || cols == 0 {
            return Err(PackError::Empty { rows, cols });
        }
        let parts = |what, expected: Option<usize>, found| match expected {
            Some(expected) if expected == found => Ok(()),
            expected => Err(PackError::Parts { format, rows, cols, what, expected, found }),
        };
        let row_bytes = format.row_code_bytes(cols);
        let expected = row_bytes.and_then(|bytes| bytes.checked_mul(rows));
        parts("bytes of codes", expected, codes.len())?;
        let groups = format.groups_per_row(cols).checked_mul(rows);
        match (&scales, format) {
            (Scales::None, Format::F16 | Format::Bf16) => {}
            (Scales::PerRow(scales), Format::Int8 | Format::Fp8) => {
                parts("scales", Some(rows), scales.len())?;
            }
            (
                Scales::PerGroup(scales),
                Format::Int8Group(_) | Format::Int6Group(_) | Format::Int4Group(_),
            ) => parts("scales", groups, scales.len())?,
            (Scales::Affine { scales, offsets }, Format::Int4Affine(_)) => {
                parts("scales", groups, scales.len())?;
                parts("offsets", groups, offsets.len())?;
            }
            (Scales::Nested { rows: scales, groups: factors }, Format::Nf4) => {
                parts("scales of rows", Some(rows), scales.len())?;
                parts("factors", groups, factors.len())?;
            }
            _ => return Err(PackError::Scales { format }),
        }
        let packed = Self { format, rows, cols, row_bytes: codes.len() / rows, codes, scales };
        packed.check_codes()?;
        packed.check_scales()?;
        Ok(packed)
    }

    /// These rows of matrices, one above the other: a part of one, its rows in another order, or several joined.
    ///
    /// # Errors
    ///
    /// There is no row, or matrices differ in format or columns.
    ///
    /// # Panics
    ///
    /// If a row is out of range.
    pub fn from_rows<'a>(
        from: impl IntoIterator<Item = (&'a Self, usize)>,
    ) -> Result<Self, PackError> {
        let mut from = from.into_iter().peekable();
        let Some(&(first, _)) = from.peek() else {
            return Err(PackError::Empty { rows: 0, cols: 0 });
        };
        let (format, cols, row_bytes) = (first.format, first.cols, first.row_bytes);
        let per_row = format.groups_per_row(cols);
        let (mut rows, mut codes) = (0, Vec::new());
        let (mut singles, mut halves) = (Vec::<f32>::new(), Vec::<f16>::new());
        let (mut offsets, mut factors) = (Vec::<f16>::new(), Vec::<u8>::new());
        for (matrix, row) in from {
            if (matrix.format, matrix.cols) != (format, cols) {
                return Err(PackError::Mixed {
                    first: (format, cols),
                    other: (matrix.format, matrix.cols),
                });
            }
            codes.extend_from_slice(matrix.row_codes(row));
            let groups = row * per_row..(row + 1) * per_row;
            match &matrix.scales {
                Scales::None => {}
                Scales::PerRow(scales) => singles.push(scales[row]),
                Scales::PerGroup(scales) => halves.extend_from_slice(&scales[groups]),
                Scales::Affine { scales, offsets: more } => {
                    halves.extend_from_slice(&scales[groups.clone()]);
                    offsets.extend_from_slice(&more[groups]);
                }
                Scales::Nested { rows, groups: more } => {
                    singles.push(rows[row]);
                    factors.extend_from_slice(&more[groups]);
                }
            }
            rows += 1;
        }
        let scales = match &first.scales {
            Scales::None => Scales::None,
            Scales::PerRow(_) => Scales::PerRow(singles.into()),
            Scales::PerGroup(_) => Scales::PerGroup(halves.into()),
            Scales::Affine { .. } => {
                Scales::Affine { scales: halves.into(), offsets: offsets.into() }
            }
            Scales::Nested { .. } => {
                Scales::Nested { rows: singles.into(), groups: factors.into() }
            }
        };
        Ok(Self { format, rows, cols, row_bytes, codes: codes.into(), scales })
    }

    /// Refuses codes that stand for nothing.
    fn check_codes(&self) -> Result<(), PackError> {
        let (format, cols) = (self.format, self.cols);
        let bad = |at: usize| PackError::Code {
            format,
            row: at / self.row_bytes,
            byte: at % self.row_bytes,
            found: self.codes[at],
        };
        let find = |wrong: &dyn Fn(u8) -> bool| {
            self.codes.iter().position(|&code| wrong(code)).map_or(Ok(()), |at| Err(bad(at)))
        };
        match format {
            Format::F16 | Format::Bf16 => {
                let finite = |b: [u8; 2]| match format {
                    Format::F16 => f16::from_le_bytes(b).is_finite(),
                    _ => bf16::from_le_bytes(b).is_finite(),
                };
                let wrong = self.codes.as_chunks().0.iter().position(|&b| !finite(b));
                wrong.map_or(Ok(()), |at| Err(bad(2 * at)))
            }
            Format::Fp8 => find(&|code| e4m3::value(code).is_nan()),
            Format::Int8 | Format::Int8Group(_) => find(&|code| code == 0x80),
            // Unused bits of a last byte would be lost on the way back.
            // As many bytes as codes: two bits of each byte are left.
            Format::Int6Group(_) => self.check_spare(2 * (cols % 4) as u32, 0),
            Format::Int4Group(_) | Format::Int4Affine(_) => {
                self.check_spare(4 * (cols % 2) as u32, 8)
            }
            Format::Nf4 => self.check_spare(4 * (cols % 2) as u32, nf4::ZERO),
        }
    }

    /// Refuses rows whose last byte has something else than `expected` in its high `bits`.
    fn check_spare(&self, bits: u32, expected: u8) -> Result<(), PackError> {
        if bits == 0 {
            return Ok(());
        }
        let last = |row: usize| self.codes[(row + 1) * self.row_bytes - 1];
        let wrong = (0..self.rows).find(|&row| last(row) >> (8 - bits) != expected);
        wrong.map_or(Ok(()), |row| {
            let (format, byte, found) = (self.format, self.row_bytes - 1, last(row));
            Err(PackError::Code { format, row, byte, found })
        })
    }

    /// Refuses scales by which a weight is not finite.
    fn check_scales(&self) -> Result<(), PackError> {
        // Products with halves are far from the end of f32.
        let largest = match self.format {
            Format::Int8 => 127.0,
            Format::Fp8 => e4m3::MAX,
            Format::Nf4 => 255.0,
            _ => 1.0,
        };
        let check = |what, per_row: usize, values: &mut dyn Iterator<Item = f32>| {
            let wrong = values.enumerate().find(|(_, value)| !(value * largest).is_finite());
            wrong.map_or(Ok(()), |(at, value)| {
                Err(PackError::Scale { format: self.format, what, row: at / per_row, value })
            })
        };
        let groups = self.format.groups_per_row(self.cols).max(1);
        match &self.scales {
            Scales::None => Ok(()),
            Scales::PerRow(scales) => check("scale", 1, &mut scales.iter().copied()),
            Scales::Nested { rows, .. } => check("scale", 1, &mut rows.iter().copied()),
            Scales::PerGroup(scales) => check("scale", groups, &mut upcast(scales)),
            Scales::Affine { scales, offsets } => {
                check("scale", groups, &mut upcast(scales))?;
                check("offset", groups, &mut upcast(offsets))
            }
        }
    }
}

fn upcast(values: &[f16]) -> impl Iterator<Item = f32> {
    values.iter().map(|value| value.to_f32())
}
