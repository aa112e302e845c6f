//! From tensors as they come to packed tiles, by all threads.
//!
//! A matrix is cut into pieces of whole tiles; a thread gathers the rows of a piece, wherever they
//! come from, quantizes them if it must, and packs them. Tiles of pieces simply follow each other.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use half::{bf16, f16};
use rewind_checkpoint::{TensorData, TensorName};
use rewind_formats::{Format, Packed};
use rewind_kernels::arguments::{Address, Matrix};
use rewind_kernels::packing::{Elements, Order, Packing, PackingError};

use crate::error::CudaError;

/// A tensor on its way to the device.
pub(crate) struct Named {
    pub(crate) name: TensorName,
    /// Length of a row.
    pub(crate) cols: usize,
    pub(crate) data: TensorData,
}

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Single precision.
    F32,
    /// In a format; 16-bit floats that come in it are copied.
    Format(Format),
}

/// A packed matrix in host memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tiles {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<u8>,
    rows: u32,
    /// As the kernels are told, but for addresses and rows.
    header: Header,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    cols: u32,
    units: u32,
    group: u32,
    format: u32,
    interleave: u32,
}

impl Tiles {
    /// What the kernels are told, with codes and scales at these addresses.
    pub(crate) fn matrix(&self, codes: Address, scales: Address) -> Matrix {
        let Header { cols, units, group, format, interleave } = self.header;
        Matrix { codes, scales, rows: self.rows, cols, units, group, format, interleave }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len()
    }
}

/// Rows of a piece, of each matrix if tiles alternate: whole tiles, an even number of them, enough to
/// be worth a lock, few enough to share evenly.
const PIECE: usize = 128;

/// Packs matrices of equal width as one.
///
/// # Errors
/// A weight is not finite or does not fit the format.
pub(crate) fn pack(
    tensors: &[Named],
    storage: Storage,
    order: Order,
    threads: usize,
) -> Result<Tiles, CudaError> {
    let rows_of = |tensor: &Named| tensor.data.len() / tensor.cols;
    let rows: usize = tensors.iter().map(rows_of).sum();
    let cut = match order {
        Order::Stacked => rows,
        Order::Interleaved => tensors.first().map_or(0, rows_of),
    };
    let ranges = (0..cut).step_by(PIECE).map(|first| first..(first + PIECE).min(cut));
    let work = Mutex::new(ranges.enumerate());
    let done = Mutex::new((0..cut.div_ceil(PIECE)).map(|_| None).collect::<Vec<_>>());
    let failure = Mutex::new(None);
    let serve = || {
        loop {
            let next = work.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, rows)) = next else { break };
            match piece(tensors, storage, order, rows) {
                Ok(piece) => {
                    done.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(piece);
                }
                Err(error) => {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    break;
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(cut.div_ceil(PIECE)) {
            scope.spawn(serve);
        }
        serve();
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut pieces = done.into_iter().flatten();
    let mut tiles = pieces.next().ok_or(CudaError::Packing(PackingError::Empty))?;
    tiles.rows = rows as u32;
    for piece in pieces {
        tiles.codes.extend(piece.codes);
        tiles.scales.extend(piece.scales);
    }
    Ok(tiles)
}

/// Packs some rows: of all matrices joined, or of each if tiles alternate.
fn piece(
    tensors: &[Named],
    storage: Storage,
    order: Order,
    rows: Range<usize>,
) -> Result<Tiles, CudaError> {
    let cols = tensors[0].cols;
    let groups = match order {
        Order::Stacked => vec![Rows::gather(tensors, storage, rows)?],
        Order::Interleaved => {
            let each = tensors.chunks(1).map(|one| Rows::gather(one, storage, rows.clone()));
            each.collect::<Result<Vec<_>, _>>()?
        }
    };
    let elements: Vec<_> = groups.iter().map(Rows::elements).collect();
    let packing = Packing::new(cols, &elements, order)?;
    let mut codes = vec![0; packing.panels() * packing.panel_codes()];
    let mut scales = vec![0; packing.panels() * packing.panel_scales()];
    packing.pack(0..packing.panels(), &mut codes, &mut scales);
    let Matrix { rows, cols, units, group, format, interleave, .. } =
        packing.matrix(Address::NULL, Address::NULL);
    Ok(Tiles { codes, scales, rows, header: Header { cols, units, group, format, interleave } })
}

/// Neighbouring rows in the form that they are packed from.
enum Rows {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Packed(Packed),
}

impl Rows {
    /// Some rows of tensors that lie one above the other.
    fn gather(tensors: &[Named], storage: Storage, range: Range<usize>) -> Result<Self, CudaError> {
        let cols = tensors[0].cols;
        let exact = exact_storage(tensors) == storage;
        let mut values = Vec::with_capacity(range.len() * cols);
        let (mut f16s, mut bf16s) = (Vec::new(), Vec::new());
        // Whether all rows are packed, and in the format already.
        let kept = tensors.iter().all(|t| t.is_packed() && t.storage() == storage);
        let mut rows = Vec::new();
        let mut above = 0;
        for tensor in tensors {
            let own = tensor.data.len() / cols;
            let start = range.start.clamp(above, above + own) - above;
            let end = range.end.clamp(above, above + own) - above;
            above += own;
            let part = start * cols..end * cols;
            let first = values.len();
            match &tensor.data {
                TensorData::Packed(matrix) => {
                    if kept {
                        rows.extend((start..end).map(|row| (matrix, row)));
                        continue;
                    }
                    values.resize(first + part.len(), 0.0);
                    for (row, to) in (start..end).zip(values[first..].chunks_exact_mut(cols)) {
                        matrix.dequantize_row(row, to);
                    }
                }
                TensorData::F32(all) => values.extend_from_slice(&all[part]),
                TensorData::F16(all) => {
                    values.extend(all[part.clone()].iter().map(|x| x.to_f32()));
                    f16s.extend_from_slice(if exact { &all[part] } else { &[] });
                }
                TensorData::Bf16(all) => {
                    values.extend(all[part.clone()].iter().map(|x| x.to_f32()));
                    bf16s.extend_from_slice(if exact { &all[part] } else { &[] });
                }
            }
            check_finite(tensor, start, &values[first..])?;
        }
        let named = |source| {
            let (tensor, first_row) = (tensors[0].name, range.start);
            CudaError::Quantize { tensor, first_row, source }
        };
        if kept {
            return Ok(Self::Packed(Packed::from_rows(rows).map_err(named)?));
        }
        let quantized =
            |format| Packed::quantize(format, range.len(), cols, &values).map_err(named);
        // Packed tensors have nothing to copy.
        let exact = exact && values.len() == f16s.len().max(bf16s.len());
        Ok(match storage {
            Storage::Format(Format::F16) if exact => Self::F16(f16s),
            Storage::Format(Format::Bf16) if exact => Self::Bf16(bf16s),
            Storage::Format(format) => Self::Packed(quantized(format)?),
            Storage::F32 => Self::F32(values),
        })
    }

    fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(values) => Elements::F32(values),
            Self::F16(values) => Elements::F16(values),
            Self::Bf16(values) => Elements::Bf16(values),
            Self::Packed(packed) => Elements::Packed(packed),
        }
    }
}

/// The checkpoint's precision, or `f32` where tensors of different ones are joined. Packed tensors count as
/// `f16`, which holds what they stand for as well as the checkpoint itself gives it dequantized.
pub(crate) fn exact_storage(tensors: &[Named]) -> Storage {
    join(tensors.iter().map(|tensor| tensor.storage().exact()))
}

/// What keeps tensors that are joined as they come. Where their formats differ, it is that of their dequantized
/// weights, since to quantize some of them again would change them.
pub(crate) fn kept_storage(tensors: impl IntoIterator<Item = Storage>) -> Storage {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let one = tensors.windows(2).all(|pair| pair[0] == pair[1]);
    let first = tensors.first().copied().filter(|_| one);
    first.unwrap_or_else(|| join(tensors.into_iter().map(Storage::exact)))
}

/// The same of each of a layer's products, whose tensors come in these storages.
///
/// The product of gate and up writes activations of the type that it reads, and that of down, the last, reads
/// them; so where one of the two is quantized and the other is not, it is dequantized.
pub(crate) fn kept_storages(products: &[Vec<Storage>]) -> Vec<Storage> {
    let mut kept: Vec<_> = products.iter().map(|p| kept_storage(p.iter().copied())).collect();
    if let [.., gate_up, down] = &mut kept[..]
        && gate_up.takes_half() != down.takes_half()
    {
        (*gate_up, *down) = (gate_up.exact(), down.exact());
    }
    kept
}

/// The storage that all have, else `f32`.
fn join(mut storages: impl Iterator<Item = Storage>) -> Storage {
    let first = storages.next().unwrap_or(Storage::F32);
    if storages.all(|storage| storage == first) { first } else { Storage::F32 }
}

impl Named {
    /// How it comes.
    pub(crate) fn storage(&self) -> Storage {
        match &self.data {
            TensorData::F32(_) => Storage::F32,
            TensorData::F16(_) => Storage::Format(Format::F16),
            TensorData::Bf16(_) => Storage::Format(Format::Bf16),
            TensorData::Packed(packed) => Storage::Format(packed.format()),
        }
    }

    fn is_packed(&self) -> bool {
        matches!(self.data, TensorData::Packed(_))
    }
}

impl Storage {
    /// Whether products with such a matrix take f16 activations.
    pub(crate) fn takes_half(self) -> bool {
        !matches!(self, Self::F32 | Self::Format(Format::F16 | Format::Bf16))
    }

    /// That of the same weights, dequantized.
    fn exact(self) -> Self {
        if self.takes_half() { Self::Format(Format::F16) } else { self }
    }
}

/// Refuses NaN and infinities; `values` are the tensor's rows from `first_row` on.
pub(crate) fn check_finite(
    tensor: &Named,
    first_row: usize,
    values: &[f32],
) -> Result<(), CudaError> {
    let bad = values.iter().position(|value| !value.is_finite());
    bad.map_or(Ok(()), |at| {
        let (row, col) = (first_row + at / tensor.cols, at % tensor.cols);
        Err(CudaError::NotFinite { tensor: tensor.name, row, col, value: values[at] })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(rows: usize, cols: usize, seed: f32) -> Named {
        let data = (0..rows * cols).map(|i| (i as f32 * 0.37 + seed).sin()).collect();
        Named { name: TensorName::Head, cols, data: TensorData::F32(data) }
    }

    #[test]
    fn pieces_and_threads_give_the_tiles_of_the_whole() {
        let cols = 70;
        let stack = [tensor(300, cols, 0.0), tensor(33, cols, 1.0), tensor(5, cols, 2.0)];
        let turns = [tensor(300, cols, 0.0), tensor(300, cols, 1.0)];
        let format: Format = "int4-g32".parse().unwrap();
        for (tensors, order) in [(&stack[..], Order::Stacked), (&turns[..], Order::Interleaved)] {
            for storage in [Storage::F32, Storage::Format(format), Storage::Format(Format::Int8)] {
                let quantize = |tensor: &Named| match storage {
                    Storage::F32 => Rows::F32(tensor.data.to_f32()),
                    Storage::Format(format) => {
                        let rows = tensor.data.len() / cols;
                        let packed = Packed::quantize(format, rows, cols, &tensor.data.to_f32());
                        Rows::Packed(packed.unwrap())
                    }
                };
                let rows: Vec<_> = tensors.iter().map(quantize).collect();
                let elements: Vec<_> = rows.iter().map(Rows::elements).collect();
                let whole = rewind_kernels::packing::Tiles::pack(cols, &elements, order).unwrap();
                for threads in [1, 3] {
                    let tiles = pack(tensors, storage, order, threads).unwrap();
                    assert_eq!(tiles.codes, whole.codes, "{order:?} {storage:?}");
                    assert_eq!(tiles.scales, whole.scales, "{order:?} {storage:?}");
                    let bytes = |matrix: Matrix| bytemuck::bytes_of(&matrix).to_vec();
                    let (codes, scales) = (Address(1), Address(2));
                    let found = bytes(tiles.matrix(codes, scales));
                    assert_eq!(found, bytes(whole.matrix(codes, scales)));
                }
            }
        }
    }

    #[test]
    fn a_bad_weight_is_named() {
        let mut bad = tensor(200, 8, 0.0);
        if let TensorData::F32(values) = &mut bad.data {
            values[150 * 8 + 3] = f32::NAN;
        }
        let tensors = [tensor(10, 8, 0.0), bad];
        let error = pack(&tensors, Storage::F32, Order::Stacked, 2).unwrap_err();
        assert!(matches!(error, CudaError::NotFinite { row: 150, col: 3, .. }), "{error}");
    }
}
