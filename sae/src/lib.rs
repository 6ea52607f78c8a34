//! Sparse dictionaries over language model activations: training, measuring, and the index of what their features do.

mod error;
pub mod index;

pub use error::{Error, Result};
