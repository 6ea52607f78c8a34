//! Arrow's arrays as plain rows of numbers.
//!
//! Everybody nests in another way: a list a row, a list of fixed length, a list of lists (a row for each token of a
//! context, as SAELens' caches have), a string of bytes. All of them lie in memory as one run of numbers once it is
//! known that nothing is missing and that all lists are equally long, and only that is looked at here: no number is
//! copied.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, OffsetSizeTrait};
use arrow_buffer::{Buffer, OffsetBuffer};
use arrow_schema::DataType;

use crate::dtype::ActDtype;

/// A result whose error is the problem with a file that the caller names.
pub(super) type Checked<T> = std::result::Result<T, String>;

/// What a column's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    F16,
    F32,
    F64,
    /// Bytes of numbers whose format the column's type does not say.
    Bytes,
}

impl Leaf {
    /// The leaf of a column that can be read as rows: numbers in one or two levels of lists, or bytes.
    pub fn of(column: &DataType) -> Option<Self> {
        let (mut of, mut depth) = (column, 0);
        while let DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) = of {
            (of, depth) = (item.data_type(), depth + 1);
        }
        match (of, depth) {
            (DataType::Float16, 1 | 2) => Some(Self::F16),
            (DataType::Float32, 1 | 2) => Some(Self::F32),
            (DataType::Float64, 1 | 2) => Some(Self::F64),
            (DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_), 0) => Some(Self::Bytes),
            _ => None,
        }
    }

    /// The number format of the rows: the column's own, or, of bytes, what was asked for or what the file says.
    pub fn dtype(self, asked: Option<ActDtype>, said: Option<ActDtype>) -> Checked<ActDtype> {
        let own = match self {
            Self::F16 => ActDtype::F16,
            Self::F32 | Self::F64 => ActDtype::F32,
            Self::Bytes if asked == Some(ActDtype::Int8) => {
                return Err("holds bytes, and int8 is a format of our own stores: give f16, bf16 or f32".into());
            }
            Self::Bytes => {
                return asked.or(said).ok_or_else(|| {
                    "holds bytes, and nothing in the file says of which numbers: give --acts-dtype f16, bf16 or f32"
                        .into()
                });
            }
        };
        match asked {
            Some(asked) if asked != own => Err(format!(
                "holds numbers that are read as {own}, not as {asked}: leave --acts-dtype out, it is for columns of bytes"
            )),
            _ => Ok(own),
        }
    }
}

/// A column's type in words.
pub(super) fn describe(of: &DataType) -> String {
    match of {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            let length = match of {
                DataType::FixedSizeList(_, n) => format!("list of {n} "),
                _ => "list of ".into(),
            };
            length + &describe(item.data_type())
        }
        DataType::FixedSizeBinary(n) => format!("binary of {n} bytes"),
        DataType::Binary | DataType::LargeBinary => "binary".into(),
        DataType::Struct(_) => "struct".into(),
        other => other.to_string().to_lowercase(),
    }
}

/// The numbers of some rows of a column.
pub(super) struct Flat {
    /// All of them, in order, without gaps.
    pub values: Buffer,
    /// How long the lists are, from the outermost; of bytes, how many.
    pub lengths: Vec<usize>,
}

/// Looks through the lists of an array of at least one row. Errors count rows from `first`.
pub(super) fn flatten(array: &ArrayRef, first: u64) -> Checked<Flat> {
    let mut array = ArrayRef::clone(array);
    let mut lengths: Vec<usize> = Vec::new();
    loop {
        let inner: usize = lengths.iter().product();
        let row = |at: usize| first + (at / inner.max(1)) as u64;
        if let Some(null) = (array.null_count() > 0)
            .then(|| (0..array.len()).find(|&at| array.is_null(at)))
            .flatten()
        {
            return Err(format!("row {} has no value: drop or fill it", row(null)));
        }
        let values = match array.data_type() {
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let (start, length) = even(list.offsets(), row)?;
                lengths.push(length);
                list.values().slice(start, length * list.len())
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                let (start, length) = even(list.offsets(), row)?;
                lengths.push(length);
                list.values().slice(start, length * list.len())
            }
            DataType::FixedSizeList(_, length) => {
                lengths.push(*length as usize);
                ArrayRef::clone(array.as_fixed_size_list().values())
            }
            _ => {
                let values = leaf(&array, row, &mut lengths)?;
                return match lengths.contains(&0) {
                    true => Err(format!("row {first} is empty")),
                    false => Ok(Flat { values, lengths }),
                };
            }
        };
        array = values;
    }
}

/// The bytes of an array without lists.
fn leaf(array: &ArrayRef, row: impl Fn(usize) -> u64, lengths: &mut Vec<usize>) -> Checked<Buffer> {
    Ok(match array.data_type() {
        DataType::Float16 => array.as_primitive::<Float16Type>().values().inner().clone(),
        DataType::Float32 => array.as_primitive::<Float32Type>().values().inner().clone(),
        DataType::Float64 => array.as_primitive::<Float64Type>().values().inner().clone(),
        DataType::FixedSizeBinary(width) => {
            let binary = array.as_fixed_size_binary();
            lengths.push(*width as usize);
            binary.values().slice_with_length(0, binary.len() * *width as usize)
        }
        DataType::Binary => {
            let binary = array.as_binary::<i32>();
            let (start, length) = even(binary.offsets(), row)?;
            lengths.push(length);
            binary.values().slice_with_length(start, length * binary.len())
        }
        DataType::LargeBinary => {
            let binary = array.as_binary::<i64>();
            let (start, length) = even(binary.offsets(), row)?;
            lengths.push(length);
            binary.values().slice_with_length(start, length * binary.len())
        }
        other => return Err(format!("holds {}", describe(other))),
    })
}

/// Where the first list starts, and how long all of them are.
fn even<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>, row: impl Fn(usize) -> u64) -> Checked<(usize, usize)> {
    let length = |at: usize| (offsets[at + 1] - offsets[at]).as_usize();
    let first = length(0);
    match (1..offsets.len() - 1).find(|&at| length(at) != first) {
        None => Ok((offsets[0].as_usize(), first)),
        Some(at) => Err(uneven(row(at), length(at), first)),
    }
}

/// What is wrong with a row that is not as long as the ones before it.
pub(super) fn uneven(row: u64, length: usize, before: usize) -> String {
    format!("row {row} has {length} values and the ones before it {before}: all rows must have one width")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::types::Int32Type;
    use arrow_array::{BinaryArray, FixedSizeListArray, ListArray, PrimitiveArray};
    use arrow_schema::Field;

    use super::*;

    fn lists(rows: Vec<Option<Vec<Option<f32>>>>) -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows))
    }

    fn numbers(flat: &Flat) -> Vec<f32> {
        flat.values.typed_data::<f32>().to_vec()
    }

    #[test]
    fn lists_of_one_length_are_one_run_of_numbers_wherever_a_slice_begins() {
        let some = |a: f32, b: f32| Some(vec![Some(a), Some(b)]);
        let all = lists(vec![some(1.0, 2.0), some(3.0, 4.0), some(5.0, 6.0)]);
        let flat = flatten(&all.slice(1, 2), 0).unwrap();
        assert_eq!((numbers(&flat), flat.lengths), (vec![3.0, 4.0, 5.0, 6.0], vec![2]));
        let fixed = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
            [some(1.0, 2.0), some(3.0, 4.0), some(5.0, 6.0)],
            2,
        );
        let fixed: ArrayRef = Arc::new(fixed);
        assert_eq!(numbers(&flatten(&fixed.slice(2, 1), 0).unwrap()), [5.0, 6.0]);
        // Two contexts of one token.
        let item = Arc::new(Field::new("item", all.data_type().clone(), true));
        let nested: ArrayRef = Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([1, 1, 1]), all, None));
        let flat = flatten(&nested.slice(0, 2), 0).unwrap();
        assert_eq!((numbers(&flat), flat.lengths), (vec![1.0, 2.0, 3.0, 4.0], vec![1, 2]));
        let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"abcd", b"efgh"]));
        let flat = flatten(&bytes, 0).unwrap();
        assert_eq!((flat.values.as_slice(), flat.lengths), (&b"abcdefgh"[..], vec![4]));
    }

    #[test]
    fn rows_that_are_missing_or_of_another_length_are_named() {
        let row = |n: usize| Some(vec![Some(0.5); n]);
        for (rows, expected) in [
            (
                vec![row(2), row(2), row(3)],
                "row 102 has 3 values and the ones before it 2",
            ),
            (vec![row(2), None], "row 101 has no value"),
            (vec![row(2), Some(vec![Some(1.0), None])], "row 101 has no value"),
            (vec![row(0), row(0)], "row 100 is empty"),
        ] {
            let problem = flatten(&lists(rows), 100).err().expect(expected);
            assert!(problem.contains(expected), "{problem}");
        }
        let ints: ArrayRef = Arc::new(PrimitiveArray::<Int32Type>::from(vec![1]));
        assert!(flatten(&ints, 0).err().unwrap().contains("int32"));
    }

    #[test]
    fn bytes_need_a_format_and_numbers_have_one() {
        assert!(Leaf::Bytes.dtype(None, None).unwrap_err().contains("--acts-dtype"));
        assert_eq!(Leaf::Bytes.dtype(None, Some(ActDtype::Bf16)), Ok(ActDtype::Bf16));
        assert_eq!(
            Leaf::Bytes.dtype(Some(ActDtype::F16), Some(ActDtype::Bf16)),
            Ok(ActDtype::F16)
        );
        assert!(Leaf::F32.dtype(Some(ActDtype::F16), None).unwrap_err().contains("f32"));
        assert_eq!(Leaf::F64.dtype(None, None), Ok(ActDtype::F32));
    }
}
