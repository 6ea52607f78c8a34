//! The file of contexts of a shard: what the tokens are, and where in the texts they come from.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, UInt32Builder, UInt64Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, ListArray, RecordBatch, StringArray, StructArray, UInt64Array};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, FieldRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use super::columns::{contexts_properties, contexts_schema, source_fields};
use super::shard::{Checked, read_footer};
use super::spec::StoreSpec;
use crate::context::{Context, DocumentRef, Spans};
use crate::error::{Error, Result};
use crate::guard::unless_it_panics;

/// The bytes of the file.
pub(crate) fn encode_contexts(spec: &StoreSpec, number: usize, contexts: &[Context]) -> Result<Vec<u8>> {
    let failed = |e: String| Error::Invalid(format!("contexts of shard {number} cannot be encoded: {e}"));
    let schema = contexts_schema();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(contexts.iter().map(|c| c.index))),
        Arc::new(UInt64Array::from_iter_values(contexts.iter().map(|c| c.document))),
        Arc::new(tokens(contexts)),
        Arc::new(numbers(contexts.iter().map(documents))),
        Arc::new(numbers(contexts.iter().map(|c| c.spans.starts.clone()))),
        Arc::new(numbers(contexts.iter().map(|c| c.spans.ends.clone()))),
        Arc::new(sources(contexts).map_err(|e| failed(e.to_string()))?),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|e| failed(e.to_string()))?;
    let mut out = Vec::new();
    let properties = contexts_properties(spec, number);
    let mut writer = ArrowWriter::try_new(&mut out, schema, Some(properties)).map_err(|e| failed(e.to_string()))?;
    let written = writer.write(&batch).and_then(|()| writer.close());
    written.map_err(|e| failed(e.to_string()))?;
    Ok(out)
}

fn element(of: DataType) -> FieldRef {
    Arc::new(Field::new("element", of, false))
}

fn tokens(contexts: &[Context]) -> ListArray {
    let mut lists = ListBuilder::new(UInt32Builder::new()).with_field(element(DataType::UInt32));
    for context in contexts {
        lists.values().append_slice(&context.tokens);
        lists.append(true);
    }
    lists.finish()
}

fn numbers(rows: impl Iterator<Item = Vec<u64>>) -> ListArray {
    let mut lists = ListBuilder::new(UInt64Builder::new()).with_field(element(DataType::UInt64));
    for row in rows {
        lists.values().append_slice(&row);
        lists.append(true);
    }
    lists.finish()
}

/// The number of the document of each token.
fn documents(context: &Context) -> Vec<u64> {
    let found = &context.spans.documents;
    let ends = found.iter().skip(1).map(|d| d.position as usize);
    let ends = ends.chain([context.spans.starts.len()]);
    let runs = found.iter().zip(ends);
    runs.flat_map(|(d, end)| std::iter::repeat_n(d.document, end - d.position as usize))
        .collect()
}

fn sources(contexts: &[Context]) -> std::result::Result<ListArray, arrow_schema::ArrowError> {
    let all = || contexts.iter().flat_map(|c| &c.spans.documents);
    let fields = source_fields();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(all().map(|d| d.document))),
        Arc::new(StringArray::from_iter_values(all().map(|d| &d.file))),
        Arc::new(UInt64Array::from_iter_values(all().map(|d| d.record))),
    ];
    let values = StructArray::try_new(fields.clone(), columns, None)?;
    let offsets = OffsetBuffer::from_lengths(contexts.iter().map(|c| c.spans.documents.len()));
    ListArray::try_new(element(DataType::Struct(fields)), offsets, Arc::new(values), None)
}

/// Reads the file. The decoder panics on some damaged files instead of giving an error (a column that begins before the
/// file, for one); both are the same news to a user, and nothing of it is used again after.
pub(crate) fn decode_contexts(file: Bytes) -> Checked<Vec<Context>> {
    unless_it_panics(|| decode(file)).unwrap_or_else(|| Err("is a damaged Parquet file".into()))
}

fn decode(file: Bytes) -> Checked<Vec<Context>> {
    check_columns(&read_footer(&file)?)?;
    let damaged = |e: String| format!("is a damaged Parquet file: {e}");
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(e.to_string()))?;
    let expected = contexts_schema();
    if builder.schema().fields() != expected.fields() {
        return Err(format!(
            "has the columns {:?}, expected {:?}",
            builder.schema().fields(),
            expected.fields()
        ));
    }
    let reader = builder.build().map_err(|e| damaged(e.to_string()))?;
    let mut out = Vec::new();
    // Contexts of one file share its name.
    let mut file: Arc<str> = "".into();
    for batch in reader {
        let batch = batch.map_err(|e| damaged(e.to_string()))?;
        for row in 0..batch.num_rows() {
            out.push(decode_context(&batch, row, &mut file)?);
        }
    }
    Ok(out)
}

/// Refuses columns that claim to begin before the file or to have less than nothing, on which the decoder panics.
fn check_columns(footer: &ParquetMetaData) -> Checked<()> {
    let columns = footer.row_groups().iter().flat_map(|group| group.columns());
    let negative = |c: &ColumnChunkMetaData| {
        let starts = [Some(c.data_page_offset()), c.dictionary_page_offset()];
        c.compressed_size() < 0 || starts.into_iter().flatten().any(|start| start < 0)
    };
    match columns.into_iter().find(|c| negative(c)) {
        Some(column) => Err(format!(
            "is damaged: its column {} begins before the file",
            column.column_path()
        )),
        None => Ok(()),
    }
}

fn decode_context(batch: &RecordBatch, row: usize, file: &mut Arc<str>) -> Checked<Context> {
    let number = |column: usize| batch.column(column).as_primitive::<UInt64Type>().value(row);
    let numbers = |column: usize| {
        let list = batch.column(column).as_list::<i32>().value(row);
        list.as_primitive::<UInt64Type>().values().to_vec()
    };
    let tokens = batch.column(2).as_list::<i32>().value(row);
    let tokens = tokens.as_primitive::<UInt32Type>().values().to_vec();
    let of_tokens = numbers(3);
    let sources = batch.column(6).as_list::<i32>().value(row);
    let sources = sources.as_struct();
    let [documents, records] = [0, 2].map(|column| sources.column(column).as_primitive::<UInt64Type>());
    let files = sources.column(1).as_string::<i32>();
    let mut runs = of_tokens.chunk_by(|a, b| a == b);
    let mut position = 0;
    let mut found = Vec::new();
    for at in 0..documents.len() {
        if files.value(at) != &**file {
            *file = files.value(at).into();
        }
        let run = runs.next().filter(|run| run[0] == documents.value(at));
        let run = run.ok_or_else(|| format!("has sources of context {} that its documents are not", number(0)))?;
        found.push(DocumentRef {
            position,
            document: documents.value(at),
            file: Arc::clone(file),
            record: records.value(at),
        });
        position += run.len() as u32;
    }
    let spans = Spans {
        starts: numbers(4),
        ends: numbers(5),
        documents: found,
    };
    if !spans.fit(tokens.len()) || ![0, tokens.len()].contains(&of_tokens.len()) || runs.next().is_some() {
        return Err(format!("has spans of context {} that do not fit its tokens", number(0)));
    }
    Ok(Context {
        index: number(0),
        document: number(1),
        tokens,
        spans,
    })
}
