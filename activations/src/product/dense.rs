//! The f32 product of slices, by the library that burn's own product is made of: without a tensor around every operand,
//! into a buffer of ours, and with strides, so that a head is read and written where it lies.

use gemm::Parallelism;

/// A matrix in a slice: element `(r, c)` is at `r * rows + c * columns`.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// The elements.
    pub values: &'a [f32],
    /// From a row to the next.
    pub rows: usize,
    /// From a column to the next.
    pub columns: usize,
}

impl<'a> Strided<'a> {
    /// Rows of `width` elements one behind the other.
    pub fn rows(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            rows: width,
            columns: 1,
        }
    }

    /// The transpose of rows of `width` elements one behind the other.
    pub fn transposed(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            rows: 1,
            columns: width,
        }
    }

    fn holds(&self, n_rows: usize, n_columns: usize) -> bool {
        reach(n_rows, self.rows, n_columns, self.columns).is_some_and(|end| end <= self.values.len())
    }
}

/// One behind the last element that a matrix has.
fn reach(n_rows: usize, rows: usize, n_columns: usize, columns: usize) -> Option<usize> {
    if n_rows == 0 || n_columns == 0 {
        return Some(0);
    }
    let last = (n_rows - 1)
        .checked_mul(rows)?
        .checked_add((n_columns - 1).checked_mul(columns)?)?;
    last.checked_add(1)
}

/// `out = a b` on the calling thread; `out` has rows of `stride` elements, of which the first `n` are overwritten.
///
/// `a`: `[m, k]`; `b`: `[k, n]`; `out`: `[m, n]`.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn dense([m, k, n]: [usize; 3], a: Strided, b: Strided, out: &mut [f32], stride: usize) {
    product([m, k, n], a, b, out, stride, Parallelism::None);
}

/// As [`dense`], on the threads of rayon's pool.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn dense_parallel([m, k, n]: [usize; 3], a: Strided, b: Strided, out: &mut [f32], stride: usize) {
    product([m, k, n], a, b, out, stride, Parallelism::Rayon(0));
}

fn product([m, k, n]: [usize; 3], a: Strided, b: Strided, out: &mut [f32], stride: usize, parallelism: Parallelism) {
    let room = n <= stride && reach(m, stride, n, 1).is_some_and(|end| end <= out.len());
    assert!(
        a.holds(m, k) && b.holds(k, n) && room,
        "[{m}, {k}] times [{k}, {n}] of {} and {} elements into {}",
        a.values.len(),
        b.values.len(),
        out.len()
    );
    // SAFETY: the three slices have the elements that these shapes and strides reach (asserted above), `out` is borrowed
    // mutably and so overlaps neither input, its rows do not overlap each other because they are at most a stride wide,
    // and with `read_dst` false it is only written.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            a.values.as_ptr(),
            a.columns as isize,
            a.rows as isize,
            b.values.as_ptr(),
            b.columns as isize,
            b.rows as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_followed_and_nothing_beside_is_written() {
        // Columns 1 and 2 of three rows of four, times the transpose of two rows of two.
        let a: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let b = [1.0, 10.0, 2.0, 20.0];
        let mut out = [-1.0; 8];
        let a = Strided {
            values: &a[1..],
            rows: 4,
            columns: 1,
        };
        dense([3, 2, 2], a, Strided::transposed(&b, 2), &mut out, 3);
        assert_eq!(out, [21.0, 42.0, -1.0, 65.0, 130.0, -1.0, 109.0, 218.0]);
    }

    #[test]
    #[should_panic(expected = "[2, 2] times [2, 2] of 4 and 3 elements into 4")]
    fn a_slice_that_is_too_short_is_refused() {
        let mut out = [0.0; 4];
        dense(
            [2, 2, 2],
            Strided::rows(&[0.0; 4], 2),
            Strided::rows(&[0.0; 3], 2),
            &mut out,
            2,
        );
    }
}
