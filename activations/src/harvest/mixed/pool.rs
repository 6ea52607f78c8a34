//! The pool that mixes rows: those of the present window that were not drawn yet, and the first ones of the next.
//!
//! Which slot a row takes depends on when the model was done with it. Nothing else does: rows are numbered along their
//! window, and drawn by their numbers.

use super::MixPlan;
use super::loader::{Loaded, Loader, impossible};
use super::order::End;
use crate::error::{Error, Result};
use crate::source::MixState;
use crate::source::order::draws;

/// The rows of a window, or as many as are there.
#[derive(Default)]
struct Window {
    /// The slot of each row.
    slots: Vec<u32>,
    /// Absent until the last row is there.
    ends: Option<End>,
    kept: bool,
}

/// Rows in memory.
pub(super) struct Pool {
    loader: Loader,
    seed: u64,
    d_in: usize,
    /// Slots of a row each.
    acts: Vec<f32>,
    free: Vec<u32>,
    present: Window,
    /// In which order the rows of the present window are drawn.
    draws: Vec<u32>,
    next: Window,
    /// Computed, and without room yet.
    pending: Option<Loaded>,
}

impl Pool {
    /// The pool as it is at `state`, whose window is the first that `loader` gives. Waits until it is full.
    pub fn fill(loader: Loader, plan: &MixPlan, d_in: usize, state: MixState) -> Result<Self> {
        let seed = plan.sizes.seed;
        let mut pool = Self {
            loader,
            seed,
            d_in,
            acts: Vec::new(),
            free: Vec::new(),
            present: Window::default(),
            draws: Vec::new(),
            next: Window::default(),
            pending: None,
        };
        let first = pool.loader.take()?;
        pool.reserve(plan.most_rows(first.kept))?;
        pool.place(first);
        pool.complete_next()?;
        pool.present = std::mem::take(&mut pool.next);
        let n = pool.present.slots.len();
        if state.draws > n as u64 {
            return Err(impossible());
        }
        pool.draws = draws(seed, state.epoch, state.windows, n);
        if !pool.present.kept {
            let drawn = &pool.draws[..state.draws as usize];
            pool.free = drawn.iter().map(|&d| pool.present.slots[d as usize]).collect();
        }
        Ok(pool)
    }

    /// Takes the memory at once: growing would need twice as much for a moment.
    fn reserve(&mut self, rows: u64) -> Result<()> {
        let values = usize::try_from(rows).ok().and_then(|rows| rows.checked_mul(self.d_in));
        let reserved = self.acts.try_reserve_exact(values.unwrap_or(usize::MAX));
        reserved.map_err(|_| {
            Error::Invalid(format!(
                "there is no memory for a pool of {rows} rows of {} values: lower data.mix_memory_mib",
                self.d_in
            ))
        })
    }

    /// Copies the next row into `out: [d_in]` and moves `state` on.
    pub fn draw(&mut self, state: &mut MixState, out: &mut [f32]) -> Result<()> {
        // Not behind the last row of a window, but before the first of the next: nobody may ask for that any more.
        while state.draws as usize == self.draws.len() {
            self.advance(state)?;
        }
        let slot = self.present.slots[self.draws[state.draws as usize] as usize];
        let at = slot as usize * self.d_in;
        out.copy_from_slice(&self.acts[at..at + self.d_in]);
        state.draws += 1;
        if !self.present.kept {
            self.free.push(slot);
            self.refill()?;
        }
        Ok(())
    }

    /// Puts rows of the next window into slots that are free.
    fn refill(&mut self) -> Result<()> {
        while self.next.ends.is_none() {
            if self.pending.is_none() {
                self.pending = self.loader.take_if_ready()?;
            }
            match self.pending.take() {
                Some(loaded) if loaded.acts.len() <= self.free.len() * self.d_in => self.place(loaded),
                pending => {
                    self.pending = pending;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits for the rest of the next window.
    fn complete_next(&mut self) -> Result<()> {
        while self.next.ends.is_none() {
            let loaded = match self.pending.take() {
                Some(loaded) => loaded,
                None => self.loader.take()?,
            };
            self.place(loaded);
        }
        Ok(())
    }

    /// Puts rows into free slots, and into new ones where they do not suffice.
    fn place(&mut self, loaded: Loaded) {
        let Loaded { acts, ends, kept } = loaded;
        for row in acts.chunks_exact(self.d_in) {
            let slot = match self.free.pop() {
                Some(slot) => {
                    let at = slot as usize * self.d_in;
                    self.acts[at..at + self.d_in].copy_from_slice(row);
                    slot
                }
                None => {
                    self.acts.extend_from_slice(row);
                    (self.acts.len() / self.d_in - 1) as u32
                }
            };
            self.next.slots.push(slot);
        }
        (self.next.ends, self.next.kept) = (ends, kept);
    }

    /// The present window is used up: the next one takes its place; a text that stays begins again.
    fn advance(&mut self, state: &mut MixState) -> Result<()> {
        let (epoch, windows) = match self.present.ends {
            Some(End::Window) => (state.epoch, state.windows + 1),
            Some(End::Epoch) | None => (state.epoch + 1, 0),
        };
        if !self.present.kept {
            self.complete_next()?;
            self.present = std::mem::take(&mut self.next);
        }
        self.draws = draws(self.seed, epoch, windows, self.present.slots.len());
        *state = MixState {
            epoch,
            windows,
            draws: 0,
        };
        Ok(())
    }

    /// Rows that there is room for.
    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.acts.len() / self.d_in
    }
}
