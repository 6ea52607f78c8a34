//! Where the numbers of a column lie in one record batch of an Arrow stream.
//!
//! A batch lists its buffers in the order of its columns, a fixed number for each type, so those of a column are found
//! by counting, and the others are never looked at. Arrow's own decoder would build arrays of every column, check all
//! texts in them, and trusts a table of buffers more than a file from elsewhere deserves; here every place is checked
//! against the body before it is used.

use std::ops::Range;

use arrow_ipc::RecordBatch;
use arrow_schema::{DataType, Schema, UnionMode};

use super::nested::{Checked, describe, uneven};

/// The numbers of a column in a batch.
pub(super) struct Numbers {
    /// Their place in the batch's body.
    pub bytes: Range<usize>,
    /// How long the lists are, from the outermost; of bytes, how many.
    pub lengths: Vec<usize>,
}

/// Finds the numbers of column number `column` in a batch that has rows. Errors count rows from `first`.
pub(super) fn numbers(
    batch: RecordBatch<'_>,
    schema: &Schema,
    column: usize,
    body: &[u8],
    first: u64,
) -> Checked<Numbers> {
    if batch.compression().is_some() {
        return Err("is compressed: save the dataset anew, or as Parquet".into());
    }
    let (mut node, mut buffer) = (0, 0);
    for field in &schema.fields()[..column] {
        let (nodes, buffers) = parts(field.data_type()).ok_or_else(|| {
            format!(
                "stands behind {}, of a type that is not known here: save Parquet",
                field.name()
            )
        })?;
        (node, buffer) = (node + nodes, buffer + buffers);
    }
    let mut walk = Walk {
        body,
        nodes: batch
            .nodes()
            .into_iter()
            .flatten()
            .skip(node)
            .map(|n| (n.length(), n.null_count())),
        buffers: batch
            .buffers()
            .into_iter()
            .flatten()
            .skip(buffer)
            .map(|b| (b.offset(), b.length())),
        lengths: Vec::new(),
        first,
    };
    let rows = usize::try_from(batch.length()).map_err(|_| damaged())?;
    let bytes = walk.numbers(schema.field(column).data_type(), rows)?;
    match walk.lengths.contains(&0) {
        true => Err(format!("row {first} is empty")),
        false => Ok(Numbers {
            bytes,
            lengths: walk.lengths,
        }),
    }
}

fn damaged() -> String {
    "is damaged: its table of buffers does not fit the batch".into()
}

/// Nodes and buffers that a column of a type has in a batch; `None` where that depends on the batch.
fn parts(of: &DataType) -> Option<(usize, usize)> {
    let with = |own: usize, children: Vec<&DataType>| {
        children.into_iter().try_fold((1, own), |(nodes, buffers), child| {
            let (n, b) = parts(child)?;
            Some((nodes + n, buffers + b))
        })
    };
    match of {
        DataType::Null => Some((1, 0)),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => Some((1, 3)),
        DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => with(2, vec![item.data_type()]),
        DataType::FixedSizeList(item, _) => with(1, vec![item.data_type()]),
        DataType::ListView(item) | DataType::LargeListView(item) => with(3, vec![item.data_type()]),
        DataType::Struct(fields) => with(1, fields.iter().map(|f| f.data_type()).collect()),
        DataType::Union(fields, mode) => {
            let own = if *mode == UnionMode::Dense { 2 } else { 1 };
            with(own, fields.iter().map(|(_, f)| f.data_type()).collect())
        }
        DataType::RunEndEncoded(ends, values) => with(0, vec![ends.data_type(), values.data_type()]),
        DataType::Utf8View | DataType::BinaryView => None,
        // Numbers, times, flags, bytes of one width, and numbers into a dictionary.
        _ => Some((1, 2)),
    }
}

/// Walks down the lists of a column.
struct Walk<'a, N, B> {
    body: &'a [u8],
    /// Length and number of nulls of what is next.
    nodes: N,
    /// Place and length of the buffers that are next.
    buffers: B,
    lengths: Vec<usize>,
    first: u64,
}

impl<N: Iterator<Item = (i64, i64)>, B: Iterator<Item = (i64, i64)>> Walk<'_, N, B> {
    /// The numbers of a column with `rows` rows.
    fn numbers(&mut self, of: &DataType, rows: usize) -> Checked<Range<usize>> {
        // Lists count on from where the ones around them begin.
        let (mut of, mut all) = (of, 0..rows);
        loop {
            self.no_nulls(&all)?;
            let each = match of {
                DataType::List(item) => {
                    of = item.data_type();
                    self.even::<4>(&all)?
                }
                DataType::LargeList(item) => {
                    of = item.data_type();
                    self.even::<8>(&all)?
                }
                DataType::FixedSizeList(item, length) => {
                    of = item.data_type();
                    times(&all, *length)?
                }
                _ => break,
            };
            let n = each.len() / all.len();
            self.lengths.push(n);
            if n == 0 {
                return Ok(0..0);
            }
            all = each;
        }
        let bytes = match of {
            DataType::Float16 => times(&all, 2)?,
            DataType::Float32 => times(&all, 4)?,
            DataType::Float64 => times(&all, 8)?,
            DataType::FixedSizeBinary(width) => times(&all, *width)?,
            DataType::Binary => self.even::<4>(&all)?,
            DataType::LargeBinary => self.even::<8>(&all)?,
            other => return Err(format!("holds {}", describe(other))),
        };
        if !matches!(of, DataType::Float16 | DataType::Float32 | DataType::Float64) {
            self.lengths.push(bytes.len() / all.len());
        }
        let buffer = self.buffer()?;
        match bytes.end <= buffer.len() {
            true => Ok(buffer.start + bytes.start..buffer.start + bytes.end),
            false => Err(damaged()),
        }
    }

    /// The next buffer's place in the body.
    fn buffer(&mut self) -> Checked<Range<usize>> {
        let (offset, length) = self.buffers.next().ok_or_else(damaged)?;
        let start = usize::try_from(offset).map_err(|_| damaged())?;
        let end = usize::try_from(length).ok().and_then(|n| start.checked_add(n));
        match end {
            Some(end) if end <= self.body.len() => Ok(start..end),
            _ => Err(damaged()),
        }
    }

    /// Takes the next node with its buffer of flags, and refuses values of `all` that are missing.
    fn no_nulls(&mut self, all: &Range<usize>) -> Checked<()> {
        let (length, nulls) = self.nodes.next().ok_or_else(damaged)?;
        if usize::try_from(length).ok().is_none_or(|length| length < all.end) {
            return Err(damaged());
        }
        let flags = self.buffer()?;
        if nulls == 0 || flags.is_empty() {
            return Ok(());
        }
        let flags = &self.body[flags];
        let there = |at: usize| flags.get(at / 8).is_some_and(|bits| bits >> (at % 8) & 1 == 1);
        match all.clone().find(|&at| !there(at)) {
            Some(at) => Err(format!(
                "row {} has no value: drop or fill it",
                self.row(at - all.start)
            )),
            None => Ok(()),
        }
    }

    /// What the lists of `all` hold, if all are equally long. The next buffer has their borders in `N` bytes each.
    fn even<const BYTES: usize>(&mut self, all: &Range<usize>) -> Checked<Range<usize>> {
        let buffer = self.buffer()?;
        let (start, end) = (
            all.start.checked_mul(BYTES),
            all.end.checked_add(1).and_then(|n| n.checked_mul(BYTES)),
        );
        let (Some(start), Some(end)) = (start, end) else {
            return Err(damaged());
        };
        let borders = self.body[buffer].get(start..end).ok_or_else(damaged)?;
        let border = |at: usize| {
            let mut bytes = [0; 8];
            bytes[..BYTES].copy_from_slice(&borders[at * BYTES..(at + 1) * BYTES]);
            u64::from_le_bytes(bytes) as usize
        };
        let length = |at: usize| border(at + 1).checked_sub(border(at)).ok_or_else(damaged);
        let first = length(0)?;
        for at in 1..all.len() {
            let length = length(at)?;
            if length != first {
                return Err(uneven(self.row(at), length, first));
            }
        }
        Ok(border(0)..border(all.len()))
    }

    /// The row of the file that value number `at` of this level belongs to.
    fn row(&self, at: usize) -> u64 {
        self.first + (at / self.lengths.iter().product::<usize>().max(1)) as u64
    }
}

/// The places of `all`, each of `n`.
fn times(all: &Range<usize>, n: i32) -> Checked<Range<usize>> {
    let n = usize::try_from(n).map_err(|_| damaged())?;
    let end = all.end.checked_mul(n).ok_or_else(damaged)?;
    Ok(all.start * n..end)
}
