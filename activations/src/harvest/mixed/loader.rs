//! The model, on a thread of its own: window after window of rows, no further ahead than somebody takes them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use super::Model;
use super::order::{End, Sizes, Unit, Units};
use crate::error::{Error, Result};
use crate::source::MixState;

/// Groups of rows that wait between the model and the pool.
const AHEAD: usize = 1;

/// Rows of some units of one window.
pub(super) struct Loaded {
    /// `[rows, d_in]`
    pub acts: Vec<f32>,
    pub ends: Option<End>,
    /// Whether they are of a text that stays in the pool.
    pub kept: bool,
}

/// What is to be loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub sizes: Sizes,
    /// Units that the model computes side by side. Decides nothing but the speed.
    pub group: usize,
    /// The first window.
    pub from: MixState,
    /// Loading ends with the window that completes so many rows.
    pub rows: u64,
}

/// Rows as they are computed. Dropping it ends the thread with the group that it computes.
pub(super) struct Loader {
    loaded: Receiver<Result<Loaded>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    pub fn start(model: Arc<dyn Model>, task: Task) -> Self {
        let (sender, loaded) = sync_channel(AHEAD);
        let thread = std::thread::spawn(move || {
            if let Err(error) = load(model.as_ref(), task, &sender) {
                // Nobody is there to hear it when the reader was dropped.
                let _ = sender.send(Err(error));
            }
        });
        Self {
            loaded,
            thread: Some(thread),
        }
    }

    /// What is computed, if something is.
    pub fn take_if_ready(&mut self) -> Result<Option<Loaded>> {
        match self.loaded.try_recv() {
            Ok(loaded) => loaded.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                self.forward_panic();
                Ok(None)
            }
        }
    }

    /// The next group.
    pub fn take(&mut self) -> Result<Loaded> {
        self.loaded.recv().unwrap_or_else(|RecvError| {
            self.forward_panic();
            Err(Error::Invalid(
                "more rows are asked for than the stream was opened for".into(),
            ))
        })
    }

    /// The thread ended: a panic of it is this thread's, too.
    fn forward_panic(&mut self) {
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Sends what `task` says, until all is sent or nobody wants it any more.
fn load(model: &dyn Model, task: Task, sender: &SyncSender<Result<Loaded>>) -> Result<()> {
    let mut left = task.rows;
    let mut skip = task.from.windows;
    for epoch in task.from.epoch.. {
        let mut units = Units::begin(model, task.sizes, epoch)?;
        pass(&mut units, skip)?;
        skip = 0;
        let (kept, mut none) = (units.kept(), true);
        while let Some(group) = next_group(&mut units, task.group)? {
            let rows = group.iter().map(|unit| unit.rows).sum();
            let ends = group.last().and_then(|unit| unit.ends);
            let acts = compute(model, group)?;
            none &= rows == 0;
            if sender.send(Ok(Loaded { acts, ends, kept })).is_err() {
                return Ok(());
            }
            left = left.saturating_sub(rows);
            if ends.is_some() && (left == 0 || kept) {
                return Ok(());
            }
        }
        if none {
            return Err(Error::Invalid(
                "the text has no rows to train on: was it changed meanwhile?".into(),
            ));
        }
    }
    Ok(())
}

/// Passes over the first `windows` windows without computing them.
fn pass(units: &mut Units<'_>, windows: u32) -> Result<()> {
    let mut passed = 0;
    while passed < windows {
        match units.next()? {
            Some(unit) if unit.ends == Some(End::Window) => passed += 1,
            Some(unit) if unit.ends.is_none() => {}
            _ => return Err(impossible()),
        }
    }
    Ok(())
}

/// No reader of this text can be where this one is to go on.
pub(super) fn impossible() -> Error {
    Error::Invalid(
        "no stream of this text can be at that place: were the text, the seed or the memory limit changed?".into(),
    )
}

/// The next units, all of one window.
fn next_group(units: &mut Units<'_>, most: usize) -> Result<Option<Vec<Unit>>> {
    let mut group = Vec::new();
    while group.len() < most
        && let Some(unit) = units.next()?
    {
        let ends = unit.ends.is_some();
        group.push(unit);
        if ends {
            break;
        }
    }
    Ok((!group.is_empty()).then_some(group))
}

/// Runs the model, and refuses what is not finite.
fn compute(model: &dyn Model, group: Vec<Unit>) -> Result<Vec<f32>> {
    let contexts: Vec<_> = group.into_iter().flat_map(|unit| unit.contexts).collect();
    let (acts, rows) = model.record(&contexts)?;
    match acts.iter().position(|v| !v.is_finite()) {
        None => Ok(acts),
        Some(at) => {
            let row = rows[at / model.d_in()];
            Err(Error::Invalid(format!(
                "the model gives a NaN or an infinite value in column {} (context {}, position {}): training needs \
                 finite activations",
                at % model.d_in(),
                contexts[row.context as usize].index,
                row.position
            )))
        }
    }
}
