//! Writing safetensors files, some rows at a time, so that no matrix of a dictionary lies in memory twice.
//!
//! Reading is [`activations::safetensors_file`], which trusts nothing; this side writes what it reads.

use std::io::Write;
use std::path::Path;

use activations::atomic;
use burn::tensor::Tensor;

use crate::code::to_host;
use crate::error::{Error, Result};

/// Values of a matrix that are read and written at a time: 16 MiB; few in tests.
const PIECE: usize = if cfg!(test) { 5 } else { 4 << 20 };

/// One tensor to write.
pub(crate) struct Entry<'a> {
    /// The name it is read by.
    pub name: String,
    /// Where its values are.
    pub values: Values<'a>,
}

/// The values of a tensor, wherever they lie.
pub(crate) enum Values<'a> {
    /// As F32.
    Matrix(&'a Tensor<2>),
    /// As F32.
    Vector(&'a Tensor<1>),
    /// As F32, one dimension.
    Floats(&'a [f32]),
    /// As I64, one dimension.
    Counts(&'a [u64]),
}

impl<'a> Entry<'a> {
    /// An entry named `name`.
    pub fn new(name: impl Into<String>, values: Values<'a>) -> Self {
        Self {
            name: name.into(),
            values,
        }
    }

    fn dtype(&self) -> &'static str {
        match self.values {
            Values::Matrix(_) | Values::Vector(_) | Values::Floats(_) => "F32",
            Values::Counts(_) => "I64",
        }
    }

    fn shape(&self) -> Vec<usize> {
        match &self.values {
            Values::Matrix(t) => t.dims().to_vec(),
            Values::Vector(t) => t.dims().to_vec(),
            Values::Floats(f) => vec![f.len()],
            Values::Counts(c) => vec![c.len()],
        }
    }

    fn value_size(&self) -> usize {
        match self.values {
            Values::Matrix(_) | Values::Vector(_) | Values::Floats(_) => 4,
            Values::Counts(_) => 8,
        }
    }

    /// Puts all of its bytes, a piece at a time.
    fn put(&self, put: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut floats = |values: &[f32]| match values.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(Error::Invalid(format!("{} holds {v}: not written", self.name))),
            None => put(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
        };
        match &self.values {
            Values::Matrix(t) => {
                let [rows, width] = t.dims();
                let piece = (PIECE / width.max(1)).max(1);
                (0..rows).step_by(piece).try_for_each(|first| {
                    let rows = (*t).clone().slice([first..rows.min(first + piece), 0..width]);
                    floats(&to_host(rows.try_into_data())?)
                })
            }
            Values::Vector(t) => floats(&to_host((*t).clone().try_into_data())?),
            Values::Floats(values) => floats(values),
            Values::Counts(c) => put(&c.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
        }
    }
}

/// Writes `entries` to `path`, atomically.
///
/// # Errors
/// What the system says, naming the file; [`Error::Invalid`] naming the tensor that holds a NaN or an infinity: the old
/// file, if any, then stays.
pub(crate) fn write(path: &Path, entries: &[Entry]) -> Result<()> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for entry in entries {
        let shape = entry.shape();
        let end = offset + shape.iter().product::<usize>() * entry.value_size();
        let about = serde_json::json!({ "dtype": entry.dtype(), "shape": shape, "data_offsets": [offset, end] });
        header.insert(entry.name.clone(), about);
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // The format asks for data aligned to its values; spaces are its own padding.
    header.resize(header.len().next_multiple_of(8), b' ');
    atomic::write_with(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        entries.iter().try_for_each(|entry| entry.put(&mut put))
    })
}

#[cfg(test)]
mod tests {
    use activations::safetensors_file::SafeTensors;
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn what_is_written_reads_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let values: Vec<f32> = vec![1.5, -0.0, f32::MIN_POSITIVE, 3.0e38, 1.0 / 3.0, 7.0];
        let matrix = Tensor::<2>::from_data(TensorData::new(values.clone(), [3, 2]), &Device::flex());
        // A transposed view lies otherwise in memory.
        let transposed = matrix.clone().transpose();
        let counts = [0, 5, 1 << 40];
        write(
            &path,
            &[
                Entry::new("m", Values::Matrix(&matrix)),
                Entry::new("t", Values::Matrix(&transposed)),
                Entry::new("c", Values::Counts(&counts)),
            ],
        )
        .unwrap();
        let file = SafeTensors::open(&path).unwrap();
        assert_eq!(file.shape("m").unwrap(), [3, 2]);
        let read: Vec<u32> = file.read_f32("m").unwrap().iter().map(|v| v.to_bits()).collect();
        assert_eq!(read, values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        assert_eq!(file.shape("t").unwrap(), [2, 3]);
        assert_eq!(file.read_f32("t").unwrap()[..3], [values[0], values[2], values[4]]);
        assert_eq!(file.read_i64("c").unwrap(), [0, 5, 1 << 40]);
    }

    #[test]
    fn values_that_are_not_finite_are_refused_and_the_old_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        std::fs::write(&path, "old").unwrap();
        let broken = Tensor::<1>::from_floats([1.0, f32::NAN], &Device::flex());
        let error = write(&path, &[Entry::new("b_enc", Values::Vector(&broken))]).unwrap_err();
        assert!(error.to_string().contains("b_enc holds NaN"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
