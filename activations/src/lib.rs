//! Language model activations: from a checkpoint and a text to a store that reads back shuffled.
//!
//! The one decision: **activations are written in natural order and mixed while reading.** Harvesting is then
//! resumable to the same bytes, every row can be shown in its context, and each training epoch sees another order.
//! Whole contexts travel as [`ContextBatch`]es.

pub mod atomic;
pub mod context;
pub mod corpus;
pub mod cpu;
pub mod device;
pub mod dtype;
mod error;
mod fingerprint;
pub mod gguf_file;
mod guard;
pub mod harvest;
pub mod hooks;
pub mod hub;
pub mod lock;
pub mod mapped;
pub mod model;
pub mod npy;
pub mod objects;
pub mod product;
pub mod progress;
pub mod safetensors_file;
pub mod source;
pub mod store;
pub mod tokenizer;

pub use context::{Context, ContextBatch, ContextSource, DocumentRef, RowRef, Spans};
pub use device::Device;
pub use dtype::ActDtype;
pub use error::{Error, Result};
pub use progress::{Outcome, Progress, Silent, Stop};
