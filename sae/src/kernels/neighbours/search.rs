//! The nearest other of each of many rows, on the processor.
//!
//! All pairs cost `n^2 d_in`, and all but a handful of the cosines are computed only to lose. So, as in
//! [`nominate`](super::super::nominate), a cheap product nominates and f32 decides: in integers of
//! eight bits or in bf16 where the processor has the instruction, otherwise in f32. A cosine serves both of its rows, so
//! that of the square of tiles those on and above the diagonal are enough. Of a tile nothing is kept but the largest cosine
//! of each row with each group of others, and of each column; where a group's is within the errors of a row's best, all
//! cosines with that group are computed again, as one dot product each, and the largest wins, of equal ones the first.
//!
//! Memory is a table of at most [`GROUPS`] numbers a row. Each of its numbers comes from one tile, and tiles are cut by
//! the number of rows alone, so neither threads nor luck decide anything.
//!
//! **The bound** is that of nominations, with one difference: rows that are nearly one are rounded alike, so that the errors
//! of both factors add up instead of being independent. f32 adds the rounding of its sums, which is what remains of the
//! bound where the product is f32.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use activations::product::{PANEL, Strided, dense};
use rayon::prelude::*;

use super::super::buffers;
use super::super::cpu::ROWS_A_TASK;
use super::super::rough::{self, Product, SPREADS};
use super::super::simd::{self, Level, dot, for_each_level};
use super::LEAST_NORM;

/// Groups of rows at most: 768 bytes of the table for each row. Few in tests, so that groups are of several panels.
const GROUPS: usize = if cfg!(test) { 3 } else { 192 };

/// Rows of a tile, about: while a panel of the others stays in the cache, so many are multiplied by it.
const TILE_ROWS: usize = 3 * PANEL;

/// Columns of a tile, about: with as many rows it stays in the cache until its maxima are taken. Few in
/// tests, so that there is more than one tile beside another.
const TILE_COLUMNS: usize = if cfg!(test) { 4 } else { 24 } * PANEL;

/// Errors up to this share of the spread of random rows' cosines are small enough for integers: groups of two or three a
/// row are then computed again.
const CHEAP: f64 = 0.2;

/// Rows of length 1.
#[derive(Clone, Copy)]
pub struct UnitRows<'a> {
    /// `[n, d_in]`
    pub values: &'a [f32],
    /// Width of a row.
    pub d_in: usize,
}

#[inline(always)]
fn unit_body<const FMA: bool>(out: &mut [f32], row: &[f32]) {
    let norm = dot::<FMA>(row, row).sqrt().max(LEAST_NORM);
    for (out, &x) in out.iter_mut().zip(row) {
        *out = x / norm;
    }
}

for_each_level! {
    /// `out = row / max(|row|, LEAST_NORM)`, both `[width]`.
    fn unit(out: &mut [f32], row: &[f32]) = unit_body
}

/// The rows `latents` of `matrix: [_, width]`, divided by their norms: `out`, `[latents, width]`, overwritten.
pub fn unit_rows(level: Level, matrix: &[f32], width: usize, latents: &[i32], out: &mut [f32]) {
    out.par_chunks_mut(width)
        .zip(latents)
        .with_min_len(ROWS_A_TASK)
        .for_each(|(out, &i)| unit(level, out, &matrix[i as usize * width..][..width]));
}

impl UnitRows<'_> {
    fn len(&self) -> usize {
        self.values.len() / self.d_in
    }

    fn range(&self, rows: Range<usize>) -> &[f32] {
        &self.values[rows.start * self.d_in..rows.end * self.d_in]
    }

    /// For each row the index of the nearest other, by the cosine or its `magnitude`; of equally near ones the first. A
    /// cosine that is no number beats nobody, and whoever has no other gets the first other row. `[n]`, `n` at least 2.
    pub fn nearest(&self, level: Level, magnitude: bool, product: Product) -> Vec<i32> {
        let maxima = Maxima::new(self, level, magnitude, product);
        let errors = self.errors(level, product);
        let all: Vec<i32> = (0..self.len() as i32).collect();
        (0..self.len())
            .into_par_iter()
            .with_min_len(ROWS_A_TASK)
            .map_init(Vec::new, |cosines, i| {
                maxima.winner(i, errors[i], cosines, |cosines, group| {
                    simd::dot_rows(level, cosines, self.range(i..i + 1), &all[group], self.values);
                })
            })
            .collect()
    }

    /// What to nominate with: integers, unless the rows have outliers, by which their steps are too wide.
    pub fn product(&self, level: Level) -> Product {
        let native = |product: Product| product.is_native(level, self.d_in);
        if native(Product::Int8) {
            let errors = self.errors(level, Product::Int8).into_iter().map(f64::from);
            let random = 1.0 / (self.d_in as f64).sqrt();
            if errors.sum::<f64>() <= CHEAP * random * self.len() as f64 {
                return Product::Int8;
            }
        }
        if native(Product::Bf16) {
            Product::Bf16
        } else {
            Product::F32
        }
    }

    /// What a cosine of each row may be wrong by; not finite only for rows that have none.
    fn errors(&self, level: Level, product: Product) -> Vec<f32> {
        // Of both sums, the nominating and the deciding one. No partial sum is longer than a row.
        let sums = 2.0 * 2f64.powi(-24) * (self.d_in as f64).sqrt();
        let rows = self.values.par_chunks(self.d_in).with_min_len(ROWS_A_TASK);
        rows.zip(rough::errors_among(product, level, self.values, self.d_in))
            .map(|(row, error)| {
                let length = simd::sum_of_squares(level, row).sqrt();
                (error + SPREADS * sums * length) as f32
            })
            .collect()
    }
}

/// The larger one; `most` where `value` is no number.
#[inline(always)]
fn larger(most: f32, value: f32) -> f32 {
    if value > most { value } else { most }
}

#[inline(always)]
fn maxima_body<const FMA: bool>(
    tile: &[f32],
    width: usize,
    group: usize,
    magnitude: bool,
    rows: &mut [f32],
    columns: &mut [f32],
) {
    const LANES: usize = 16;
    columns.fill(f32::NEG_INFINITY);
    let score = |v: f32| if magnitude { v.abs() } else { v };
    let lines = tile
        .chunks_exact(width)
        .zip(rows.chunks_exact_mut(width.div_ceil(group)));
    for (r, (line, most)) in lines.enumerate() {
        let columns = columns[r / group * width..][..width].chunks_mut(group);
        for ((values, columns), most) in line.chunks(group).zip(columns).zip(most) {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            let (values, values_tail) = values.as_chunks::<LANES>();
            let (columns, columns_tail) = columns.as_chunks_mut::<LANES>();
            for (values, columns) in values.iter().zip(columns) {
                for ((lane, column), &v) in lanes.iter_mut().zip(columns).zip(values) {
                    *lane = larger(*lane, score(v));
                    *column = larger(*column, score(v));
                }
            }
            for ((lane, column), &v) in lanes.iter_mut().zip(columns_tail).zip(values_tail) {
                *lane = larger(*lane, score(v));
                *column = larger(*column, score(v));
            }
            *most = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
        }
    }
}

for_each_level! {
    /// The largest numbers of a tile, `[n, width]`, or the largest magnitudes: of every row in each `group` of columns,
    /// `rows: [n, ceil(width / group)]`, and of every column in each `group` of rows, `columns: [ceil(n / group), width]`.
    /// Overwritten; -inf where there is no number.
    fn maxima(
        tile: &[f32],
        width: usize,
        group: usize,
        magnitude: bool,
        rows: &mut [f32],
        columns: &mut [f32],
    ) = maxima_body
}

/// The largest cosine, or magnitude of one, of each row with each group of others.
struct Maxima {
    magnitude: bool,
    /// Number of rows.
    n: usize,
    /// Rows of a group.
    group: usize,
    /// `[n, ceil(n / group)]`, the bits of f32 numbers: tiles write where they like, but never two in the same place.
    table: Vec<AtomicU32>,
}

/// Room of a thread: a tile, the maxima of its rows and of its columns.
#[derive(Default)]
struct Room {
    tile: Vec<f32>,
    rows: Vec<f32>,
    columns: Vec<f32>,
}

impl Maxima {
    fn new(unit: &UnitRows, level: Level, magnitude: bool, product: Product) -> Self {
        thread_local! {
            static ROOM: RefCell<Room> = RefCell::default();
        }
        let n = unit.len();
        // Whole panels, so that a tile begins with one.
        let group = PANEL * n.div_ceil(PANEL * GROUPS);
        let about = |size: usize| group * (size / group).max(1);
        let (tile_rows, tile_columns) = (about(TILE_ROWS), about(TILE_COLUMNS));
        let mut table = Vec::new();
        table.resize_with(n * n.div_ceil(group), AtomicU32::default);
        let found = Self {
            magnitude,
            n,
            group,
            table,
        };
        let matrix = buffers::take_rough(product, unit.values, unit.d_in, None);
        let mut tiles = Vec::new();
        for first in (0..n).step_by(tile_rows) {
            let rows = first..n.min(first + tile_rows);
            let starts = (first..n).step_by(tile_columns);
            tiles.extend(starts.map(|start| (rows.clone(), start..n.min(start + tile_columns))));
        }
        tiles.into_par_iter().with_max_len(1).for_each(|(rows, columns)| {
            ROOM.with_borrow_mut(|room| {
                let width = columns.len();
                room.tile.resize(rows.len() * width, 0.0);
                let x = unit.range(rows.clone());
                match &matrix {
                    Some(matrix) => matrix.product(x, columns.clone(), &mut room.tile),
                    None => {
                        let others = Strided::transposed(unit.range(columns.clone()), unit.d_in);
                        let shape = [rows.len(), unit.d_in, width];
                        dense(shape, Strided::rows(x, unit.d_in), others, &mut room.tile, width);
                    }
                }
                found.take(level, rows, columns, room);
            });
        });
        if let Some(matrix) = matrix {
            buffers::give_back_rough(matrix);
        }
        found
    }

    fn groups(&self) -> usize {
        self.n.div_ceil(self.group)
    }

    /// Takes from the tile of `rows` and `columns` what it says of its rows, and of those columns that are no rows of it.
    fn take(&self, level: Level, rows: Range<usize>, columns: Range<usize>, room: &mut Room) {
        let (group, groups, width) = (self.group, self.groups(), columns.len());
        if rows.start == columns.start {
            // A row is no neighbour of itself.
            (0..rows.len().min(width)).for_each(|r| room.tile[r * width + r] = f32::NAN);
        }
        let (across, down) = (width.div_ceil(group), rows.len().div_ceil(group));
        room.rows.resize(rows.len() * across, 0.0);
        room.columns.resize(down * width, 0.0);
        let Room {
            tile,
            rows: row_maxima,
            columns: column_maxima,
        } = room;
        maxima(level, tile, width, group, self.magnitude, row_maxima, column_maxima);
        let put = |row: usize, group: usize, most: f32| {
            self.table[row * groups + group].store(most.to_bits(), Ordering::Relaxed);
        };
        for (maxima, row) in row_maxima.chunks_exact(across).zip(rows.clone()) {
            let maxima = maxima.iter().enumerate();
            maxima.for_each(|(g, &most)| put(row, columns.start / group + g, most));
        }
        for (g, maxima) in column_maxima.chunks_exact(width).enumerate() {
            let maxima = maxima.iter().zip(columns.clone()).filter(|(_, row)| *row >= rows.end);
            maxima.for_each(|(&most, row)| put(row, rows.start / group + g, most));
        }
    }

    /// The nearest other of row `i`, whose maxima may be wrong by `error`; `exact` computes its cosines with a group's rows.
    fn winner(&self, i: usize, error: f32, cosines: &mut Vec<f32>, exact: impl Fn(&mut [f32], Range<usize>)) -> i32 {
        let maxima = self.table[i * self.groups()..][..self.groups()].iter();
        let maxima = maxima.map(|bits| f32::from_bits(bits.load(Ordering::Relaxed)));
        let bar = maxima.clone().fold(f32::NEG_INFINITY, larger) - 2.0 * error;
        let (mut best, mut winner) = (f32::NEG_INFINITY, usize::from(i == 0));
        for (g, most) in maxima.enumerate() {
            // Those who can only be as good as one before them lose to it.
            if !(most >= bar && most + error > best) {
                continue;
            }
            let group = g * self.group..self.n.min((g + 1) * self.group);
            cosines.resize(group.len(), 0.0);
            exact(cosines, group.clone());
            for (&cosine, other) in cosines.iter().zip(group) {
                let score = if self.magnitude { cosine.abs() } else { cosine };
                if other != i && score > best {
                    (best, winner) = (score, other);
                }
            }
        }
        winner as i32
    }
}
