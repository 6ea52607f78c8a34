//! Whether contexts, rows and activations that are pushed to a store fit together and into its format.

use super::spec::StoreSpec;
use crate::context::{Context, RowRef};
use crate::dtype::finite_magnitude;
use crate::error::{Error, Result};

/// Checks shapes and values of every hook.
pub(super) fn check_acts(spec: &StoreSpec, contexts: &[Context], rows: &[RowRef], acts: &[&[f32]]) -> Result<()> {
    if acts.len() != spec.hooks.len() {
        return Err(Error::Invalid(format!(
            "activations of {} hooks are to be written to a store of {}",
            acts.len(),
            spec.hooks.len()
        )));
    }
    for (hook, &values) in spec.hooks.iter().zip(acts) {
        if values.len() != rows.len() * hook.d_in {
            return Err(Error::Invalid(format!(
                "hook {}: {} rows of {} do not make {} values",
                hook.name,
                rows.len(),
                hook.d_in,
                values.len()
            )));
        }
        let place = |at: usize| {
            let row = rows[at / hook.d_in];
            let context = contexts[row.context as usize].index;
            format!(
                "context {context}, position {}, column {}",
                row.position,
                at % hook.d_in
            )
        };
        match finite_magnitude(values) {
            None => {
                let at = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
                return Err(Error::Invalid(format!(
                    "hook {}: {} holds {}: activations must be finite",
                    hook.name,
                    place(at),
                    values[at]
                )));
            }
            Some(most) if most > spec.dtype.max() => {
                let at = values.iter().position(|v| v.abs() == most).unwrap_or_default();
                return Err(Error::Invalid(format!(
                    "hook {}: {} holds {}, the largest magnitude in this batch, and {} ends at {}: harvest as {}",
                    hook.name,
                    place(at),
                    values[at],
                    spec.dtype,
                    spec.dtype.max(),
                    match spec.dtype {
                        crate::ActDtype::F16 => "bf16 or f32",
                        _ => "f32",
                    }
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Rows must point at tokens, in order.
pub(super) fn check_rows(contexts: &[Context], rows: &[RowRef]) -> Result<()> {
    let mut last = None;
    for row in rows {
        let there = contexts.get(row.context as usize).map(|c| c.tokens.len());
        if there.is_none_or(|n| row.position as usize >= n) || last >= Some((row.context, row.position)) {
            return Err(Error::Invalid(format!(
                "rows must point at tokens in ascending order: got position {} of context {} of this batch after {last:?}",
                row.position, row.context
            )));
        }
        last = Some((row.context, row.position));
    }
    Ok(())
}
