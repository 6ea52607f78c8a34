//! From contexts to activation rows: the model, the places to look at, and the positions that have no row.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::context::{Context, RowRef};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::hooks::{HookPoint, Hooks};
use crate::model::Transformer;

/// Tokens that the model sees at once on the processor. Several such units run side by side, one a thread: the values
/// between two products of so few tokens stay in the thread's cache, and the steps that burn does not spread over
/// threads need not be. The size is fixed because the last bits of a product depend on it.
const UNIT_TOKENS: usize = 1024;
/// Tokens of a batch: many units on the processor, one pass on a GPU.
const BATCH_TOKENS: usize = 16 << 10;

/// Runs a model over contexts and keeps the values at some hooks.
pub(super) struct Recorder {
    model: Transformer,
    /// The places, and the widths of their values.
    hooks: Vec<(HookPoint, usize)>,
    last: HookPoint,
    /// Tokens whose positions have no row.
    skipped: Vec<u32>,
    unit: usize,
    batch: usize,
}

/// Activation rows of some contexts.
pub(super) struct Recorded {
    /// Ordered by context and position; contexts count from the first of those recorded.
    pub rows: Vec<RowRef>,
    /// `[rows, d_in]` for each hook.
    pub acts: Vec<Vec<f32>>,
}

impl Recorder {
    /// Will keep the values at `hooks`, each with its width, except at positions of `skipped` tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no hook is wanted.
    pub(super) fn new(
        model: Transformer,
        hooks: Vec<(HookPoint, usize)>,
        skipped: Vec<u32>,
        context: usize,
        device: Device,
    ) -> Result<Self> {
        let Some(&(last, _)) = hooks.iter().max() else {
            return Err(Error::Invalid("no hook given: name at least one".into()));
        };
        let batch = (BATCH_TOKENS / context).max(1);
        Ok(Self {
            model,
            hooks,
            last,
            skipped,
            unit: match device {
                Device::Cpu => (UNIT_TOKENS / context).clamp(1, batch),
                Device::Cuda(_) | Device::Vulkan(_) => batch,
            },
            batch,
        })
    }

    pub(super) fn model(&self) -> &Transformer {
        &self.model
    }

    /// The places looked at, each with the width of its values.
    pub(super) fn hooks(&self) -> &[(HookPoint, usize)] {
        &self.hooks
    }

    /// Whether positions of this token have rows.
    pub(super) fn has_row(&self, token: u32) -> bool {
        !self.skipped.contains(&token)
    }

    /// Contexts that a batch should have.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// Contexts that the model sees at once.
    pub(super) fn unit(&self) -> usize {
        self.unit
    }

    /// Runs the model over `contexts` up to the last hook.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub(super) fn record(&self, contexts: &[Context]) -> Result<Recorded> {
        let units: Vec<&[Context]> = contexts.chunks(self.unit).collect();
        let parts: Vec<Vec<Vec<f32>>> = match &units[..] {
            [only] => vec![self.unit_acts(only)?],
            many => many
                .par_iter()
                .map(|unit| self.unit_acts(unit))
                .collect::<Result<_>>()?,
        };
        let mut acts: Vec<Vec<f32>> = vec![Vec::new(); self.hooks.len()];
        for (hook, acts) in acts.iter_mut().enumerate() {
            acts.reserve_exact(parts.iter().map(|part| part[hook].len()).sum());
            parts.iter().for_each(|part| acts.extend_from_slice(&part[hook]));
        }
        let rows = contexts.iter().zip(0..).flat_map(|(context, number)| {
            let positions = context
                .tokens
                .iter()
                .zip(0..)
                .filter(|(id, _)| !self.skipped.contains(id));
            positions.map(move |(_, position)| RowRef {
                context: number,
                position,
            })
        });
        Ok(Recorded {
            rows: rows.collect(),
            acts,
        })
    }

    /// The rows of some contexts, for each hook. Shorter contexts are padded, and what is padded has no rows.
    fn unit_acts(&self, contexts: &[Context]) -> Result<Vec<Vec<f32>>> {
        let tokens: Vec<&[u32]> = contexts.iter().map(|c| &c.tokens[..]).collect();
        let longest = tokens.iter().map(|row| row.len()).max().unwrap_or(0);
        let mut keep = Vec::with_capacity(tokens.len() * longest);
        for (number, row) in tokens.iter().enumerate() {
            keep.extend(row.iter().map(|id| !self.skipped.contains(id)));
            keep.resize((number + 1) * longest, false);
        }
        let mut rows = Rows {
            wanted: &self.hooks,
            keep,
            acts: vec![Vec::new(); self.hooks.len()],
            foreign: None,
        };
        self.model.forward(&tokens, &mut rows, Some(self.last))?;
        match rows.foreign {
            None => Ok(rows.acts),
            Some(what) => Err(Error::Invalid(what)),
        }
    }
}

/// Copies the rows wanted out of the pass.
struct Rows<'a> {
    wanted: &'a [(HookPoint, usize)],
    /// Whether a position has a row, `[batch * seq]`.
    keep: Vec<bool>,
    acts: Vec<Vec<f32>>,
    foreign: Option<String>,
}

impl Hooks for Rows<'_> {
    fn visit(&mut self, at: HookPoint, x: Tensor<3>) -> Tensor<3> {
        let Some(hook) = self.wanted.iter().position(|&(h, _)| h == at) else {
            return x;
        };
        let width = self.wanted[hook].1;
        let data = x.clone().into_data();
        match data.as_slice::<f32>() {
            Ok(values) => {
                let acts = &mut self.acts[hook];
                acts.reserve_exact(width * self.keep.iter().filter(|&&k| k).count());
                for (row, _) in values.chunks_exact(width).zip(&self.keep).filter(|(_, keep)| **keep) {
                    acts.extend_from_slice(row);
                }
            }
            Err(e) => self.foreign = Some(format!("the values at {at} are not f32: {e:?}")),
        }
        x
    }

    fn looks_at(&self, at: HookPoint) -> bool {
        self.wanted.iter().any(|&(hook, _)| hook == at)
    }
}
