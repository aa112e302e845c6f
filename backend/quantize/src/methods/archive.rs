//! Safetensors files, written and joined in a stream: a header in JSON, then the bytes of all tensors.
//!
//! The header's keys are sorted and tensors lie by descending alignment, then by name, so that equal contents are
//! equal files. <https://github.com/huggingface/safetensors#format>

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;
use rewind_formats::{Format, Packed, Scales};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest header that is read back, bytes.
const LONGEST_HEADER: u64 = 100 << 20;

/// A tensor to write.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    start: u64,
    pub(crate) bytes: u64,
}

/// Key of what stands in a header beside tensors.
const METADATA: &str = "__metadata__";

/// A tensor in the header.
#[derive(Serialize, Deserialize)]
struct Described<'a> {
    dtype: Cow<'a, str>,
    shape: Cow<'a, [usize]>,
    data_offsets: [u64; 2],
}

#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: &'a Metadata,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, Described<'a>>,
}

/// What stands in a header beside tensors.
pub(crate) type Metadata = BTreeMap<String, String>;

/// The tensors of a matrix, and what the header says of it.
pub(crate) fn packed(name: &str, matrix: &Packed, metadata: &mut Metadata) -> Vec<Entry> {
    let (format, rows, cols) = (matrix.format(), matrix.rows(), matrix.cols());
    let entry = |name: String, dtype, shape, bytes| Entry { name, dtype, shape, bytes };
    let codes = matrix.codes().to_vec();
    // Floats are what every reader knows.
    if let Format::F16 | Format::Bf16 = format {
        let dtype = if format == Format::F16 { "F16" } else { "BF16" };
        return vec![entry(name.to_owned(), dtype, vec![rows, cols], codes)];
    }
    metadata.insert(name.to_owned(), format.to_string());
    metadata.insert(format!("{name}.cols"), cols.to_string());
    let part = |part: &str| format!("{name}.{part}");
    let per_group = vec![rows, format.groups_per_row(cols)];
    let singles = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let halves = |v: &[f16]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut entries = vec![entry(part("codes"), "U8", vec![rows, matrix.row_bytes()], codes)];
    match matrix.scales() {
        Scales::None => {}
        Scales::PerRow(scales) => {
            entries.push(entry(part("scales"), "F32", vec![rows], singles(scales)));
        }
        Scales::PerGroup(scales) => {
            entries.push(entry(part("scales"), "F16", per_group, halves(scales)));
        }
        Scales::Affine { scales, offsets } => {
            entries.push(entry(part("scales"), "F16", per_group.clone(), halves(scales)));
            entries.push(entry(part("offsets"), "F16", per_group, halves(offsets)));
        }
        Scales::Nested { rows: scales, groups } => {
            entries.push(entry(part("scales"), "F32", vec![rows], singles(scales)));
            entries.push(entry(part("factors"), "U8", per_group, groups.to_vec()));
        }
    }
    entries
}

/// Writes a whole file, under another name until it is complete.
pub(crate) fn write(path: &Path, metadata: &Metadata, mut entries: Vec<Entry>) -> io::Result<()> {
    entries.sort_by(|a, b| order(a.dtype, &a.name).cmp(&order(b.dtype, &b.name)));
    let described =
        entries.iter().map(|e| (e.name.as_str(), e.dtype, &e.shape[..], e.bytes.len() as u64));
    let header = header(metadata, described)?;
    complete(path, |to| {
        to.write_all(&header)?;
        entries.iter().try_for_each(|entry| to.write_all(&entry.bytes))
    })
}

/// Joins tensors of other files into one; gives the hash of each one's bytes, by name.
pub(crate) fn join(
    path: &Path,
    metadata: &Metadata,
    mut places: Vec<Place>,
) -> io::Result<BTreeMap<String, String>> {
    places.sort_by(|a, b| order(&a.dtype, &a.name).cmp(&order(&b.dtype, &b.name)));
    let described =
        places.iter().map(|p| (p.name.as_str(), p.dtype.as_str(), &p.shape[..], p.bytes));
    let header = header(metadata, described)?;
    let mut hashes = BTreeMap::new();
    complete(path, |to| {
        to.write_all(&header)?;
        for place in &places {
            let mut hash = blake3::Hasher::new();
            let mut from = open(place)?;
            let mut buffer = vec![0; 1 << 18];
            let mut left = place.bytes;
            while left > 0 {
                let count = left.min(buffer.len() as u64) as usize;
                from.read_exact(&mut buffer[..count])?;
                hash.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
                left -= count as u64;
            }
            hashes.insert(place.name.clone(), hash.finalize().to_hex().to_string());
        }
        Ok(())
    })?;
    Ok(hashes)
}

/// What a file holds.
pub(crate) fn read(path: &Path) -> io::Result<(Metadata, Vec<Place>)> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut file = BufReader::new(File::open(path)?);
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(bad("its header is too long"));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text)?;
    let header: Map<String, Value> = serde_json::from_slice(&text)?;
    let (mut metadata, mut places, mut end) = (Metadata::new(), Vec::new(), 8 + length);
    for (name, value) in header {
        if name == METADATA {
            metadata = serde_json::from_value(value)?;
            continue;
        }
        let Described { dtype, shape, data_offsets: [from, to] } = serde_json::from_value(value)?;
        let start = from.checked_add(8 + length).ok_or_else(|| bad("its offsets overflow"))?;
        let bytes = to.checked_sub(from).ok_or_else(|| bad("its offsets go backwards"))?;
        end = end.max(start.saturating_add(bytes));
        let (dtype, shape) = (dtype.into_owned(), shape.into_owned());
        places.push(Place { file: path.to_owned(), name, dtype, shape, start, bytes });
    }
    if file.get_ref().metadata()?.len() != end {
        return Err(bad("it is cut short, or longer than its header says"));
    }
    Ok((metadata, places))
}

/// The bytes of a tensor.
pub(crate) fn bytes(place: &Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(place.bytes).map_err(io::Error::other)?];
    open(place)?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn open(place: &Place) -> io::Result<File> {
    let mut file = File::open(&place.file)?;
    file.seek(SeekFrom::Start(place.start))?;
    Ok(file)
}

/// Wide elements first, so that all lie aligned.
fn order<'a>(dtype: &str, name: &'a str) -> (u8, &'a str) {
    let rank = match dtype {
        "F32" => 0,
        "F16" | "BF16" => 1,
        _ => 2,
    };
    (rank, name)
}

/// Length and JSON, padded to whole words.
fn header<'a>(
    metadata: &Metadata,
    tensors: impl Iterator<Item = (&'a str, &'a str, &'a [usize], u64)>,
) -> io::Result<Vec<u8>> {
    let mut at = 0;
    let tensors = tensors.map(|(name, dtype, shape, bytes)| {
        let data_offsets = [at, at + bytes];
        at += bytes;
        (name, Described { dtype: dtype.into(), shape: shape.into(), data_offsets })
    });
    let header = Header { metadata, tensors: tensors.collect() };
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    Ok(out)
}

/// Writes beside the path, and renames: a file of that name is complete.
pub(crate) fn complete(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let beside = path.with_extension("partial");
    let mut to = BufWriter::new(File::create(&beside)?);
    content(&mut to)?;
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(beside, path)
}

/// A vector in f32.
pub(crate) fn vector(places: &[Place], name: &str) -> io::Result<Vec<f32>> {
    let place = places.iter().find(|place| place.name == name && place.dtype == "F32");
    let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("{name} is missing"));
    Ok(singles(&bytes(place.ok_or_else(missing)?)?))
}

fn singles(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn halves(bytes: &[u8]) -> Vec<f16> {
    bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b)).collect()
}

/// A matrix out of the tensors that [`packed`] made of it.
pub(crate) fn matrix(metadata: &Metadata, places: &[Place], name: &str) -> io::Result<Packed> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {what}"));
    let find = |name: &str| places.iter().find(|place| place.name == name);
    let part = |part: &str| {
        let place = find(&format!("{name}.{part}"));
        bytes(place.ok_or_else(|| bad(format!("its {part} are missing")))?)
    };
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<usize>().ok());
    let (format, rows, cols, codes, scales);
    if let Some(place) = find(name) {
        format = if place.dtype == "F16" { Format::F16 } else { Format::Bf16 };
        let &[height, width] = &place.shape[..] else { return Err(bad("is no matrix".into())) };
        (rows, cols, codes, scales) = (height, width, bytes(place)?, Scales::None);
    } else {
        let stated = metadata.get(name).and_then(|text| text.parse().ok());
        format = stated.ok_or_else(|| bad("its format is missing".into()))?;
        let stated = number(metadata.get(&format!("{name}.cols")));
        cols = stated.ok_or_else(|| bad("its number of columns is missing".into()))?;
        codes = part("codes")?;
        rows = codes.len() / format.row_code_bytes(cols).unwrap_or(0).max(1);
        scales = match format {
            Format::F16 | Format::Bf16 => Scales::None,
            Format::Int8 | Format::Fp8 => Scales::PerRow(singles(&part("scales")?).into()),
            Format::Int8Group(_) | Format::Int6Group(_) | Format::Int4Group(_) => {
                Scales::PerGroup(halves(&part("scales")?).into())
            }
            Format::Int4Affine(_) => Scales::Affine {
                scales: halves(&part("scales")?).into(),
                offsets: halves(&part("offsets")?).into(),
            },
            Format::Nf4 => Scales::Nested {
                rows: singles(&part("scales")?).into(),
                groups: part("factors")?.into(),
            },
        };
    }
    Packed::from_parts(format, rows, cols, codes, scales).map_err(|error| bad(error.to_string()))
}
