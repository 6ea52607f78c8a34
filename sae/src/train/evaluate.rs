//! Quality on rows that training never sees: all of them, in the units of the activations.

use activations::source::Activations;

use super::TrainPlan;
use crate::dictionary::{HeldOut, Sae};
use crate::error::{Error, Result};
use crate::metrics::{Firing, Quality};

/// Rows measured at a time; the result does not depend on it.
const ROWS: u64 = 4096;

/// Measures `sae`, which takes raw activations, on the whole held-out set.
///
/// # Errors
/// What reading gives; [`Error::Invalid`] when all held-out rows are equal, so that there is no variance to explain.
pub fn held_out(sae: &Sae, acts: &Activations, plan: &TrainPlan) -> Result<HeldOut> {
    let (mut quality, mut firing) = (Quality::new(plan.d_in), Firing::new(plan.d_sae));
    let mut start = plan.held_out_rows.start;
    let mut x = Vec::new();
    while start < plan.held_out_rows.end {
        let end = (start + ROWS).min(plan.held_out_rows.end);
        x.resize((end - start) as usize * plan.d_in, 0.0);
        acts.read_rows(start..end, &mut x)?;
        let code = sae.encode_rows(&x)?;
        quality.add(&x, &sae.decode_rows(&code)?);
        firing.add(code.batch(), &code.indices, &code.values);
        start = end;
    }
    let no_variance = || {
        Error::Invalid(format!(
            "{}: all held-out rows are equal, so that nothing can be measured on them",
            acts.name()
        ))
    };
    let of_some = |value: Option<f64>| value.ok_or_else(no_variance);
    Ok(HeldOut {
        rows: quality.rows(),
        fvu: of_some(quality.fvu())?,
        l0: of_some(firing.l0())?,
        dead_share: of_some(firing.dead_share())?,
    })
}
