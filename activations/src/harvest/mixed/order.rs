//! In which order contexts reach the model, and where windows end.
//!
//! Contexts of the text pass through a reservoir, as tokens: whenever there is no room for another one, one of those
//! that wait is drawn. Drawn contexts make units, units make windows. All of it is a function of the text and of
//! [`Sizes`], so that the units of a window can be found again without computing those before it.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Model;
use crate::context::Context;
use crate::error::Result;
use crate::source::order::generator;

/// What the order depends on besides the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub seed: u64,
    /// Contexts that the model sees at once.
    pub unit: usize,
    /// A window ends with the unit that brings it to so many rows.
    pub window_rows: u64,
    /// The most bytes of contexts that wait.
    pub waiting_bytes: u64,
    /// Rows that a text may have to stay in the pool, instead of passing the model each epoch.
    pub pool_rows: u64,
    /// Rows that will be asked for in all. More contexts than hold these need not wait.
    pub wanted: u64,
}

/// What a waiting context takes beside its tokens, about.
const OVERHEAD: u64 = 48;

fn waiting_bytes(context: &Context) -> u64 {
    OVERHEAD + 4 * context.tokens.len() as u64
}

/// What ends behind a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A window, and not the epoch.
    Window,
    /// A window, and the text.
    Epoch,
}

/// Contexts that the model sees at once.
pub(super) struct Unit {
    pub contexts: Vec<Context>,
    /// Rows that they will have.
    pub rows: u64,
    pub ends: Option<End>,
}

/// The units of one epoch.
pub(super) struct Units<'a> {
    model: &'a dyn Model,
    sizes: Sizes,
    text: Box<dyn Iterator<Item = Result<Context>> + Send>,
    ended: bool,
    /// Without their spans.
    waiting: Vec<Context>,
    bytes: u64,
    rows: u64,
    draws: ChaCha8Rng,
    kept: bool,
    /// Rows of the present window so far.
    in_window: u64,
}

impl<'a> Units<'a> {
    /// Fills the reservoir.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn begin(model: &'a dyn Model, sizes: Sizes, epoch: u64) -> Result<Self> {
        let mut units = Self {
            model,
            sizes,
            text: model.contexts(),
            ended: false,
            waiting: Vec::new(),
            bytes: 0,
            rows: 0,
            draws: generator(sizes.seed, epoch, u64::MAX),
            kept: false,
            in_window: 0,
        };
        units.fill()?;
        // All of the text is here, is wanted more than once, and fits: it stays, and its rows are shuffled exactly.
        units.kept = units.ended && units.rows <= sizes.pool_rows && units.rows < sizes.wanted;
        if units.kept {
            units.waiting.reverse();
        }
        Ok(units)
    }

    /// Whether the whole text is one window that stays in the pool.
    pub fn kept(&self) -> bool {
        self.kept
    }

    /// The next unit; `None` behind the end of the epoch.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn next(&mut self) -> Result<Option<Unit>> {
        let (mut contexts, mut rows) = (Vec::new(), 0);
        while contexts.len() < self.sizes.unit
            && let Some(context) = self.draw()?
        {
            rows += self.rows_of(&context);
            contexts.push(context);
        }
        if contexts.is_empty() {
            return Ok(None);
        }
        self.in_window += rows;
        let full = !self.kept && self.in_window >= self.sizes.window_rows;
        let ends = match (self.waiting.is_empty(), full) {
            (true, _) => Some(End::Epoch),
            (false, true) => Some(End::Window),
            (false, false) => None,
        };
        if ends.is_some() {
            self.in_window = 0;
        }
        Ok(Some(Unit { contexts, rows, ends }))
    }

    fn rows_of(&self, context: &Context) -> u64 {
        context.tokens.iter().filter(|&&id| self.model.has_row(id)).count() as u64
    }

    /// Reads contexts until there is no room for more.
    fn fill(&mut self) -> Result<()> {
        while !self.ended && self.bytes < self.sizes.waiting_bytes && self.rows < self.sizes.wanted {
            match self.text.next().transpose()? {
                Some(mut context) => {
                    context.spans = Default::default();
                    self.bytes += waiting_bytes(&context);
                    self.rows += self.rows_of(&context);
                    self.waiting.push(context);
                }
                None => self.ended = true,
            }
        }
        Ok(())
    }

    /// One of the contexts that wait.
    fn draw(&mut self) -> Result<Option<Context>> {
        let context = match self.waiting.len() {
            0 => None,
            _ if self.kept => self.waiting.pop(),
            n => Some(self.waiting.swap_remove(self.draws.random_range(0..n))),
        };
        if let Some(context) = &context {
            self.bytes -= waiting_bytes(context);
            self.rows -= self.rows_of(context);
            self.fill()?;
        }
        Ok(context)
    }
}
