//! Sparse dictionaries over language model activations: training, measuring, and the index of what their features do.

mod error;

pub use error::{Error, Result};
