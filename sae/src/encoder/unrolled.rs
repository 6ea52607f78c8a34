//! Unrolled proximal steps (LISTA, Gregor and LeCun 2010): `u = z + W_enc (x - b_dec - z W_dec) + b_enc`, and the code `z`
//! of the next step is what the sparsifier makes of `u`. From `z = 0` that is the product of a plain encoder.
//!
//! Every step is trained through. All have the same matrices, or each its own ([`Weights`](super::Weights)). With `sae.tied` they
//! are those of iterative shrinkage and thresholding (ISTA); otherwise the encoder learns what to multiply residuals by.
//!
//! LISTA's own form, `u = W_e x + S z` with `S: [d_sae, d_sae]`, would be larger than everything else together, and forgets the
//! decoder. With `S = I - W W_dec` it is this one, which is what a LISTA that converges comes to (arXiv 1808.10038).
//!
//! The latents that `u` keeps are found in the product alone: outside of the present code `u` is the product, and of those
//! who win under a budget of `k` no more than `k` are outside of it. So the kernels select `k` more than there are in the
//! code, whose own are put right on the host.

use std::cmp::Ordering;
use std::collections::HashMap;

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::code::{HostCode, Rows, SparseCode, to_host};
use crate::kernels::{Search, Selection, dots, encode};
use crate::sparsifier::Score;

/// What a step behind the first multiplies by, where each has parameters of its own.
#[derive(Clone, Debug)]
pub struct EncoderStep {
    /// What it multiplies residuals by. `[d_sae, d_in]`
    pub w_enc: Tensor<2>,
    /// `[d_sae]`
    pub b_enc: Tensor<1>,
}

/// The pre-activations `u` of the latents that the step behind `z` keeps, with `residual = x - b_dec - z W_dec`,
/// `[batch, d_in]`. Entries that do not fire have value 0. Differentiable in the values of `z`, the residual, `w_enc` and
/// `b_enc`; waits for the device.
///
/// # Panics
/// For selections in which tokens share a budget, which a configuration refuses; if the device fails while it is read.
pub fn next(
    z: &SparseCode,
    residual: Tensor<2>,
    w_enc: Tensor<2>,
    b_enc: Tensor<1>,
    selection: &Selection,
    search: Search,
) -> SparseCode {
    let (device, entries) = (w_enc.device(), z.rows.len());
    let kept = keep(z, &residual, &w_enc, &b_enc, selection, search);
    let shape = [kept.code.rows.len()];
    let numbers = |values: Vec<i32>| Tensor::<1, Int>::from_data(TensorData::new(values, shape), &device);
    let inactive: Tensor<1> = Tensor::from_data(TensorData::new(kept.code.values, shape), &device);
    let indices = numbers(kept.code.indices);
    let rows = kept.code.rows;
    // A place behind the code for latents that are not in it.
    let before = Tensor::cat(vec![z.values.clone(), z.values.clone().narrow(0, 0, 1).zeros_like()], 0);
    debug_assert_eq!(before.dims(), [entries + 1]);
    let u = dots(&rows, indices.clone(), residual, w_enc)
        + b_enc.select(0, indices.clone())
        + before.select(0, numbers(kept.places));
    SparseCode {
        values: u.mask_fill(inactive.equal_elem(0.0), 0.0),
        indices,
        rows,
    }
}

/// What is kept, and where in the present code each entry was, or behind it.
struct Kept {
    /// With values that are 0 exactly where an entry does not fire.
    code: HostCode,
    places: Vec<i32>,
}

/// A latent that may be kept: its place in the present code if it is in it, and `u`.
#[derive(Clone, Copy)]
struct Latent {
    index: i32,
    place: i32,
    u: f32,
}

fn keep(
    z: &SparseCode,
    residual: &Tensor<2>,
    w_enc: &Tensor<2>,
    b_enc: &Tensor<1>,
    selection: &Selection,
    search: Search,
) -> Kept {
    let read = |t: Tensor<1>| to_host::<f32>(t.no_grad().try_into_data()).expect("a device that works can be read");
    let (residual, w_enc) = (residual.clone().no_grad(), w_enc.clone().no_grad());
    let [d_sae, _] = w_enc.dims();
    let host = SparseCode {
        values: z.values.clone().no_grad(),
        ..z.clone()
    };
    let host = host.to_host().expect("a device that works can be read");
    let most = host.rows.ranges().map(|r| r.len()).max().unwrap_or(0);
    let wide = match selection {
        Selection::PerToken { score, k } => Selection::PerToken {
            score: *score,
            k: (k + most).min(d_sae),
        },
        Selection::Above { score, bars } => Selection::Above {
            score: *score,
            bars: bars.clone().no_grad(),
        },
        Selection::PerBatch { .. } | Selection::PerLatent { .. } => {
            panic!("steps of a token by itself cannot share a budget with others")
        }
    };
    let bars = match &wide {
        Selection::Above { bars, .. } => read(bars.clone()),
        _ => Vec::new(),
    };
    let products = encode(
        residual.clone(),
        w_enc.clone(),
        b_enc.clone().no_grad(),
        wide,
        None,
        search,
    )
    .main;
    let products = products.to_host().expect("a device that works can be read");
    let own = read(dots(&z.rows, z.indices.clone(), residual, w_enc));
    let bias = read(b_enc.clone());

    let rows: Vec<usize> = (0..host.batch()).collect();
    let kept: Vec<Vec<Latent>> = rows
        .into_par_iter()
        .map(|row| {
            let present = host.rows.range(row).filter(|&n| host.values[n] != 0.0);
            let places: HashMap<i32, usize> = present.map(|n| (host.indices[n], n)).collect();
            let mut all: Vec<Latent> = places
                .iter()
                .map(|(&index, &place)| Latent {
                    index,
                    place: place as i32,
                    u: own[place] + bias[index as usize] + host.values[place],
                })
                .collect();
            let others = products
                .rows
                .range(row)
                .map(|n| (products.indices[n], products.values[n]));
            all.extend(
                others
                    .filter(|(i, _)| !places.contains_key(i))
                    .map(|(index, u)| Latent {
                        index,
                        place: host.values.len() as i32,
                        u,
                    }),
            );
            select(all, selection, &bars)
        })
        .collect();
    gather(kept, selection, host.values.len() as i32)
}

/// Those of a row that are kept, in the order of the kernels: best first, or latents ascending.
fn select(mut all: Vec<Latent>, selection: &Selection, bars: &[f32]) -> Vec<Latent> {
    match selection {
        Selection::PerToken { score, k } => {
            let best = |a: &Latent, b: &Latent| {
                let by_score = score.of(b.u).partial_cmp(&score.of(a.u)).unwrap_or(Ordering::Equal);
                by_score.then(a.index.cmp(&b.index))
            };
            all.sort_unstable_by(best);
            all.truncate(*k);
            // Whose score is the least there is stays silent.
            all.iter_mut()
                .for_each(|l| l.u = if score.of(l.u) > score.floor() { l.u } else { 0.0 });
        }
        Selection::Above { score, .. } => {
            let size = |u: f32| if *score == Score::Magnitude { u.abs() } else { u };
            all.retain(|l| size(l.u) > bars[l.index as usize]);
            all.sort_unstable_by_key(|l| l.index);
        }
        Selection::PerBatch { .. } | Selection::PerLatent { .. } => unreachable!("refused before"),
    }
    all
}

fn gather(kept: Vec<Vec<Latent>>, selection: &Selection, behind: i32) -> Kept {
    let rows = match selection {
        Selection::PerToken { k, .. } => Rows::Equal {
            batch: kept.len(),
            slots: *k,
        },
        _ => Rows::from_lengths(kept.iter().map(Vec::len)),
    };
    let mut places: Vec<i32> = kept.iter().flatten().map(|l| l.place).collect();
    let (indices, values) = kept.iter().flatten().map(|l| (l.index, l.u)).unzip();
    let code = HostCode { rows, indices, values }.never_empty();
    places.resize(code.values.len(), behind);
    Kept { code, places }
}

#[cfg(test)]
mod tests;
