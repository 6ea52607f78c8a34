//! Values of a page: as they are, or decompressed.
//!
//! Where pages are compressed, a read decodes those that it touches. The last one is kept, so that reading forwards
//! decodes every page once, however few rows are asked for at a time.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, Type as PhysicalType, ZstdLevel};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::{ColumnDescPtr, ColumnDescriptor, ColumnPath, Type};

use crate::guard::unless_it_panics;

/// A result whose error is the problem with a file that the caller names.
type Checked<T> = std::result::Result<T, String>;

/// What is known of a column's compressed pages beside where they lie.
pub(crate) struct Packed {
    /// Bytes of each page in its file, header included.
    sizes: Vec<u32>,
    column: ColumnDescPtr,
    /// The page that was decoded last, by its number.
    last: Mutex<Option<(usize, Bytes)>>,
}

impl Packed {
    /// Pages of `sizes` bytes of values of `width` bytes.
    pub fn new(sizes: Vec<u32>, width: usize) -> Self {
        let width = i32::try_from(width).expect("the width of a row was checked");
        let value = Type::primitive_type_builder("acts", PhysicalType::FIXED_LEN_BYTE_ARRAY).with_length(width);
        let value = value.build().expect("bytes of a width are a type");
        let column = ColumnDescriptor::new(Arc::new(value), 0, 0, ColumnPath::from("acts"));
        Self {
            sizes,
            column: Arc::new(column),
            last: Mutex::new(None),
        }
    }

    /// Bytes of page `number` in its file.
    pub fn size(&self, number: usize) -> usize {
        self.sizes[number] as usize
    }

    /// The page of this number, if it is the one that was decoded last.
    pub fn recent(&self, number: usize) -> Option<Bytes> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let found = last.as_ref().filter(|(at, _)| *at == number);
        found.map(|(_, values)| values.clone())
    }

    /// The values of page `number`, `rows` of `width` bytes, from its bytes in the file.
    pub fn decode(&self, number: usize, bytes: Bytes, rows: u64, width: usize) -> Checked<Bytes> {
        let decoded = unless_it_panics(|| self.unpack(bytes)).unwrap_or_else(|| Err("it is damaged".into()));
        let (found, values) =
            decoded.map_err(|problem| format!("has a page that cannot be decompressed: {problem}"))?;
        if (found, values.len() as u64) != (rows, rows * width as u64) {
            return Err(format!(
                "has a page of {found} values in {} bytes, expected {rows} of {width} bytes each",
                values.len()
            ));
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, values.clone()));
        Ok(values)
    }

    fn unpack(&self, bytes: Bytes) -> Checked<(u64, Bytes)> {
        let failed = |e: ParquetError| e.to_string();
        // A column of one page, which begins where these bytes do.
        let chunk = ColumnChunkMetaData::builder(Arc::clone(&self.column))
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_data_page_offset(0)
            .set_total_compressed_size(bytes.len() as i64)
            .build()
            .map_err(failed)?;
        let mut pages = SerializedPageReader::new(Arc::new(bytes), &chunk, 0, None).map_err(failed)?;
        match pages.get_next_page().map_err(failed)? {
            Some(page) => plain_page(page),
            None => Err("there is none".into()),
        }
    }
}

/// The number of values of a page, and their bytes.
pub(crate) fn plain_page(page: Page) -> Checked<(u64, Bytes)> {
    match page {
        Page::DataPage {
            buf,
            num_values,
            encoding: Encoding::PLAIN,
            ..
        } => Ok((u64::from(num_values), buf)),
        other => Err(format!(
            "has a page of type {:?} in {:?}: stores have plain data pages of version 1",
            other.page_type(),
            other.encoding()
        )),
    }
}
