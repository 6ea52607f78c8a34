//! Activations in one array: a `.npy`, or a tensor of a safetensors file. Both are rows of numbers in one run of bytes.

use std::path::Path;

use super::Activations;
use super::kind::{Candidate, pick};
use super::rows::Run;
use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::npy::Npy;
use crate::safetensors_file::SafeTensors;

/// Where an array lies in its file.
struct Place<'a> {
    path: &'a Path,
    offset: u64,
    dtype: ActDtype,
    shape: [usize; 2],
}

/// The rows of a `.npy`.
pub(super) fn of_npy(path: &Path, hook: Option<&str>) -> Result<Activations> {
    if hook.is_some() {
        return Err(Error::Invalid(format!(
            "{}: an array has no hooks to choose from",
            path.display()
        )));
    }
    let npy = Npy::open(path)?;
    let bytes = (npy.n_rows() * npy.d_in() * npy.dtype().size()) as u64;
    // The array ends where the file ends: `Npy` refuses anything else.
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    let offset = length.checked_sub(bytes);
    open(
        Place {
            path,
            offset: offset.ok_or_else(|| Error::bad_file(path, "became shorter while it was being opened"))?,
            dtype: npy.dtype(),
            shape: [npy.n_rows(), npy.d_in()],
        },
        None,
    )
}

/// The rows of a tensor `[n, d]` of a safetensors file: of the one named `hook`, or of the only one there is.
pub(super) fn of_safetensors(path: &Path, hook: Option<&str>) -> Result<Activations> {
    let file = SafeTensors::open(path)?;
    let all = tensors(&file);
    let at = pick(path, "tensor", "F32, F16 or BF16 of two dimensions [n, d]", &all, hook)?;
    let name = &all[at].name;
    let (Some(&[n, d]), Some(range), Some(dtype)) = (
        file.shape(name),
        file.byte_range(name),
        file.dtype(name).and_then(number_format),
    ) else {
        unreachable!("only tensors of two dimensions in these formats are picked");
    };
    open(
        Place {
            path,
            offset: range.start as u64,
            dtype,
            shape: [n, d],
        },
        Some(name),
    )
}

/// The tensors of a file, and whether they can be rows.
pub(super) fn tensors(file: &SafeTensors) -> Vec<Candidate> {
    let tensor = |name: &str| {
        let (shape, dtype) = (
            file.shape(name).unwrap_or_default(),
            file.dtype(name).unwrap_or_default(),
        );
        Candidate {
            name: name.to_owned(),
            what: format!("{dtype} {shape:?}"),
            good: shape.len() == 2 && !shape.contains(&0) && number_format(dtype).is_some(),
        }
    };
    file.names().map(tensor).collect()
}

fn number_format(dtype: &str) -> Option<ActDtype> {
    match dtype {
        "F16" => Some(ActDtype::F16),
        "BF16" => Some(ActDtype::Bf16),
        "F32" => Some(ActDtype::F32),
        _ => None,
    }
}

fn open(place: Place<'_>, name: Option<&str>) -> Result<Activations> {
    let [n, d_in] = place.shape;
    let run = Run {
        file: 0,
        offset: place.offset,
        rows: n as u64,
    };
    let files = vec![place.path.to_owned()];
    Activations::foreign(
        place.path,
        name,
        files,
        vec![run],
        (place.dtype, d_in, 1),
        vec![n as u64],
    )
}
