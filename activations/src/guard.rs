//! Around the Parquet decoder, which on some damaged files panics instead of giving an error.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a step of the decoder; `None` if it panicked. A damaged file is the same news to a user either way. Nothing that
/// the step changed may be used afterwards.
pub(crate) fn unless_it_panics<T>(step: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(step)).ok()
}
