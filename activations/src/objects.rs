//! Object stores: `s3://`, `gs://` and `az://`, for texts and for activation stores.
//!
//! The one decision: **an object is whole or absent, and everything else is a local file.** Texts are read where they
//! are, in blocks fetched ahead (`ObjectReader`); a store is written in a local directory whose files are sent as they
//! are finished (`Staging`), and read from a copy that was fetched once (`RemoteStore::fetch`): training wants rows
//! from anywhere, and a request for each would take longer than the run. So no reader or writer of activations knows
//! that there are object stores, and every guarantee about files holds for objects as well.
//!
//! Environment variables say whose account it is, under the names that Amazon's, Google's and Microsoft's own tools
//! use. A request that fails for a reason that may pass is repeated; then the error names the URL, what failed and what
//! to check. What is asynchronous stays in this module, on a runtime of its own.

mod bucket;
mod fetch;
mod place;
mod reader;
mod staging;

pub(crate) use self::bucket::{Bucket, Object};
pub use self::fetch::{Remote, RemoteStore};
pub use self::place::{ObjectUrl, Place};
pub(crate) use self::reader::ObjectReader;
pub(crate) use self::staging::Staging;
pub use self::staging::staging_root;

#[cfg(test)]
mod tests;
