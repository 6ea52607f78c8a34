//! A model over a text as rows to train on: mixed, in bounded memory, and nothing on the disk.
//!
//! The one decision: **contexts are mixed before the model, and rows behind it.** A store is mixed by reading a few rows
//! from anywhere in it; a text passes the model once, from its beginning. But a context that waits as tokens takes four
//! bytes a token, and as rows four bytes for each of `d_in` values. So a sixteenth of the memory holds contexts that
//! wait, several times as many as the pool has room for, and one of them is drawn whenever the model wants another; and
//! the rest holds windows of rows, which leave in random order while rows of the next window take their places. Where
//! all of the text fits, it passes the model once, stays in the pool, and is shuffled exactly each epoch.
//!
//! The order is a function of the text, the seed, the memory limit, the length of the run and the state, as that of a
//! store is: see [`MixState`]. Continuing from a state reads the text again up to its window, as tokens, and runs the
//! model for that window only. Rows are f32, as the model gives them: there is no disk to save.
//!
//! The model works on a thread of its own and waits when the pool is full. It is never ahead of the trainer by more than
//! the pool, and reads no further than the rows that the run wants.

mod loader;
mod order;
mod pool;
#[cfg(test)]
mod tests;

use std::collections::vec_deque::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use self::loader::{Loader, Task};
use self::order::Sizes;
use self::pool::Pool;
use super::batches::{Batch, Batches};
use super::recorder::{Recorded, Recorder};
use super::run::spec;
use super::{Estimate, HarvestPlan};
use crate::context::{Context, RowRef};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::hooks::HookPoint;
use crate::progress::Stop;
use crate::source::joined::side_by_side;
use crate::source::{MixState, Origin, ROW_OVERHEAD, RowReader, Split, hex};

/// The part of the memory that contexts wait in.
const WAITING_SHARE: u64 = 16;
/// Groups of rows on the way from the model to the pool: one in the making, in parts and as a whole, and two that wait.
const IN_FLIGHT: u64 = 4;
/// A group is this part of the pool, or smaller.
const GROUP_SHARE: u64 = 16;
/// A run has so many windows, where a window then still has enough batches: the first is computed before training
/// begins.
const WINDOWS: u64 = 8;
/// Batches that a window holds at least, if the memory suffices.
const WINDOW_BATCHES: u64 = 32;

/// How to mix a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Decides the order.
    pub seed: u64,
    /// The most memory that waiting contexts and the pool take, in bytes. The order depends on it too.
    pub memory_bytes: u64,
    /// Rows of a batch, of the run and not of a call. The order depends on it too.
    pub batch: usize,
    /// Rows of the whole run. The order depends on it too.
    pub rows: u64,
}

/// What gives rows: a model over a text, or what stands for one in a test.
trait Model: Send + Sync {
    fn d_in(&self) -> usize;

    /// The contexts to train on, always the same ones.
    fn contexts(&self) -> Box<dyn Iterator<Item = Result<Context>> + Send>;

    /// Whether a token has a row.
    fn has_row(&self, token: u32) -> bool;

    /// The rows of some contexts, whole units of them, and where they belong.
    fn record(&self, contexts: &[Context]) -> Result<(Vec<f32>, Vec<RowRef>)>;
}

/// A model over a text, without the contexts before number `first`.
struct Rows {
    recorder: Arc<Recorder>,
    corpus: Corpus,
    tokens: Option<u64>,
    first: u64,
    /// Of each hook.
    widths: Vec<usize>,
}

impl Model for Rows {
    fn d_in(&self) -> usize {
        self.widths.iter().sum()
    }

    fn contexts(&self) -> Box<dyn Iterator<Item = Result<Context>> + Send> {
        let batches = Batches::start(&self.corpus, self.recorder.batch(), self.first, self.tokens);
        let first = self.first;
        let contexts = Flattened {
            batches,
            ready: VecDeque::new(),
        };
        Box::new(contexts.filter(move |context| context.as_ref().map_or(true, |c| c.index >= first)))
    }

    fn has_row(&self, token: u32) -> bool {
        self.recorder.has_row(token)
    }

    fn record(&self, contexts: &[Context]) -> Result<(Vec<f32>, Vec<RowRef>)> {
        let Recorded { rows, acts } = self.recorder.record(contexts)?;
        Ok((side_by_side(acts, &self.widths), rows))
    }
}

/// The contexts of batches.
struct Flattened {
    batches: Batches,
    ready: VecDeque<Context>,
}

impl Iterator for Flattened {
    type Item = Result<Context>;

    fn next(&mut self) -> Option<Result<Context>> {
        while self.ready.is_empty() {
            match self.batches.next()? {
                Ok(Batch { contexts, .. }) if !contexts.is_empty() => self.ready = contexts.into(),
                Ok(_) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

/// Rows that are not trained on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeldOut {
    /// Contexts, the first of the text.
    pub contexts: u64,
    /// Their rows, `[rows, d_in]`.
    pub acts: Vec<f32>,
}

/// The rows of a model over a text.
pub struct RowStream {
    recorder: Arc<Recorder>,
    corpus: Corpus,
    tokens: Option<u64>,
    /// The places, each with the width of its values.
    hooks: Vec<(String, usize)>,
    origin: Origin,
    estimate: Estimate,
}

impl RowStream {
    /// The stream that `plan` describes; of several hooks, a row is the rows of all, one behind the other. Its text should
    /// come in a seeded order, so that the contexts that wait together are from everywhere in it.
    ///
    /// # Errors
    /// [`Error::Io`] from looking at the files.
    pub fn new(plan: HarvestPlan) -> Result<Self> {
        let named = |&(hook, width): &(HookPoint, usize)| (hook.to_string(), width);
        let hooks: Vec<(String, usize)> = plan.recorder.hooks().iter().map(named).collect();
        let names: Vec<&str> = hooks.iter().map(|(hook, _)| hook.as_str()).collect();
        let spec = spec(&plan)?;
        let mut digest = Sha256::new();
        let tokenizer = crate::fingerprint::fingerprint(&[plan.corpus.tokenizer().path().to_owned()])?;
        digest.update(format!(
            "{} {:?} {:?} {tokenizer}",
            names.join(" "),
            spec.model,
            spec.corpus
        ));
        digest.update(format!(
            "{} {:?} {}",
            spec.context_length, spec.max_tokens, spec.skip_special
        ));
        let path = plan.options.text.first().cloned().unwrap_or_else(PathBuf::new);
        Ok(Self {
            origin: Origin {
                path,
                hook: (hooks.len() == 1).then(|| hooks[0].0.clone()),
                model: Some(spec.model),
                corpus: Some(spec.corpus),
                fingerprint: hex(&digest.finalize()),
            },
            recorder: Arc::new(plan.recorder),
            corpus: plan.corpus,
            tokens: plan.tokens,
            hooks,
            estimate: plan.estimate,
        })
    }

    /// What to call it: model, hook and text.
    pub fn name(&self) -> String {
        let model = self.origin.model.as_ref().map_or("", |model| &model.name);
        let hooks: Vec<&str> = self.hooks.iter().map(|(hook, _)| hook.as_str()).collect();
        format!("{model} ({}) over {}", hooks.join(", "), self.corpus.name())
    }

    /// The places in the order of a row, each with the width of its values.
    pub fn hooks(&self) -> &[(String, usize)] {
        &self.hooks
    }

    /// Width of a row, all hooks together.
    pub fn d_in(&self) -> usize {
        self.hooks.iter().map(|(_, width)| width).sum()
    }

    /// Number of rows, about: the text has not been tokenised yet.
    pub fn n_rows(&self) -> u64 {
        self.estimate.rows
    }

    /// Model, hook and text. The fingerprint changes when one of them does.
    pub fn origin(&self) -> Origin {
        self.origin.clone()
    }

    fn rows(&self, first: u64) -> Rows {
        Rows {
            recorder: Arc::clone(&self.recorder),
            corpus: self.corpus.clone(),
            tokens: self.tokens,
            first,
            widths: self.hooks.iter().map(|&(_, width)| width).collect(),
        }
    }

    /// Sets the first rows apart: `held_out_rows` of them, and as many more as complete a context. How many rows there
    /// are to train on is known about.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the text has not so many, or not a row more; what is wrong with its beginning.
    pub fn split(&self, held_out_rows: u64) -> Result<Split> {
        let held_out = self.reach(held_out_rows)?;
        self.reach(held_out + 1)?;
        Ok(Split {
            train: held_out..self.estimate.rows.max(held_out + 1),
            held_out: 0..held_out,
        })
    }

    /// Refuses a text that has fewer than `rows` rows.
    ///
    /// # Errors
    /// [`Error::Invalid`] saying how many it has; what is wrong with its beginning.
    pub fn require(&self, rows: u64) -> Result<()> {
        self.reach(rows).map(|_| ())
    }

    /// Rows of the fewest contexts that have `rows` of them.
    fn reach(&self, rows: u64) -> Result<u64> {
        let mut found = 0;
        for context in self.rows(0).contexts() {
            found += self.rows_of(&context?);
            if found >= rows {
                return Ok(found);
            }
        }
        Err(Error::Invalid(format!(
            "{}: the text is too short: it has {found} rows, and {rows} are needed to hold some out and train on a batch \
             of others; give more text, a smaller data.held_out_rows or a smaller train.batch",
            self.name()
        )))
    }

    fn rows_of(&self, context: &Context) -> u64 {
        context.tokens.iter().filter(|&&id| self.recorder.has_row(id)).count() as u64
    }

    /// Computes the rows that [`split`](Self::split) sets apart; `None` when stopped.
    ///
    /// # Errors
    /// What the text and the model give.
    pub fn hold_out(&self, held_out_rows: u64, stop: &Stop) -> Result<Option<HeldOut>> {
        let mut held = HeldOut::default();
        let rows = self.rows(0);
        let mut contexts = rows.contexts();
        let mut found = 0;
        while found < held_out_rows {
            if stop.requested() {
                return Ok(None);
            }
            let mut batch = Vec::new();
            while batch.len() < self.recorder.batch()
                && found < held_out_rows
                && let Some(context) = contexts.next().transpose()?
            {
                found += self.rows_of(&context);
                batch.push(context);
            }
            if batch.is_empty() {
                break; // the text became shorter: its fingerprint will say so
            }
            held.acts.extend(rows.record(&batch)?.0);
            held.contexts += batch.len() as u64;
        }
        Ok(Some(held))
    }

    /// What reading takes besides the held-out rows, about.
    ///
    /// # Errors
    /// As [`mixed`](Self::mixed).
    pub fn needs(&self, options: &StreamOptions) -> Result<StreamNeeds> {
        let plan = self.plan(options)?;
        let pass = &self.estimate;
        let kept = pass.rows <= plan.sizes.pool_rows && pass.rows < options.rows;
        let (rows, in_pool) = match kept {
            true => (pass.rows, pass.rows),
            false => (options.rows, plan.most_rows(false)),
        };
        let values = 4 * self.d_in() as u64;
        let in_flight = IN_FLIGHT * plan.group as u64 * plan.unit_rows * values;
        let waiting = plan.sizes.waiting_bytes.min(4 * pass.tokens);
        Ok(StreamNeeds {
            memory_bytes: pass.memory_bytes + waiting + in_pool * (values + ROW_OVERHEAD) + in_flight,
            seconds: rows as f64 * pass.tokens as f64 / pass.rows.max(1) as f64 / pass.tokens_per_second,
        })
    }

    /// A reader that gives out all rows but those of the first `held_out_contexts` contexts, in random order. `from` is
    /// where an earlier reader of the same stream with the same options was, and how many rows it had given out.
    ///
    /// # Errors
    /// [`Error::Invalid`] if rows cannot be mixed in so little memory.
    pub fn mixed(
        &self,
        held_out_contexts: u64,
        options: &StreamOptions,
        from: Option<(MixState, u64)>,
    ) -> Result<StreamReader> {
        let plan = self.plan(options)?;
        Ok(StreamReader::new(Arc::new(self.rows(held_out_contexts)), plan, from))
    }

    fn plan(&self, options: &StreamOptions) -> Result<MixPlan> {
        let context = self.corpus.options().context as u64;
        let unit = (self.recorder.unit(), self.recorder.unit() as u64 * context);
        let most = (self.recorder.batch() / self.recorder.unit()).max(1);
        MixPlan::new(self.d_in(), unit, most, options).map_err(|least| {
            Error::Invalid(format!(
                "{}: rows of {} values cannot be mixed in {} MiB of memory; data.mix_memory_mib must be at least {}",
                self.name(),
                self.d_in(),
                options.memory_bytes >> 20,
                least.div_ceil(1 << 20)
            ))
        })
    }
}

/// What reading a stream takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamNeeds {
    /// Bytes of memory, the model's included.
    pub memory_bytes: u64,
    /// Seconds that the model computes, alone on the machine.
    pub seconds: f64,
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MixPlan {
    sizes: Sizes,
    /// Units that are computed side by side.
    group: usize,
    /// The most rows of a unit.
    unit_rows: u64,
}

impl MixPlan {
    /// Divides the memory. `unit` is contexts and rows of a unit, `most` the most units of a group.
    ///
    /// # Errors
    /// The least memory, in bytes, if there is too little.
    fn new(
        d_in: usize,
        (unit, unit_rows): (usize, u64),
        most: usize,
        options: &StreamOptions,
    ) -> std::result::Result<Self, u64> {
        let (values, row) = (4 * d_in as u64, 4 * d_in as u64 + ROW_OVERHEAD);
        let waiting_bytes = options.memory_bytes / WAITING_SHARE;
        // A window may exceed its size by a unit; a group is a part of the pool, or a unit.
        let fixed = unit_rows.saturating_mul(row + IN_FLIGHT * values);
        let each = row + IN_FLIGHT * values / GROUP_SHARE;
        let pool_rows = (options.memory_bytes - waiting_bytes).saturating_sub(fixed) / each;
        // Draws are numbered by u32.
        let pool_rows = pool_rows.min(u64::from(u32::MAX) - 2 * unit_rows);
        if pool_rows < unit_rows {
            let least = fixed.saturating_add(unit_rows * each);
            return Err(least.saturating_add(least / (WAITING_SHARE - 1) + 1));
        }
        let enough = (options.rows / WINDOWS).max(WINDOW_BATCHES.saturating_mul(options.batch as u64));
        // Windows of one size.
        let windows = options.rows.div_ceil(pool_rows.min(enough).max(1)).max(1);
        let window_rows = options.rows.div_ceil(windows).clamp(1, pool_rows);
        Ok(Self {
            sizes: Sizes {
                seed: options.seed,
                unit,
                window_rows,
                waiting_bytes,
                pool_rows,
                wanted: options.rows,
            },
            group: ((window_rows / GROUP_SHARE / unit_rows.max(1)) as usize).clamp(1, most),
            unit_rows,
        })
    }

    /// The most rows that the pool holds: of a window, or of a text that stays.
    fn most_rows(&self, kept: bool) -> u64 {
        match kept {
            false => self.sizes.window_rows + self.unit_rows,
            true => self.sizes.pool_rows,
        }
    }
}

/// Gives out the rows of a stream in random order, every row once an epoch, epoch after epoch.
///
/// It is `Send`, so that a thread can take batches ahead. The model starts with the first batch.
pub struct StreamReader {
    model: Arc<dyn Model>,
    plan: MixPlan,
    state: MixState,
    /// Rows given out, those before the state that it began from included.
    given: u64,
    /// Absent until the first batch, and after an error.
    pool: Option<Pool>,
}

impl StreamReader {
    fn new(model: Arc<dyn Model>, plan: MixPlan, from: Option<(MixState, u64)>) -> Self {
        let (state, given) = from.unwrap_or_default();
        Self {
            model,
            plan,
            state,
            given,
            pool: None,
        }
    }

    /// The pool for the present state: the model computes its window.
    fn fill(&self) -> Result<Pool> {
        let task = Task {
            sizes: self.plan.sizes,
            group: self.plan.group,
            from: self.state,
            rows: (self.plan.sizes.wanted.saturating_sub(self.given)).saturating_add(self.state.draws),
        };
        let loader = Loader::start(Arc::clone(&self.model), task);
        Pool::fill(loader, &self.plan, self.model.d_in(), self.state)
    }
}

impl RowReader for StreamReader {
    fn d_in(&self) -> usize {
        self.model.d_in()
    }

    fn next_batch(&mut self, out: &mut [f32]) -> Result<()> {
        let d_in = self.model.d_in();
        if !out.len().is_multiple_of(d_in) {
            return Err(Error::Invalid(format!(
                "{} values are not whole rows of {d_in}",
                out.len()
            )));
        }
        let mut pool = match self.pool.take() {
            Some(pool) => pool,
            None => self.fill()?,
        };
        let mut state = self.state;
        for row in out.chunks_exact_mut(d_in) {
            // An error drops the pool: the next call fills one for the state before this call.
            pool.draw(&mut state, row)?;
        }
        self.given += (out.len() / d_in) as u64;
        (self.state, self.pool) = (state, Some(pool));
        Ok(())
    }

    fn state(&self) -> MixState {
        self.state
    }
}
