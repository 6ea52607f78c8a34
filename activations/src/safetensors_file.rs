//! Reading safetensors files that may be truncated, foreign or hostile.
//!
//! Files are memory-mapped and **every length is checked against the file before anything is allocated or read**: a
//! header cannot promise more than the file holds. The checks are our own rather than the `safetensors` crate's
//! because an error must name the tensor that is wrong and what was expected.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use serde::Deserialize;

use crate::error::{Error, Result};

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

/// One entry of the header.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Where a tensor lies: in which file, with which format and shape.
#[derive(Clone, Debug)]
struct Place {
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    /// Byte range in the whole file.
    range: std::ops::Range<usize>,
}

/// The tensors of one or several safetensors files, mapped and validated.
pub struct SafeTensors {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Place>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl SafeTensors {
    /// Opens one file.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::BadFile`] naming the tensor that does not fit.
    pub fn open(path: &Path) -> Result<Self> {
        let mut all = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        all.add(path)?;
        Ok(all)
    }

    /// Opens the weights of a model directory: `model.safetensors`, or the shards that `model.safetensors.index.json`
    /// lists.
    ///
    /// # Errors
    /// As [`SafeTensors::open`]; also when neither file is there, when a shard is missing, or when a shard lacks a
    /// tensor that the index promises.
    pub fn open_model(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        if single.exists() {
            return Self::open(&single);
        }
        let index = dir.join("model.safetensors.index.json");
        if !index.exists() {
            return Err(Error::bad_file(
                dir,
                "no weights: expected model.safetensors or model.safetensors.index.json \
                 (weights in other formats must be saved as safetensors first)",
            ));
        }
        Self::open_shards(dir, &index)
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
        let shards: ShardIndex =
            serde_json::from_str(&text).map_err(|e| Error::bad_file(index, format!("not a shard index: {e}")))?;
        let mut all = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let mut names: Vec<&String> = shards.weight_map.values().collect();
        names.sort();
        names.dedup();
        for name in names {
            // Names come from a file that may be hostile: a shard lies beside its index and nowhere else.
            if Path::new(name).components().count() != 1 || name == ".." || name.contains('\\') {
                return Err(Error::bad_file(
                    index,
                    format!("shard name {name:?} is not a plain file name"),
                ));
            }
            all.add(&dir.join(name))?;
        }
        for (tensor, shard) in &shards.weight_map {
            if !all.tensors.contains_key(tensor) {
                return Err(Error::bad_file(
                    dir.join(shard),
                    format!("tensor {tensor} is missing, which the index promises"),
                ));
            }
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length < 8 {
            return Err(Error::bad_file(
                path,
                format!("truncated: {length} bytes, a safetensors file has at least 8"),
            ));
        }
        // SAFETY: the map is only read, as bytes. Another process that truncates the file meanwhile raises SIGBUS;
        // that is the documented limit of memory-mapping and no reader of a mapped file escapes it.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let number = self.files.len();
        for (name, place) in parse(path, &map, number)? {
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(Error::bad_file(path, format!("tensor {name} is in another shard too")));
            }
        }
        self.files.push((path.to_owned(), map));
        Ok(())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// The number format of a tensor as the file spells it (`F32`), if there is one of that name.
    pub fn dtype(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|t| t.dtype.as_str())
    }

    /// Where the bytes of a tensor lie in its file, if there is one of that name.
    pub fn byte_range(&self, name: &str) -> Option<std::ops::Range<usize>> {
        self.tensors.get(name).map(|t| t.range.clone())
    }

    /// The file that a tensor lies in, if there is one of that name.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|t| self.files[t.file].0.as_path())
    }

    /// The files, in the order opened.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    fn place(&self, name: &str) -> Result<(&Place, &Path, &[u8])> {
        let Some(place) = self.tensors.get(name) else {
            let first = self.files.first().map_or(Path::new(""), |(p, _)| p);
            return Err(Error::bad_file(first, format!("tensor {name} is missing")));
        };
        let (path, map) = &self.files[place.file];
        Ok((place, path, &map[place.range.clone()]))
    }

    /// The values of a tensor of f32, f16, bf16 or f64, as f32, row-major.
    ///
    /// # Errors
    /// [`Error::BadFile`] when the tensor is missing or of another format.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (place, path, bytes) = self.place(name)?;
        Ok(match place.dtype.as_str() {
            "F32" => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            "F16" => bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            "BF16" => bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            "F64" => {
                let wide = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
                bytes.chunks_exact(8).map(|b| wide(b) as f32).collect()
            }
            other => {
                return Err(Error::bad_file(
                    path,
                    format!("tensor {name} has dtype {other}; expected F32, F16 or BF16"),
                ));
            }
        })
    }

    /// The values of a tensor of I32 or I64.
    ///
    /// # Errors
    /// [`Error::BadFile`] when the tensor is missing or of another format.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let (place, path, bytes) = self.place(name)?;
        Ok(match place.dtype.as_str() {
            "I32" => bytes
                .chunks_exact(4)
                .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into())
                .collect(),
            "I64" => bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect(),
            other => {
                return Err(Error::bad_file(
                    path,
                    format!("tensor {name} has dtype {other}; expected I32 or I64"),
                ));
            }
        })
    }
}

/// Bytes of one value of a format, for the formats whose values are whole bytes.
fn value_size(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 1,
        "I16" | "U16" | "F16" | "BF16" => 2,
        "I32" | "U32" | "F32" => 4,
        "I64" | "U64" | "F64" | "C64" => 8,
        _ => return None,
    })
}

fn parse(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, Place)>> {
    let bad = |problem: String| Error::bad_file(path, problem);
    let length = bytes.len() as u64;
    let mut head = [0; 8];
    head.copy_from_slice(&bytes[..8]);
    let header = u64::from_le_bytes(head);
    if header > MAX_HEADER {
        return Err(bad(format!(
            "not a safetensors file: its header would be {header} bytes long (at most {MAX_HEADER})"
        )));
    }
    if header > length - 8 {
        return Err(bad(format!(
            "truncated: the header needs {header} bytes, {} are left",
            length - 8
        )));
    }
    let start = 8 + header;
    let mut raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes[8..start as usize])
        .map_err(|e| bad(format!("not a safetensors file: the header is not JSON: {e}")))?;
    raw.remove("__metadata__");
    let mut places = Vec::with_capacity(raw.len());
    for (name, value) in raw {
        let entry: Entry =
            serde_json::from_value(value).map_err(|e| bad(format!("tensor {name}: bad header entry: {e}")))?;
        let range = check(&entry, length - start).map_err(|problem| bad(format!("tensor {name}: {problem}")))?;
        let place = Place {
            file,
            dtype: entry.dtype,
            shape: entry.shape.iter().map(|&n| n as usize).collect(),
            range: (start + range.start) as usize..(start + range.end) as usize,
        };
        places.push((name, place));
    }
    match overlapping(places.iter().map(|(name, place)| (name.as_str(), &place.range))) {
        Some((one, other)) => Err(bad(format!("tensors {one} and {other} overlap"))),
        None => Ok(places),
    }
}

/// The byte range of `entry` in a data section of `data` bytes, if format, shape and offsets agree.
fn check(entry: &Entry, data: u64) -> std::result::Result<std::ops::Range<u64>, String> {
    let [start, end] = entry.data_offsets;
    if start > end {
        return Err(format!("data offsets {start}..{end} run backwards"));
    }
    if end > data {
        return Err(format!(
            "truncated: data offsets {start}..{end} lie beyond the {data} bytes of data"
        ));
    }
    let Some(size) = value_size(&entry.dtype) else {
        return Err(format!("unknown dtype {:?}", entry.dtype));
    };
    let bytes = entry.shape.iter().try_fold(size, |n, &d| n.checked_mul(d));
    if bytes != Some(end - start) {
        return Err(format!(
            "shape {:?} of {} does not fill its {} bytes of data",
            entry.shape,
            entry.dtype,
            end - start
        ));
    }
    Ok(start..end)
}

/// Two of the ranges that have a byte in common, by their names.
pub(crate) fn overlapping<'a>(
    ranges: impl Iterator<Item = (&'a str, &'a std::ops::Range<usize>)>,
) -> Option<(&'a str, &'a str)> {
    let mut sorted: Vec<_> = ranges.filter(|(_, range)| !range.is_empty()).collect();
    sorted.sort_by_key(|(_, range)| range.start);
    let found = sorted.windows(2).find(|pair| pair[1].1.start < pair[0].1.end);
    found.map(|pair| (pair[0].0, pair[1].0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn open(bytes: &[u8]) -> Result<SafeTensors> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        SafeTensors::open(&path)
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]},"c":{"dtype":"BF16","shape":[],"data_offsets":[12,14]}}"#;

    fn good() -> Vec<u8> {
        let mut data = Vec::new();
        data.extend_from_slice(&1.5f32.to_le_bytes());
        data.extend_from_slice(&(-2.0f32).to_le_bytes());
        data.extend_from_slice(&f16::from_f32(0.5).to_le_bytes());
        data.extend_from_slice(&f16::from_f32(4.0).to_le_bytes());
        data.extend_from_slice(&bf16::from_f32(-8.0).to_le_bytes());
        file(GOOD, &data)
    }

    #[test]
    fn three_formats_read_as_f32() {
        let all = open(&good()).unwrap();
        assert_eq!(all.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(all.read_f32("a").unwrap(), [1.5, -2.0]);
        assert_eq!(all.shape("b").unwrap(), [1, 2]);
        assert_eq!(all.read_f32("b").unwrap(), [0.5, 4.0]);
        assert_eq!(all.read_f32("c").unwrap(), [-8.0]);
    }

    #[test]
    fn hostile_files_are_refused_by_name() {
        let one = |entry: &str| file(&format!("{{\"w\":{entry}}}"), &[0; 16]);
        for (bytes, expected) in [
            (vec![1, 2, 3], "truncated: 3 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "header would be"),
            (1000u64.to_le_bytes().to_vec(), "the header needs 1000 bytes"),
            (file("[1]", &[]), "not JSON"),
            (
                one(r#"{"dtype":"F32","shape":[8],"data_offsets":[0,32]}"#),
                "tensor w: truncated",
            ),
            (
                one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,16]}"#),
                "tensor w: shape [3] of F32",
            ),
            (
                one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}"#),
                "tensor w: shape",
            ),
            (
                one(r#"{"dtype":"F32","shape":[0],"data_offsets":[16,0]}"#),
                "run backwards",
            ),
            (
                one(r#"{"dtype":"X9","shape":[4],"data_offsets":[0,16]}"#),
                "unknown dtype",
            ),
            (
                one(r#"{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}"#),
                "tensor w: bad header entry",
            ),
            (
                file(
                    r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}"#,
                    &[0; 12],
                ),
                "tensors a and b overlap",
            ),
        ] {
            let error = open(&bytes).err().expect(expected).to_string();
            assert!(
                error.contains(expected) && error.contains("x.safetensors"),
                "{error} should say {expected}"
            );
        }
        let error = open(&one(r#"{"dtype":"U8","shape":[16],"data_offsets":[0,16]}"#))
            .unwrap()
            .read_f32("w");
        assert!(error.unwrap_err().to_string().contains("dtype U8"));
    }

    #[test]
    fn shards_open_as_one_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |name: &str| {
            file(
                &format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#),
                &[7],
            )
        };
        let index = |text: &str| std::fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
        std::fs::write(dir.path().join("1.safetensors"), shard("a")).unwrap();
        std::fs::write(dir.path().join("2.safetensors"), shard("b")).unwrap();
        index(r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#);
        let all = SafeTensors::open_model(dir.path()).unwrap();
        assert_eq!(all.names().collect::<Vec<_>>(), ["a", "b"]);
        for (text, expected) in [
            (r#"{"weight_map":{"a":"3.safetensors"}}"#, "3.safetensors"),
            (r#"{"weight_map":{"z":"1.safetensors"}}"#, "tensor z is missing"),
            (r#"{"weight_map":{"a":"../1.safetensors"}}"#, "not a plain file name"),
            (r#"{"weights":{}}"#, "not a shard index"),
        ] {
            index(text);
            let error = SafeTensors::open_model(dir.path()).err().expect(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn mutated_files_never_panic(edits in prop::collection::vec((0usize..400, any::<u8>()), 1..8), keep in 0usize..400) {
            let mut bytes = good();
            for (at, byte) in edits {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(keep.max(1));
            if let Ok(all) = open(&bytes) {
                for name in all.names() {
                    let _ = (all.read_f32(name), all.read_i64(name));
                }
            }
        }
    }
}
