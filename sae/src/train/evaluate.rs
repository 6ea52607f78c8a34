//! Quality on rows that training never sees: all of them, in the units of the activations.

use std::ops::Range;

use super::TrainPlan;
use super::input::Input;
use super::trainer::Trainer;
use crate::dictionary::{Calibration, HeldOut, Sae};
use crate::error::{Error, Result};
use crate::metrics::{Firing, Quality};

/// Rows measured at a time; the result does not depend on it.
const ROWS: u64 = 4096;

/// Shows the rows of `range`, raw activations, in pieces.
fn visit(input: &Input, range: Range<u64>, see: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let mut x = Vec::new();
    for start in range.clone().step_by(ROWS as usize) {
        let end = (start + ROWS).min(range.end);
        x.resize((end - start) as usize * input.d_in(), 0.0);
        input.read_held_out(start..end, &mut x)?;
        see(&x)?;
    }
    Ok(())
}

/// The dictionary as it is saved, from that of `trainer`, both for raw activations: thresholds, where it gets
/// some, are set on the first half of the held-out rows, and what they do is counted on the other.
///
/// # Errors
/// What reading and encoding give.
pub fn inference(trainer: &Trainer, input: &Input, plan: &TrainPlan) -> Result<(Sae, Option<Calibration>)> {
    let sae = trainer.dictionary();
    let shares = trainer.lawful_shares();
    let (form, target_l0) = plan.config.inference();
    let Range { start, end } = plan.held_out_rows;
    let middle = start + (end - start).div_ceil(2);
    let measured = if middle < end { middle..end } else { start..end };
    let calibration = |see: &mut dyn FnMut(&[f32]) -> Result<()>| visit(input, start..middle, see);
    sae.into_inference_with(shares.as_deref(), form, target_l0, &calibration, &|see| {
        visit(input, measured.clone(), see)
    })
}

/// Measures `sae`, which takes raw activations, on the whole held-out set.
///
/// # Errors
/// What reading gives; [`Error::Invalid`] when all held-out rows are equal, so that there is no variance to explain.
pub fn held_out(sae: &Sae, input: &Input, plan: &TrainPlan) -> Result<HeldOut> {
    let (mut quality, mut firing) = (Quality::new(plan.d_in), Firing::new(plan.d_sae));
    visit(input, plan.held_out_rows.clone(), &mut |x| {
        let code = sae.encode_rows(x)?;
        quality.add(x, &sae.decode_rows(&code)?);
        firing.add(code.batch(), &code.indices, &code.values);
        Ok(())
    })?;
    let no_variance = || {
        Error::Invalid(format!(
            "{}: all held-out rows are equal, so that nothing can be measured on them",
            input.name()
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
