//! Which rows of a matrix lie closest to each other, and how close: what keeps decoder rows apart needs.
//!
//! Finding the nearest row is a search, and nothing is differentiated in it; [`cosines`] of the pairs found are an operation
//! with its own way back. So the search may be done with half the numbers and less than half the products (`search`), and the
//! rest costs a few passes over the matrix: rows are divided by their norms nowhere but in the search.

mod pairs;
mod portable;
mod search;
#[cfg(test)]
mod tests;

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

pub(super) use self::pairs::Pairs;
pub(super) use self::portable::{
    cosines as portable_cosines, cosines_backward as portable_cosines_backward, nearest as portable_nearest,
};
pub(super) use self::search::{UnitRows, unit_rows};
use super::Search;
use super::ops::SparseOps;

/// Norms below this count as this.
const LEAST_NORM: f32 = 1e-6;

/// For each of the rows `latents` of `matrix`, which other of them has the largest cosine with it, or with `absolute` the
/// largest magnitude of one: `[latents]`, rows of `matrix`.
///
/// `matrix`: `[d_sae, width]`; `latents`: at least two rows, each once. On the CPU the nearest by their cosines in f32, whatever
/// `search`, but for one in a billion; of equally near ones the first in `latents`. A cosine that is no number beats nobody.
/// Not differentiable.
///
/// # Panics
/// If there are fewer than two latents, or one is not below `d_sae`.
pub fn nearest(matrix: Tensor<2>, latents: Tensor<1, Int>, absolute: bool, search: Search) -> Tensor<1, Int> {
    let [n] = latents.dims();
    assert!(n >= 2, "{n} rows have no neighbours");
    Tensor::from_dispatch(Dispatch::sparse_nearest(
        matrix.into_dispatch(),
        latents.into_dispatch(),
        absolute,
        search == Search::Exact,
    ))
}

/// The cosine of the rows `ours[p]` and `others[p]` of `matrix`: `[pairs]`. Norms below 1e-6 count as that.
///
/// `matrix`: `[d_sae, width]`, in which it is differentiable, at both rows of a pair. The way back costs `pairs * width` and a
/// pass over the matrix.
///
/// # Panics
/// If there are not as many others as ours, or an index is not below `d_sae`.
pub fn cosines(matrix: Tensor<2>, ours: Tensor<1, Int>, others: Tensor<1, Int>) -> Tensor<1> {
    assert_eq!(ours.dims(), others.dims(), "a pair has two rows");
    Tensor::from_dispatch(Dispatch::sparse_cosines(
        matrix.into_dispatch(),
        ours.into_dispatch(),
        others.into_dispatch(),
    ))
}
