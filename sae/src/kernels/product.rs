//! The one dense product of a step, into a buffer of ours.
//!
//! burn's product allocates its result. For a tile of pre-activations that means pages which the kernel has to find,
//! clear and take back tile after tile; it showed as a fifth of a step.

use gemm::Parallelism;

/// Below this many multiplications threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 20;

/// `out = x w^T`, overwritten.
///
/// `x`: `[rows, d_in]`; `w`: `[d_sae, d_in]`; `out`: `[rows, d_sae]`.
pub fn rows(x: &[f32], w: &[f32], d_in: usize, out: &mut [f32]) {
    let (n_rows, d_sae) = (x.len() / d_in, w.len() / d_in);
    assert!(
        x.len() == n_rows * d_in && w.len() == d_sae * d_in && out.len() == n_rows * d_sae,
        "[{n_rows}, {d_in}] times [{d_sae}, {d_in}] into {} elements",
        out.len()
    );
    let parallelism = if x.len().saturating_mul(d_sae) < PARALLEL_FROM {
        Parallelism::None
    } else {
        Parallelism::Rayon(0)
    };
    // SAFETY: the three slices have exactly the elements that these shapes and strides reach (asserted above), `out` is
    // borrowed mutably and so overlaps neither input, and with `read_dst` false it is only written.
    unsafe {
        gemm::gemm(
            n_rows,
            d_sae,
            d_in,
            out.as_mut_ptr(),
            1,
            d_sae as isize,
            false,
            x.as_ptr(),
            1,
            d_in as isize,
            w.as_ptr(),
            d_in as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
