//! The one dense product of a step, into a buffer of ours.
//!
//! burn's product allocates its result. For a tile of pre-activations that means pages which the kernel has to find,
//! clear and take back tile after tile; it showed as a fifth of a step.

use activations::product::{Strided, dense, dense_parallel};

/// Elements of a tile of pre-activations: `[batch, d_sae]` never exists whole. The product packs the weights anew for
/// every tile, so tiles are large enough that this is little beside it, and hardly larger.
pub(crate) const TILE_ELEMENTS: usize = 1 << 23;

/// Rows of a tile at least, for the sake of the product.
pub(crate) const TILE_ROWS: usize = 64;

/// Below this many multiplications threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 20;

/// `out = x w^T`, overwritten.
///
/// `x`: `[rows, d_in]`; `w`: `[d_sae, d_in]`; `out`: `[rows, d_sae]`.
pub fn rows(x: &[f32], w: &[f32], d_in: usize, out: &mut [f32]) {
    let (n_rows, d_sae) = (x.len() / d_in, w.len() / d_in);
    let product = if x.len().saturating_mul(d_sae) < PARALLEL_FROM {
        dense
    } else {
        dense_parallel
    };
    let (x, w) = (Strided::rows(x, d_in), Strided::transposed(w, d_in));
    product([n_rows, d_in, d_sae], x, w, out, d_sae);
}
