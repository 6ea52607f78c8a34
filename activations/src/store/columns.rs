//! The columns of a shard's two files, for who writes them and who checks them.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use parquet::basic::{Compression, Encoding, LogicalType, Repetition, Type as PhysicalType};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::{ColumnPath, Type, TypePtr};

use super::manifest::FORMAT;
use super::spec::StoreSpec;
use crate::error::{Error, Result};

/// The columns before the activations: name, physical type, bytes.
pub(crate) const KEYS: [(&str, PhysicalType, usize); 3] = [
    ("context", PhysicalType::INT64, 8),
    ("position", PhysicalType::INT32, 4),
    ("token", PhysicalType::INT32, 4),
];

/// Every column of a file of activations: name, physical type, bytes of a value.
pub(crate) fn acts_columns(spec: &StoreSpec) -> Vec<(String, PhysicalType, usize)> {
    let keys = KEYS.iter().map(|&(name, of, width)| (name.to_owned(), of, width));
    let hooks = spec.hooks.iter().map(|h| {
        let width = spec.dtype.row_bytes(h.d_in);
        (h.name.clone(), PhysicalType::FIXED_LEN_BYTE_ARRAY, width)
    });
    keys.chain(hooks).collect()
}

/// The Parquet schema of a file of activations. Every column is required, so that pages hold values and nothing else.
pub(crate) fn acts_schema(spec: &StoreSpec) -> Result<TypePtr> {
    let fields = acts_columns(spec).into_iter().map(|(name, of, width)| {
        let field = Type::primitive_type_builder(&name, of).with_repetition(Repetition::REQUIRED);
        let field = match of {
            PhysicalType::FIXED_LEN_BYTE_ARRAY => field.with_length(width as i32),
            _ => field.with_logical_type(Some(LogicalType::integer(8 * width as i8, false))),
        };
        field.build().map(Arc::new)
    });
    let schema = fields
        .collect::<std::result::Result<_, _>>()
        .and_then(|fields| Type::group_type_builder("schema").with_fields(fields).build());
    schema
        .map(Arc::new)
        .map_err(|e| Error::Invalid(format!("the store's columns are impossible: {e}")))
}

/// How a file of activations is written: plain values in pages of about a mebibyte, or smaller ones where they are
/// compressed. Keys are never compressed: rows are found by them.
pub(crate) fn acts_properties(spec: &StoreSpec, number: usize) -> WriterProperties {
    let mut properties = plain(spec, number).set_statistics_enabled(EnabledStatistics::None);
    for &(name, ..) in &KEYS {
        let column = ColumnPath::new(vec![name.into()]);
        properties = properties.set_column_statistics_enabled(column, EnabledStatistics::Chunk);
    }
    for hook in &spec.hooks {
        let column = ColumnPath::new(vec![hook.name.clone()]);
        if let Some(compression) = spec.compression {
            properties = properties.set_column_compression(column.clone(), compression.parquet());
        }
        properties = properties.set_column_data_page_row_count_limit(column, spec.page_rows(hook));
    }
    // Limits are looked at after each batch of this many rows: pages of activations are then exactly full.
    let least = spec.hooks.iter().map(|h| spec.page_rows(h)).min().unwrap_or(1);
    properties.set_write_batch_size(least).build()
}

/// How a file of contexts is written: what repeats as a dictionary, what ascends as differences, so that the places of
/// the tokens take less room than their ids.
pub(crate) fn contexts_properties(spec: &StoreSpec, number: usize) -> WriterProperties {
    let column = |path: &str| ColumnPath::new(path.split('.').map(str::to_owned).collect());
    let mut properties = plain(spec, number);
    if let Some(compression) = spec.compression {
        properties = properties.set_compression(compression.parquet());
    }
    for path in ["documents.list.element", "sources.list.element.file"] {
        properties = properties.set_column_dictionary_enabled(column(path), true);
    }
    for path in [
        "starts.list.element",
        "ends.list.element",
        "sources.list.element.document",
        "sources.list.element.record",
    ] {
        properties = properties.set_column_encoding(column(path), Encoding::DELTA_BINARY_PACKED);
    }
    properties.build()
}

fn plain(spec: &StoreSpec, number: usize) -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_created_by(concat!("sae ", env!("CARGO_PKG_VERSION")).into())
        .set_compression(Compression::UNCOMPRESSED)
        .set_encoding(Encoding::PLAIN)
        .set_dictionary_enabled(false)
        .set_data_page_size_limit(1 << 30)
        .set_max_row_group_row_count(None)
        .set_key_value_metadata(Some(metadata(spec, number)))
}

/// What every file of a store says about itself to those who open it without the manifest.
fn metadata(spec: &StoreSpec, number: usize) -> Vec<KeyValue> {
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    let entry = |key: &str, value: String| KeyValue::new(format!("sae.{key}"), value);
    vec![
        entry("format", FORMAT.into()),
        entry("version", spec.version().to_string()),
        entry("shard", number.to_string()),
        entry("dtype", spec.dtype.to_string()),
        entry("hooks", json(serde_json::to_string(&spec.hooks))),
        entry("model", json(serde_json::to_string(&spec.model))),
        entry("corpus", json(serde_json::to_string(&spec.corpus))),
        entry("context_length", spec.context_length.to_string()),
    ]
}

/// The schema of a file of contexts.
pub(crate) fn contexts_schema() -> SchemaRef {
    let list = |name: &str, of: DataType| {
        let item = Arc::new(Field::new("element", of, false));
        Field::new(name, DataType::List(item), false)
    };
    Arc::new(Schema::new(vec![
        Field::new("context", DataType::UInt64, false),
        Field::new("document", DataType::UInt64, false),
        list("tokens", DataType::UInt32),
        list("documents", DataType::UInt64),
        list("starts", DataType::UInt64),
        list("ends", DataType::UInt64),
        list("sources", DataType::Struct(source_fields())),
    ]))
}

/// What is said about a document that a context has tokens of.
pub(crate) fn source_fields() -> Fields {
    Fields::from(vec![
        Field::new("document", DataType::UInt64, false),
        Field::new("file", DataType::Utf8, false),
        Field::new("record", DataType::UInt64, false),
    ])
}
