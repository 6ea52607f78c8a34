//! Which column of a file of Arrow's types holds activations, and as what numbers.

use std::path::Path;

use arrow_schema::Schema;

use super::kind::{Candidate, pick};
use super::nested::{Checked, Leaf, describe};
use crate::dtype::ActDtype;
use crate::error::Result;

/// What a column needs.
const EXPECTED: &str = "lists of float16, float32 or float64, lists of such lists (a context a row), or binary of one \
     width";

/// How the values of a column become rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ColumnKind {
    pub leaf: Leaf,
    /// The number format of the rows.
    pub dtype: ActDtype,
}

impl ColumnKind {
    /// Width of a row, and rows of the activations in a row of the file, from the lengths of its lists.
    pub fn shape(self, lengths: &[usize]) -> Checked<(usize, u64)> {
        let (&last, before) = lengths
            .split_last()
            .expect("a column of activations has at least one level");
        let context_rows = before.iter().product::<usize>() as u64;
        match self.leaf {
            Leaf::Bytes if !last.is_multiple_of(self.dtype.size()) => Err(format!(
                "has rows of {last} bytes, which are no whole numbers of {}",
                self.dtype
            )),
            Leaf::Bytes => Ok((last / self.dtype.size(), context_rows)),
            _ => Ok((last, context_rows)),
        }
    }
}

/// The columns of files of this schema.
pub(super) fn candidates(schema: &Schema) -> Vec<Candidate> {
    let candidate = |field: &arrow_schema::FieldRef| Candidate {
        name: field.name().clone(),
        what: describe(field.data_type()),
        good: Leaf::of(field.data_type()).is_some(),
    };
    schema.fields().iter().map(candidate).collect()
}

/// The number of the column that is wanted, or of the only one that can hold activations.
pub(super) fn choose(path: &Path, schema: &Schema, wanted: Option<&str>) -> Result<usize> {
    pick(path, "column", EXPECTED, &candidates(schema), wanted)
}

/// The column of a name. Bytes have the number format that was asked for, or that the field or the file says under
/// `dtype` (`sae.dtype` in the files of a store).
pub(super) fn column(schema: &Schema, name: &str, asked: Option<ActDtype>) -> Checked<(usize, ColumnKind)> {
    let at = schema
        .index_of(name)
        .map_err(|_| format!("has no column {name:?}, which the files before it have"))?;
    let field = schema.field(at);
    let Some(leaf) = Leaf::of(field.data_type()) else {
        return Err(format!(
            "has column {name} of {}, expected {EXPECTED}",
            describe(field.data_type())
        ));
    };
    let of_file = |key| schema.metadata().get(key);
    let said = field
        .metadata()
        .get("dtype")
        .or(of_file("dtype"))
        .or(of_file("sae.dtype"));
    let dtype = leaf
        .dtype(asked, said.and_then(|name| dtype_named(name)))
        .map_err(|problem| format!("column {name} {problem}"))?;
    Ok((at, ColumnKind { leaf, dtype }))
}

/// A number format by any of the names that files use.
fn dtype_named(name: &str) -> Option<ActDtype> {
    match name {
        "f16" | "float16" | "<f2" | "F16" | "torch.float16" => Some(ActDtype::F16),
        "bf16" | "bfloat16" | "BF16" | "torch.bfloat16" => Some(ActDtype::Bf16),
        "f32" | "float32" | "<f4" | "F32" | "torch.float32" => Some(ActDtype::F32),
        _ => None,
    }
}
