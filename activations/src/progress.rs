//! How a long computation tells its caller where it is, and how the caller asks it to stop.
//!
//! Libraries never print. They report to a [`Progress`] and look at a [`Stop`] between steps; the command line draws
//! bars and connects Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Receives the progress of one computation. Every method has a default that does nothing.
///
/// Calls come from one thread at a time and in order: `begin`, any number of `advance` and `note`, `finish`.
pub trait Progress: Sync {
    /// A stage named `stage` starts; it has `total` units when that is known. `unit` is a plural such as `"tokens"`.
    fn begin(&self, stage: &str, total: Option<u64>, unit: &str) {
        let _ = (stage, total, unit);
    }

    /// `n` more units of the current stage are done.
    fn advance(&self, n: u64) {
        let _ = n;
    }

    /// A short text beside the bar, replacing the last one: `"fvu 0.12  l0 32"`.
    fn note(&self, text: &str) {
        let _ = text;
    }

    /// Something the reader should see and keep: it is printed above the bar and not replaced.
    fn warn(&self, text: &str) {
        let _ = text;
    }

    /// The current stage ends.
    fn finish(&self) {}
}

/// A [`Progress`] that discards everything.
pub struct Silent;

impl Progress for Silent {}

/// A request to stop, shared between threads. Clones are the same request.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A request that nobody has made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop at the next safe point.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// How a computation that can be stopped came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Everything that was asked for is done.
    Finished,
    /// [`Stop`] was requested; what is on disk continues with resume.
    Stopped,
}
