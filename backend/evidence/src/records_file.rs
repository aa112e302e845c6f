//! Raw records in a Parquet file, a row for each position.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, Encoding, GzipLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, FloatType, Int32Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use crate::calibration::Held;
use crate::document::Half;
use crate::error::RecordsError;
use crate::record::{Record, Sampled, Side};

/// Rows that are kept in memory before they are written as one group.
const GROUP: usize = 1 << 16;

/// A file of records that is being written. Rows of several drafts can go into one file.
pub struct RecordsFile {
    path: PathBuf,
    writer: SerializedFileWriter<File>,
    columns: Vec<(String, Column)>,
    rows: usize,
}

/// What a row is made from.
#[derive(Clone, Copy)]
struct Row<'a> {
    draft: &'a str,
    held: &'a Held<'a>,
    record: &'a Record,
}

/// What a row has in a column, and the rows that are not written yet.
enum Column {
    Text(fn(Row<'_>) -> &str, Vec<ByteArray>),
    Count(Get<u32>, Vec<i32>),
    Flag(Get<bool>, Vec<bool>),
    Number(Get<f32>, Vec<f32>),
    /// May be null: the numbers there are, and a level for each row, 1 where there is one.
    Reading(Get<Option<f32>>, Vec<f32>, Vec<i16>),
}

/// One side of a record.
type OfSide = fn(&Record) -> Side;

type Get<T> = Box<dyn Fn(Row<'_>) -> T + Send>;

impl RecordsFile {
    /// Makes or overwrites a file for records that were sampled at these temperatures.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, temperatures: &[f32]) -> Result<Self, RecordsError> {
        let file = File::create(path)
            .map_err(|source| RecordsError::File { path: path.to_owned(), source })?;
        let columns = columns(temperatures);
        let failed = RecordsError::parquet(path);
        let mut schema = String::from("message records {");
        let mut properties =
            WriterProperties::builder().set_compression(Compression::GZIP(GzipLevel::default()));
        for (name, column) in &columns {
            schema.push_str(&format!(" {} {name}{};", column.physical_type(), column.annotation()));
            if matches!(column, Column::Number(..) | Column::Reading(..)) {
                // Bytes of one significance side by side: the high ones of such numbers are nearly all the same.
                let name = ColumnPath::from(name.as_str());
                properties = properties
                    .set_column_dictionary_enabled(name.clone(), false)
                    .set_column_encoding(name, Encoding::BYTE_STREAM_SPLIT);
            }
        }
        schema.push_str(" }");
        let schema = Arc::new(parse_message_type(&schema).map_err(&failed)?);
        let properties = Arc::new(properties.build());
        let writer = SerializedFileWriter::new(file, schema, properties).map_err(&failed)?;
        Ok(Self { path: path.to_owned(), writer, columns, rows: 0 })
    }

    /// Adds the records of a document, under a name for the draft.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, draft: &str, held: &Held<'_>) -> Result<(), RecordsError> {
        for record in &held.trace.records {
            for (_, column) in &mut self.columns {
                column.push(Row { draft, held, record });
            }
            self.rows += 1;
        }
        if self.rows >= GROUP { self.write() } else { Ok(()) }
    }

    /// Writes what is left and ends the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn close(mut self) -> Result<(), RecordsError> {
        self.write()?;
        self.writer.close().map_err(RecordsError::parquet(&self.path))?;
        Ok(())
    }

    fn write(&mut self) -> Result<(), RecordsError> {
        if self.rows == 0 {
            return Ok(());
        }
        self.rows = 0;
        let (writer, columns) = (&mut self.writer, &mut self.columns);
        let group = || -> Result<(), ParquetError> {
            let mut group = writer.next_row_group()?;
            for (_, column) in columns {
                let Some(mut to) = group.next_column()? else { break };
                column.write(&mut to)?;
                to.close()?;
            }
            group.close()?;
            Ok(())
        };
        group().map_err(RecordsError::parquet(&self.path))
    }
}

impl Column {
    fn count(get: impl Fn(Row<'_>) -> u32 + Send + 'static) -> Self {
        Self::Count(Box::new(get), Vec::new())
    }

    fn flag(get: impl Fn(Row<'_>) -> bool + Send + 'static) -> Self {
        Self::Flag(Box::new(get), Vec::new())
    }

    fn number(get: impl Fn(Row<'_>) -> f32 + Send + 'static) -> Self {
        Self::Number(Box::new(get), Vec::new())
    }

    fn reading(get: impl Fn(Row<'_>) -> Option<f32> + Send + 'static) -> Self {
        Self::Reading(Box::new(get), Vec::new(), Vec::new())
    }

    fn physical_type(&self) -> &'static str {
        match self {
            Self::Text(..) => "required binary",
            Self::Count(..) => "required int32",
            Self::Flag(..) => "required boolean",
            Self::Number(..) => "required float",
            Self::Reading(..) => "optional float",
        }
    }

    fn annotation(&self) -> &'static str {
        if matches!(self, Self::Text(..)) { " (UTF8)" } else { "" }
    }

    fn push(&mut self, row: Row<'_>) {
        match self {
            Self::Text(get, values) => values.push(ByteArray::from(get(row))),
            // Token ids and positions are far below the sign.
            Self::Count(get, values) => values.push(get(row) as i32),
            Self::Flag(get, values) => values.push(get(row)),
            Self::Number(get, values) => values.push(get(row)),
            Self::Reading(get, values, levels) => {
                let reading = get(row);
                values.extend(reading);
                levels.push(i16::from(reading.is_some()));
            }
        }
    }

    /// Writes and forgets what there is.
    fn write(&mut self, to: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        match self {
            Self::Text(_, values) => {
                to.typed::<ByteArrayType>().write_batch(values, None, None)?;
                values.clear();
            }
            Self::Count(_, values) => {
                to.typed::<Int32Type>().write_batch(values, None, None)?;
                values.clear();
            }
            Self::Flag(_, values) => {
                to.typed::<BoolType>().write_batch(values, None, None)?;
                values.clear();
            }
            Self::Number(_, values) => {
                to.typed::<FloatType>().write_batch(values, None, None)?;
                values.clear();
            }
            Self::Reading(_, values, levels) => {
                to.typed::<FloatType>().write_batch(values, Some(levels), None)?;
                values.clear();
                levels.clear();
            }
        }
        Ok(())
    }
}

/// Every column, in the order of the file.
fn columns(temperatures: &[f32]) -> Vec<(String, Column)> {
    let mut all: Vec<(String, Column)> = vec![
        ("draft".into(), Column::Text(|row| row.draft, Vec::new())),
        ("domain".into(), Column::Text(|row| &row.held.document.domain, Vec::new())),
        ("document".into(), Column::Text(|row| &row.held.document.name, Vec::new())),
        ("held_out".into(), Column::flag(|row| row.held.half == Half::Test)),
        ("position".into(), Column::count(|row| row.record.position)),
        ("token".into(), Column::count(|row| row.record.fed)),
        ("agree".into(), Column::flag(|row| row.record.agrees())),
    ];
    let sides: [(&str, OfSide); 2] =
        [("draft", |record| record.draft), ("shadow", |record| record.shadow)];
    for (name, side) in sides {
        all.extend([
            (format!("{name}_token"), Column::count(move |row| side(row.record).token)),
            (
                format!("{name}_entropy"),
                Column::number(move |row| side(row.record).statistics.entropy),
            ),
            (
                format!("{name}_varentropy"),
                Column::number(move |row| side(row.record).statistics.varentropy),
            ),
            (format!("{name}_top1"), Column::number(move |row| side(row.record).statistics.top1)),
            (
                format!("{name}_margin"),
                Column::number(move |row| side(row.record).statistics.margin),
            ),
        ]);
    }
    all.extend([
        ("divergence".into(), Column::number(|row| row.record.divergence)),
        ("regret".into(), Column::number(|row| row.record.regret)),
    ]);
    for (place, temperature) in temperatures.iter().enumerate() {
        let sampled =
            move |row: Row<'_>| -> Option<Sampled> { row.record.sampled.get(place).copied() };
        let at = temperature.to_string().replace('.', "_");
        all.extend([
            (
                format!("agree_at_{at}"),
                Column::flag(move |row| sampled(row).is_some_and(|one| one.draft == one.shadow)),
            ),
            (
                format!("draft_margin_at_{at}"),
                Column::reading(move |row| sampled(row).map(|one| one.margin)),
            ),
        ]);
    }
    all.extend([
        ("celsius".into(), Column::reading(|row| row.record.chip.celsius)),
        ("megahertz".into(), Column::reading(|row| row.record.chip.megahertz)),
    ]);
    all
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;
    use rewind_monitor::Statistics;
    use rewind_monitor::prompt::PromptSummary;

    use super::*;
    use crate::document::Document;
    use crate::record::{Reading, Trace};

    fn record(position: u32, celsius: Option<f32>) -> Record {
        let side = |token, entropy| Side {
            token,
            statistics: Statistics {
                entropy,
                varentropy: 0.5,
                top1: 0.25,
                margin: 0.125,
                finite: true,
            },
        };
        Record {
            position,
            fed: 7,
            draft: side(position, 1.5),
            shadow: side(3, 1.25),
            divergence: 0.01,
            regret: 0.5,
            sampled: vec![Sampled { temperature: 0.7, draft: 1, shadow: 1, margin: 2.0 }],
            chip: Reading { celsius, megahertz: None },
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let document = Document {
            domain: "prose".into(),
            name: "chapter ‘one’".into(),
            tokens: vec![7; 6],
            prompt: 2,
        };
        let trace = Trace {
            prompt: PromptSummary { mean: 1.0, spread: 0.5 },
            records: vec![record(2, None), record(3, Some(41.5))],
        };
        let held = Held { document: &document, half: Half::Test, trace: &trace };
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("records.parquet");
        let mut file = RecordsFile::create(&path, &[0.7]).unwrap();
        file.add("int8", &held).unwrap();
        file.add("int4-g32", &held).unwrap();
        file.close().unwrap();

        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let place = |name: &str| {
            (0..schema.num_columns()).find(|&at| schema.column(at).name() == name).unwrap()
        };
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[0].get_string(place("draft")).unwrap(), "int8");
        assert_eq!(rows[2].get_string(place("draft")).unwrap(), "int4-g32");
        assert_eq!(rows[0].get_string(place("document")).unwrap(), "chapter ‘one’");
        assert_eq!(rows[1].get_int(place("position")).unwrap(), 3);
        let agree: Vec<_> = rows.iter().map(|row| row.get_bool(place("agree")).unwrap()).collect();
        assert_eq!(agree, [false, true, false, true]);
        assert_eq!(rows[0].get_float(place("shadow_entropy")).unwrap(), 1.25);
        assert_eq!(rows[0].get_float(place("draft_margin_at_0_7")).unwrap(), 2.0);
        assert!(rows[0].get_float(place("celsius")).is_err());
        assert_eq!(rows[1].get_float(place("celsius")).unwrap(), 41.5);
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named() {
        let error = RecordsFile::create(Path::new("/nowhere/r.parquet"), &[]).err().unwrap();
        assert!(error.to_string().contains("/nowhere/r.parquet"), "{error}");
    }
}
