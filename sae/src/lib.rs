//! Sparse dictionaries over language model activations: what they are, how they are trained and measured.
//!
//! The one decision: **a method is a configuration, not a class.** A [`Sparsifier`] is a score times an allocation,
//! a code is sparse from the moment it is selected ([`code`]), and every number people compare is defined once
//! ([`metrics`]).

pub mod bilinear;
mod chart;
pub mod code;
pub mod codes;
pub mod config;
pub mod dictionary;
pub mod encoder;
mod error;
pub mod index;
pub mod kernels;
pub mod metrics;
pub mod objective;
pub mod optimizer;
pub mod sparsifier;
pub mod speed;
mod tensor_file;
pub mod train;

pub use code::{HostCode, Rows, SparseCode};
pub use dictionary::{DictionaryCard, Sae};
pub use encoder::{Encoder, Weights};
pub use error::{Error, Result};
pub use sparsifier::{Allocation, Score, Shrink, Sparsifier};
