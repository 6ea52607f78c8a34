//! Quality on rows that training never sees: all of them, in the units of the activations.

use std::collections::BTreeMap;
use std::ops::Range;

use super::TrainPlan;
use super::input::Input;
use super::sides::{Side, Sides};
use super::trainer::Trainer;
use burn::tensor::{Tensor, TensorData};

use crate::bilinear::Bilinear;
use crate::code::to_host;
use crate::dictionary::{Calibration, HeldOut, Sae};
use crate::error::{Error, Result};
use crate::metrics::{Densities, Firing, Quality};

/// Rows measured at a time; the result does not depend on it.
const ROWS: u64 = 4096;

/// Shows the rows of `range`, raw activations of all places, in pieces.
fn visit(input: &Input, range: Range<u64>, see: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let mut x = Vec::new();
    for start in range.clone().step_by(ROWS as usize) {
        let end = (start + ROWS).min(range.end);
        x.resize((end - start) as usize * input.sides().width(), 0.0);
        input.read_held_out(start..end, &mut x)?;
        see(&x)?;
    }
    Ok(())
}

/// Refuses held-out rows that are all equal before there is any work: nothing could be measured on them.
///
/// # Errors
/// [`Error::Invalid`] saying so; what reading gives.
pub fn refuse_equal(input: &Input, plan: &TrainPlan) -> Result<()> {
    let (sides, mut first, mut differ) = (input.sides(), None::<Vec<f32>>, false);
    visit(input, plan.held_out_rows.clone(), &mut |rows| {
        let written = sides.written.of(rows, sides.width());
        let mut rows = written.chunks_exact(sides.written.width());
        let first = first.get_or_insert_with(|| rows.next().unwrap_or_default().to_vec());
        differ = differ || rows.any(|row| row != first.as_slice());
        Ok(())
    })?;
    match differ {
        true => Ok(()),
        false => Err(no_variance(input)),
    }
}

fn no_variance(input: &Input) -> Error {
    Error::Invalid(format!(
        "{}: all held-out rows are equal, so that nothing can be measured on them; hold out more (data.held_out_rows)",
        input.name()
    ))
}

/// The dictionary as it is saved, from that of `trainer`, both for raw activations: thresholds, where it gets
/// some, are set on the first half of the held-out rows, and what they do is counted on the other. A token's budget may be
/// another than in training.
///
/// # Errors
/// What reading and encoding give.
pub fn inference(trainer: &Trainer, input: &Input, plan: &TrainPlan) -> Result<(Sae, Option<Calibration>)> {
    let mut sae = trainer.dictionary();
    if let Some(k) = plan.config.sae.inference_k {
        sae.sparsifier = sae.sparsifier.with_k(k);
    }
    let shares = trainer.lawful_shares();
    let (form, target_l0) = plan.config.inference();
    let Range { start, end } = plan.held_out_rows;
    let middle = start + (end - start).div_ceil(2);
    let measured = if middle < end { middle..end } else { start..end };
    let sides = input.sides();
    let read = |range: Range<u64>, see: &mut dyn FnMut(&[f32]) -> Result<()>| {
        visit(input, range, &mut |rows| see(&sides.read.of(rows, sides.width())))
    };
    let calibration = |see: &mut dyn FnMut(&[f32]) -> Result<()>| read(start..middle, see);
    sae.into_inference_with(shares.as_deref(), form, target_l0, &calibration, &|see| {
        read(measured.clone(), see)
    })
}

/// What was measured of a sparse dictionary on the held-out rows.
pub struct Evaluation {
    pub held_out: HeldOut,
    /// The FVU of each hook, where several are written.
    pub fvu_by_hook: BTreeMap<String, f64>,
    pub density: Option<Densities>,
}

/// Measures `sae`, which takes raw activations, on the whole held-out set.
///
/// # Errors
/// What reading gives; [`Error::Invalid`] when all held-out rows are equal, so that there is no variance to explain.
pub fn held_out(sae: &Sae, input: &Input, plan: &TrainPlan) -> Result<Evaluation> {
    let sides = input.sides();
    let (mut quality, mut firing) = (Quality::new(sides.written.width()), Firing::new(plan.d_sae));
    let mut of_places = places(&sides.written);
    visit(input, plan.held_out_rows.clone(), &mut |rows| {
        let (x, target) = (
            sides.read.of(rows, sides.width()),
            sides.written.of(rows, sides.width()),
        );
        let code = sae.encode_rows(&x)?;
        let recon = sae.recon_rows(&x, &code)?;
        quality.add(&target, &recon);
        for (place, quality) in &mut of_places {
            let d_out = sides.written.width();
            quality.add(&place.of(&target, d_out), &place.of(&recon, d_out));
        }
        firing.add(code.batch(), &code.indices, &code.values);
        Ok(())
    })?;
    let of_some = |value: Option<f64>| value.ok_or_else(|| no_variance(input));
    let by_hook = of_places.iter().map(|(place, quality)| {
        let fvu = of_some(quality.fvu())?;
        Ok((place.places[0].name().to_owned(), fvu))
    });
    let fvu_by_hook = by_hook.collect::<Result<_>>()?;
    let held_out = HeldOut {
        rows: quality.rows(),
        fvu: of_some(quality.fvu())?,
        l0: of_some(firing.l0())?,
        dead_share: of_some(firing.dead_share())?,
    };
    Ok(Evaluation {
        held_out,
        fvu_by_hook,
        density: firing.densities(),
    })
}

/// Measures how well products `x x^T`, with `x` of length 1, are reconstructed on the whole held-out set. The FVU's best
/// constant is the mean of the products.
///
/// # Errors
/// As [`held_out`].
pub fn products(bilinear: &Bilinear, input: &Input, plan: &TrainPlan) -> Result<HeldOut> {
    let (d_in, device) = (bilinear.d_in(), bilinear.device());
    let (mut rows, mut error, mut square) = (0u64, 0.0, 0.0);
    let mut sum = vec![0.0f64; d_in * d_in];
    let total = |t: Tensor<2>| -> Result<f64> {
        let values = to_host::<f32>(t.try_into_data())?;
        Ok(values.into_iter().map(f64::from).sum())
    };
    visit(input, plan.held_out_rows.clone(), &mut |values| {
        let n = values.len() / d_in;
        let x = Tensor::<2>::from_data(TensorData::new(values.to_vec(), [n, d_in]), &device);
        let x = Bilinear::normalised(x);
        error += total(bilinear.errors(x.clone(), bilinear.latents(x.clone()), false))?;
        let lengths = (x.clone() * x.clone()).sum_dim(1);
        square += total(lengths.clone() * lengths)?;
        let products = to_host::<f32>(x.clone().transpose().matmul(x).try_into_data())?;
        sum.iter_mut().zip(products).for_each(|(s, v)| *s += f64::from(v));
        rows += n as u64;
        Ok(())
    })?;
    let variance = square - sum.iter().map(|s| s * s).sum::<f64>() / rows.max(1) as f64;
    if variance <= 1e-9 * square {
        return Err(Error::Invalid(format!(
            "{}: all held-out rows have one direction, so that nothing can be measured on them",
            input.name()
        )));
    }
    Ok(HeldOut {
        rows,
        fvu: error / variance,
        l0: bilinear.d_sae() as f64,
        dead_share: 0.0,
    })
}

/// The places of what is written, each as a side of it; none where there is but one.
fn places(written: &Side) -> Vec<(Side, Quality)> {
    let n = written.places.len();
    let each = (0..n).filter(|_| n > 1).map(|i| {
        let side = Sides::new(&written.places, n, Some(&[i])).written;
        (side, Quality::new(written.places[i].width))
    });
    each.collect()
}
