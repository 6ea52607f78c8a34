//! Selecting from a batch whose pre-activations come in tiles of whole rows, on the host.
//!
//! `[batch, d_sae]` never exists whole: each tile is selected from and forgotten.

use super::cpu::{Selector, Slots};
use super::ops::{Budget, EncodePlan};
use super::per_latent::PerLatent;
use super::ragged::Pool;
use crate::code::{HostCode, Rows};

/// The main code of a batch while its tiles are computed.
enum Main {
    /// `[batch, k]`, written in place.
    Equal {
        k: usize,
        indices: Vec<i32>,
        values: Vec<f32>,
    },
    Pool(Pool),
    PerLatent(PerLatent),
    Rows(Vec<Vec<(i32, f32)>>),
}

impl Main {
    fn new(plan: EncodePlan, bars: &[f32], batch: usize) -> Self {
        match plan.budget {
            Budget::PerToken(k) => Self::Equal {
                k,
                indices: vec![0; batch * k],
                values: vec![0.0; batch * k],
            },
            Budget::PerBatch(n) => Self::Pool(Pool::new(plan.score, n)),
            Budget::PerLatent => Self::PerLatent(PerLatent::new(plan.score, bars)),
            Budget::Above => Self::Rows(Vec::with_capacity(batch)),
        }
    }

    /// Selects in a tile of pre-activations, whose first row is row `first` of the batch.
    fn select(
        &mut self,
        selector: &Selector,
        plan: EncodePlan,
        bars: &[f32],
        first: usize,
        pre: &mut [f32],
        aux: Slots,
    ) {
        match self {
            Self::Equal { k, indices, values } => {
                let slots = first * *k..(first + pre.len() / selector.d_sae) * *k;
                let main = (&mut indices[slots.clone()], &mut values[slots]);
                selector.per_token(plan.score, *k, pre, main, aux);
            }
            Self::Pool(pool) => selector.compete(plan.score, pool, first, pre, aux),
            Self::PerLatent(race) => selector.compete(plan.score, race, first, pre, aux),
            Self::Rows(rows) => rows.extend(selector.above(plan.score, bars, pre, aux)),
        }
    }

    fn finish(self, batch: usize) -> HostCode {
        let code = match self {
            Self::Equal { k, indices, values } => HostCode {
                rows: Rows::Equal { batch, slots: k },
                indices,
                values,
            },
            Self::Pool(pool) => pool.finish(batch),
            Self::PerLatent(race) => race.finish(batch),
            Self::Rows(rows) => {
                let lengths = Rows::from_lengths(rows.iter().map(Vec::len));
                let (indices, values) = rows.into_iter().flatten().unzip();
                HostCode {
                    rows: lengths,
                    indices,
                    values,
                }
            }
        };
        code.never_empty()
    }
}

/// Selects in tiles of pre-activations that `product` computes: `(first, pre)` is to become the rows from `first` on.
/// Behind the entries of the main code, which `rows` speaks of, are those of the auxiliary one.
pub fn select_in_tiles(
    selector: &Selector,
    plan: EncodePlan,
    bars: &[f32],
    batch: usize,
    tiles: impl FnOnce(&mut dyn FnMut(usize, &mut [f32])),
) -> HostCode {
    let mut main = Main::new(plan, bars, batch);
    let (mut aux_indices, mut aux_values) = (vec![0i32; batch * plan.aux_k], vec![0.0f32; batch * plan.aux_k]);
    tiles(&mut |first, pre| {
        let slots = first * plan.aux_k..(first + pre.len() / selector.d_sae) * plan.aux_k;
        let aux = (&mut aux_indices[slots.clone()], &mut aux_values[slots]);
        main.select(selector, plan, bars, first, pre, aux);
    });
    let mut code = main.finish(batch);
    code.indices.append(&mut aux_indices);
    code.values.append(&mut aux_values);
    code
}
