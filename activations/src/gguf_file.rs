//! Reading GGUF files, llama.cpp's format for models, that may be truncated, foreign or hostile.
//!
//! The one decision: **every count and length is checked against what is left of the file before anything is allocated**,
//! and arrays stay where they are in the mapped file until somebody asks for them. Tensors of the quantised formats come
//! out as f32, by the formulas of ggml's `ggml-quants.c` (`gguf_file/blocks.rs`).
//!
//! Layout (ggml's `docs/gguf.md`): the magic, a version, the numbers of tensors and of keys; the keys with their values;
//! name, shape, format and offset of each tensor; then the data. Everything is little-endian, and shapes begin with the
//! dimension that is next to each other in memory.

mod blocks;
mod cursor;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use self::blocks::Format;
use self::cursor::Cursor;
pub use self::cursor::Value;
use crate::error::{Error, Result};
use crate::mapped;
use crate::safetensors_file::overlapping;

/// Bytes that every tensor's entry takes at least: a name's length, one dimension, a format and an offset.
const SMALLEST_TENSOR: u64 = 8 + 4 + 4 + 8;
/// Bytes that every key takes at least: its length, a kind, and a value of one byte.
const SMALLEST_KEY: u64 = 8 + 4 + 1;
/// Where data begin, unless the file says otherwise.
const ALIGNMENT: u64 = 32;

/// The tensors and the metadata of one GGUF file, mapped and validated.
pub struct GgufFile {
    path: PathBuf,
    bytes: Bytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies.
struct Place {
    format: Format,
    /// Rows before columns, as everywhere else.
    shape: Vec<usize>,
    range: Range<usize>,
}

impl GgufFile {
    /// The GGUF that `model` means: a file of that kind, or the only one in a directory without a `config.json`.
    ///
    /// # Errors
    /// [`Error::BadFile`] listing the files of a directory that has several; [`Error::Io`] if it cannot be listed.
    pub fn of_model(model: &Path) -> Result<Option<PathBuf>> {
        let is_gguf = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if !model.is_dir() {
            return Ok(is_gguf(model).then(|| model.to_owned()));
        }
        if model.join("config.json").exists() {
            return Ok(None);
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(model).map_err(Error::io(model))? {
            let path = entry.map_err(Error::io(model))?.path();
            if is_gguf(&path) {
                found.push(path);
            }
        }
        found.sort();
        match &found[..] {
            [] => Ok(None),
            [_] => Ok(found.pop()),
            several => {
                let names: Vec<_> = several.iter().filter_map(|p| p.file_name()?.to_str()).collect();
                let problem = format!("holds several GGUF files: name one of {}", names.join(", "));
                Err(Error::bad_file(model, problem))
            }
        }
    }

    /// Opens a file of version 2 or 3.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::BadFile`] naming the key or tensor that does not fit.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = mapped::map(path)?;
        let (metadata, tensors) = parse(&bytes).map_err(|problem| Error::bad_file(path, problem))?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            metadata,
            tensors,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key, if it is there.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.value(key).map_or("missing", Value::kind);
        Error::bad_file(&self.path, format!("{key} is {found}, expected {expected}"))
    }

    /// A text that may be absent.
    ///
    /// # Errors
    /// [`Error::BadFile`] naming a key whose value is of another kind.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let parse = |v: &Value| match v {
            Value::Text(range) => std::str::from_utf8(&self.bytes[range.clone()]).ok(),
            _ => None,
        };
        let maybe = self.metadata.get(key);
        maybe
            .map(|v| parse(v).ok_or_else(|| self.wrong(key, "a text")))
            .transpose()
    }

    /// A whole number that may be absent.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        let maybe = self.value(key);
        maybe
            .map(|v| v.integer().ok_or_else(|| self.wrong(key, "a whole number")))
            .transpose()
    }

    /// A number that may be absent.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let maybe = self.value(key);
        maybe
            .map(|v| v.number().ok_or_else(|| self.wrong(key, "a number")))
            .transpose()
    }

    /// A flag that may be absent.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let parse = |v: &Value| match v {
            Value::Flag(flag) => Ok(*flag),
            _ => Err(self.wrong(key, "true or false")),
        };
        self.value(key).map(parse).transpose()
    }

    /// The elements of an array that may be absent, each by `read`.
    fn array<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = || self.wrong(key, expected);
        let Value::Array { kind, count, range } = value else {
            return Err(wrong());
        };
        let mut cursor = Cursor::new(&self.bytes[..range.end], range.start);
        let mut all = Vec::new();
        for _ in 0..*count {
            let element = cursor.value(*kind).ok().and_then(|element| read(&element));
            all.push(element.ok_or_else(wrong)?);
        }
        Ok(Some(all))
    }

    /// An array of texts that may be absent.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.array(key, "an array of texts", |v| match v {
            Value::Text(range) => std::str::from_utf8(&self.bytes[range.clone()]).ok(),
            _ => None,
        })
    }

    /// An array of whole numbers that may be absent.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn integers(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.array(key, "an array of whole numbers", Value::integer)
    }

    /// An array of numbers that may be absent.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.array(key, "an array of numbers", Value::number)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, rows first, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// The format of a tensor as ggml spells it (`Q4_K`), if there is one of that name.
    pub fn format(&self, name: &str) -> Option<&'static str> {
        self.tensors.get(name).map(|t| t.format.name())
    }

    /// The values of a tensor, row-major.
    ///
    /// # Errors
    /// [`Error::BadFile`] when the tensor is missing.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::bad_file(&self.path, format!("tensor {name} is missing"));
        let Place { format, range, .. } = self.tensors.get(name).ok_or_else(missing)?;
        Ok(format.values(&self.bytes[range.clone()]))
    }
}

type Parsed = (BTreeMap<String, Value>, BTreeMap<String, Place>);

fn parse(bytes: &[u8]) -> std::result::Result<Parsed, String> {
    let mut cursor = Cursor::new(bytes, 0);
    if bytes.get(..4) != Some(b"GGUF") {
        return Err("not a GGUF file: it does not begin with GGUF".into());
    }
    cursor.skip(4)?;
    match cursor.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("is a big-endian GGUF, which is not supported: convert it for little-endian machines".into());
        }
        version => return Err(format!("is a GGUF of version {version}; expected 2 or 3")),
    }
    let tensors = cursor.u64()?;
    let keys = cursor.u64()?;
    let fits = |count: u64, smallest: u64, left: u64| count.checked_mul(smallest).is_some_and(|n| n <= left);
    if !fits(keys, SMALLEST_KEY, cursor.left()) || !fits(tensors, SMALLEST_TENSOR, cursor.left()) {
        return Err(format!(
            "truncated: it promises {keys} keys and {tensors} tensors in {} bytes",
            bytes.len()
        ));
    }
    let mut metadata = BTreeMap::new();
    for number in 0..keys {
        let key = cursor.text().map_err(|e| format!("key {number}: {e}"))?.to_owned();
        let value = cursor.kind().and_then(|kind| cursor.value(kind));
        let value = value.map_err(|e| format!("{key}: {e}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("{key} is there twice"));
        }
    }
    let mut entries = Vec::new();
    for number in 0..tensors {
        let name = cursor.text().map_err(|e| format!("tensor {number}: {e}"))?.to_owned();
        let entry = Entry::read(&mut cursor).map_err(|e| format!("tensor {name}: {e}"))?;
        entries.push((name, entry));
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(value) => value
            .integer()
            .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
            .ok_or("general.alignment is no power of two")?,
    };
    let start = cursor.at().next_multiple_of(alignment);
    let mut places = BTreeMap::new();
    for (name, entry) in entries {
        let place = entry.place(start, bytes.len() as u64);
        let place = place.map_err(|e| format!("tensor {name}: {e}"))?;
        if places.insert(name.clone(), place).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    match overlapping(places.iter().map(|(name, place)| (name.as_str(), &place.range))) {
        Some((one, other)) => Err(format!("tensors {one} and {other} overlap")),
        None => Ok((metadata, places)),
    }
}

/// What the file says about a tensor.
struct Entry {
    /// The dimension that is next to each other in memory first.
    dims: Vec<u64>,
    format: Format,
    offset: u64,
}

impl Entry {
    fn read(cursor: &mut Cursor) -> std::result::Result<Self, String> {
        let dims = match cursor.u32()? {
            n @ 1..=4 => (0..n).map(|_| cursor.u64()).collect::<std::result::Result<_, _>>()?,
            n => return Err(format!("has {n} dimensions; expected 1 to 4")),
        };
        Ok(Self {
            dims,
            format: Format::of(cursor.u32()?)?,
            offset: cursor.u64()?,
        })
    }

    /// Where it lies in a file of `length` bytes whose data begin at `start`.
    fn place(self, start: u64, length: u64) -> std::result::Result<Place, String> {
        let Self { dims, format, offset } = self;
        let (values, bytes) = format.block();
        if !dims[0].is_multiple_of(values) {
            return Err(format!(
                "rows of {} values are no whole blocks of {values}, as {} has them",
                dims[0],
                format.name()
            ));
        }
        let count = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let size = count.and_then(|n| (n / values).checked_mul(bytes));
        let first = start.checked_add(offset);
        let range = size
            .zip(first)
            .and_then(|(size, first)| Some(first..first.checked_add(size)?));
        let Some(range) = range.filter(|range| range.end <= length) else {
            return Err(format!(
                "truncated: {dims:?} values of {} at {offset} of the data lie beyond the {length} bytes of the file",
                format.name()
            ));
        };
        Ok(Place {
            format,
            shape: dims.iter().rev().map(|&n| n as usize).collect(),
            range: range.start as usize..range.end as usize,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
