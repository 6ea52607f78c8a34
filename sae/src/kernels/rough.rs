//! Products that are nearly right, and what they may be wrong by: to nominate with, where f32 decides.
//!
//! **The bounds.** An error of a product of two rows is a sum of as many small ones as a row has values, which are as good
//! as independent; so it is known by its spread, and we allow for [`SPREADS`] times that: one in a billion is beyond it.
//!
//! - Rounded to bf16, a number is wrong by a share of at most `2^-8`, and by a root mean square of `2^-8 / sqrt(8 ln 2)` if
//!   its logarithm is anything. So the spread is `sqrt(2)` of that, times `sqrt(sum x_j^2 w_j^2)`, which is at most
//!   `|x|_4 |w|_4`.
//! - As a whole multiple of a step, a number is wrong by at most half a step, and by a root mean square of `step / sqrt(12)`.
//!   Both sides together spread by `sqrt((step_x^2 |w|^2 + step_w^2 |x|^2) / 12)`. A step is a 127th of a row's largest
//!   value: rows with outliers are known less well, and whoever nominates with integers has to count nominees.

use std::ops::Range;

use activations::product::{Bf16Matrix, Bf16Rows, Int8Matrix, Int8Rows, int8};
use rayon::prelude::*;

use super::cpu::ROWS_A_TASK;
use super::simd::{self, Level};

/// Times the spread that an error is allowed.
pub(super) const SPREADS: f64 = 6.0;

/// What the numbers of a product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Integers of eight bits, and a step a row.
    Int8,
    /// bf16.
    Bf16,
    /// f32: not nearly right, but right.
    F32,
}

impl Product {
    /// Whether the processor has an instruction for it, for rows of that width.
    pub fn is_native(self, level: Level, d_in: usize) -> bool {
        match self {
            Self::Int8 => level >= Level::Avx512Vnni && d_in <= int8::MOST_INPUTS,
            Self::Bf16 => level >= Level::Avx512Bf16,
            Self::F32 => true,
        }
    }
}

/// Rows that others are multiplied by, `[d_out, d_in]`, in few bits.
pub enum RoughMatrix {
    /// See [`Product::Int8`].
    Int8(Int8Matrix),
    /// See [`Product::Bf16`].
    Bf16(Bf16Matrix),
}

impl RoughMatrix {
    /// Of `rows`, `[d_out, d_in]`; none for [`Product::F32`].
    pub fn new(product: Product, rows: &[f32], d_in: usize, bias: Option<&[f32]>) -> Option<Self> {
        match product {
            Product::Int8 => Some(Self::Int8(Int8Matrix::new(rows, d_in, bias))),
            Product::Bf16 => Some(Self::Bf16(Bf16Matrix::new(rows, d_in, bias))),
            Product::F32 => None,
        }
    }

    /// Becomes what [`new`](Self::new) makes of other rows, in the memory that it has.
    pub fn renew(&mut self, rows: &[f32], d_in: usize, bias: Option<&[f32]>) {
        match self {
            Self::Int8(matrix) => matrix.renew(rows, d_in, bias),
            Self::Bf16(matrix) => matrix.renew(rows, d_in, bias),
        }
    }

    /// What its numbers are.
    pub fn numbers(&self) -> Product {
        match self {
            Self::Int8(_) => Product::Int8,
            Self::Bf16(_) => Product::Bf16,
        }
    }

    /// `x W^T + b` for the rows of W in `columns`, which begin at a multiple of [`PANEL`](activations::product::PANEL), on the
    /// calling thread. `x`: `[rows, d_in]`; `out`: `[rows, columns]`.
    pub fn product(&self, x: &[f32], columns: Range<usize>, out: &mut [f32]) {
        match self {
            Self::Int8(matrix) => matrix.product_columns(x, columns, out),
            Self::Bf16(matrix) => matrix.product_columns(x, columns, out),
        }
    }

    /// Rows of `x`, `[rows, d_in]`, to be multiplied several times.
    pub fn rows(&self, x: &[f32], d_in: usize) -> RoughRows {
        match self {
            Self::Int8(_) => {
                let mut rows = Int8Rows::default();
                rows.fill(x, d_in);
                RoughRows::Int8(rows)
            }
            Self::Bf16(_) => {
                let mut rows = Bf16Rows::default();
                rows.fill(x, d_in);
                RoughRows::Bf16(rows)
            }
        }
    }

    /// As [`product`](Self::product) with rows that this matrix converted.
    pub fn product_of(&self, x: &RoughRows, columns: Range<usize>, out: &mut [f32]) {
        match (self, x) {
            (Self::Int8(matrix), RoughRows::Int8(x)) => matrix.product_of(x, columns, out),
            (Self::Bf16(matrix), RoughRows::Bf16(x)) => matrix.product_of(x, columns, out),
            _ => unreachable!("rows of another matrix"),
        }
    }
}

/// See [`RoughMatrix::rows`].
pub enum RoughRows {
    /// For [`RoughMatrix::Int8`].
    Int8(Int8Rows),
    /// For [`RoughMatrix::Bf16`].
    Bf16(Bf16Rows),
}

/// What is known of a row, as far as the errors of its products are concerned.
#[derive(Clone, Copy, Default)]
struct Row {
    /// Its length: in the fourth norm under bf16, whose errors are shares of each value.
    size: f64,
    /// The spread of the errors of its values, in the same norm.
    error: f64,
}

/// Of each of `rows`, `[n, d_in]`, whose steps may be known, `[n]`.
fn known(product: Product, level: Level, rows: &[f32], d_in: usize, steps: Option<&[f32]>) -> Vec<Row> {
    let row = |(at, row): (usize, &[f32])| match product {
        Product::F32 => Row::default(),
        Product::Bf16 => {
            let size = simd::sum_of_fourth_powers(level, row).sqrt().sqrt();
            let share = 2f64.powi(-8) * (1.0 / (8.0 * 2f64.ln())).sqrt();
            Row {
                size,
                error: share * size,
            }
        }
        Product::Int8 => Row {
            size: simd::sum_of_squares(level, row).sqrt(),
            error: f64::from(steps.map_or_else(|| int8::step(level, row), |steps| steps[at])) / 12f64.sqrt(),
        },
    };
    let rows = rows.par_chunks(d_in).enumerate();
    rows.with_min_len(ROWS_A_TASK).map(row).collect()
}

/// The largest, or a NaN if there is one, which `f64::max` would pass over.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |a, b| if b <= a { a } else { b })
}

/// What the products of each row of `x`, `[rows, d_in]`, with those of `matrix`, made of `w`, `[d_out, d_in]`, may be wrong
/// by, `[rows]`: not finite where nothing can be said.
pub fn errors(matrix: &RoughMatrix, level: Level, w: &[f32], x: &[f32], d_in: usize) -> Vec<f32> {
    let (product, steps) = match matrix {
        RoughMatrix::Int8(matrix) => (Product::Int8, Some(matrix.steps())),
        RoughMatrix::Bf16(_) => (Product::Bf16, None),
    };
    let w = known(product, level, w, d_in, steps);
    let widest = Row {
        size: largest(w.iter().map(|w| w.size)),
        error: largest(w.iter().map(|w| w.error)),
    };
    let x = known(product, level, x, d_in, None).into_iter();
    x.map(|x| {
        let largest_product = x.size * widest.size * (d_in as f64).sqrt();
        if largest_product < f64::from(f32::MAX) / 4.0 {
            (SPREADS * (x.error * widest.size).hypot(widest.error * x.size)) as f32
        } else {
            f32::NAN
        }
    })
    .collect()
}

/// What the products of each of `rows`, `[n, d_in]`, with the others may be wrong by, `[n]`: not finite for rows that are
/// not. They may be nearly one and rounded alike, so that the errors of both add up instead of being independent.
pub fn errors_among(product: Product, level: Level, rows: &[f32], d_in: usize) -> Vec<f64> {
    let rows = known(product, level, rows, d_in, None);
    let widest = |of: fn(&Row) -> f64| rows.iter().map(of).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let (size, error) = (widest(|row| row.size), widest(|row| row.error));
    let rows = rows.iter();
    rows.map(|row| SPREADS * (row.error * size + error * row.size))
        .collect()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Sums of twelve uniform numbers less six: nearly normal.
    fn normal(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
        let number = |rng: &mut ChaCha8Rng| (0..12).map(|_| rng.random_range(0.0..1f32)).sum::<f32>() - 6.0;
        (0..n).map(|_| number(rng)).collect()
    }

    #[test]
    fn no_product_is_wrong_by_more_than_is_said_and_that_is_not_much_more_than_needed() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let (d_in, n, d_out) = (192, 60, 480);
        let (x, w) = (normal(&mut rng, n * d_in), normal(&mut rng, d_out * d_in));
        for product in [Product::Int8, Product::Bf16] {
            let matrix = RoughMatrix::new(product, &w, d_in, None).unwrap();
            let errors = errors(&matrix, Level::Scalar, &w, &x, d_in);
            let mut out = vec![0.0; n * d_out];
            matrix.product(&x, 0..d_out, &mut out);
            let mut worst = 0f64;
            for ((x, out), error) in x.chunks(d_in).zip(out.chunks(d_out)).zip(errors) {
                for (w, &found) in w.chunks(d_in).zip(out) {
                    let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    worst = worst.max((f64::from(found) - exact).abs() / f64::from(error));
                }
            }
            // Of 28,800 normal errors the largest is about four spreads, of the six; the bounds are for the widest row.
            assert!((0.3..1.0).contains(&worst), "{product:?}: {worst}");
        }
    }

    #[test]
    fn nothing_is_said_of_rows_that_are_not_finite_or_whose_products_are_not() {
        let of = |product: Product, w: &[f32], x: &[f32]| {
            let matrix = RoughMatrix::new(product, w, 2, None).unwrap();
            errors(&matrix, Level::Scalar, w, x, 2)
        };
        for product in [Product::Int8, Product::Bf16] {
            let x = [1.0, 1.0, f32::NAN, 1.0, 0.0, 0.0, f32::INFINITY, 1.0];
            let found = of(product, &[1.0, -2.0, 0.5, 1.0], &x);
            assert!(found[0].is_finite() && found[0] > 0.0 && found[2] == 0.0, "{found:?}");
            assert!(!found[1].is_finite() && !found[3].is_finite(), "{found:?}");
            assert!(!of(product, &[1.0, f32::NAN], &[1.0, 1.0])[0].is_finite());
            assert!(!of(product, &[1e25, 0.0], &[1e25, 0.0])[0].is_finite());
        }
    }
}
