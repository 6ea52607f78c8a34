//! The browser of feature indexes and of training runs: a router with every page embedded in the binary.
//!
//! The one decision: **the server answers with data and the page draws it.** Pages are static files, compiled in; an
//! index speaks only through `/api/...`, as JSON, and reaches the document only as `textContent`. So there is no
//! template to escape, nothing on the disk is served by path, and a content-security policy without a single
//! exception holds on every page.
//!
//! | address | what |
//! |---|---|
//! | `/` | the atlas: every feature of an index; of runs, the run or a list of them |
//! | `/feature/{n}` | one feature |
//! | `/run/{id}` | one training run, while it trains and afterwards |
//! | `/assets/{name}` | style sheet, modules, icon |
//! | `/api/indexes` | every index: its id and its manifest |
//! | `/api/indexes/{id}/summaries` | the statistics of all features, as columns |
//! | `/api/indexes/{id}/features/{n}` | everything that a feature's page shows |
//! | `/api/runs` | every run: its id, configuration and progress |
//! | `/api/runs/{id}?from={byte}` | the same of one, with the lines of its log from there on |
//!
//! ```no_run
//! # fn main() -> viewer::Result<()> {
//! viewer::serve(vec!["features".into()], viewer::Options::default(), |url| println!("{url}"))
//! # }
//! ```

mod api;
mod assets;
mod detail;
mod guard;
mod reply;
mod runs;
mod serve;
mod state;
mod summaries;
mod text;

use std::io;
use std::path::PathBuf;

pub use serve::{Options, router, serve};
pub use state::State;

/// What can go wrong before the first request is answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An index cannot be read; the text names the file.
    #[error(transparent)]
    Index(#[from] sae::Error),
    /// There is nothing to serve.
    #[error("nothing to serve: name a directory made by `sae features`, or by `sae train`")]
    NoIndex,
    /// A directory holds neither.
    #[error(
        "{}: is not a feature index (no manifest.json: `sae features` makes one), nor a training run, a grid or a directory of \
         runs (no run.toml: `sae train` writes it when the first step is near)",
        path.display()
    )]
    Neither {
        /// As it was given.
        path: PathBuf,
    },
    /// Indexes and runs have pages of their own.
    #[error(
        "{} is a training run and {} a feature index: serve them apart, the second with another --port",
        run.display(),
        index.display()
    )]
    Both {
        /// A run, a grid or a directory of runs.
        run: PathBuf,
        /// A feature index.
        index: PathBuf,
    },
    /// Another program listens there.
    #[error(
        "port {port} of {host} is taken, perhaps by another `sae serve`; choose another with --port \
         (--port 0 takes any that is free)"
    )]
    PortTaken {
        /// As it was asked for.
        host: String,
        /// As it was asked for.
        port: u16,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {host}, port {port}: {source}; --host takes an address of this machine")]
    Listen {
        /// As it was asked for.
        host: String,
        /// As it was asked for.
        port: u16,
        /// What the operating system said.
        source: io::Error,
    },
    /// Serving failed while it ran.
    #[error("the server stopped: {0}")]
    Server(#[source] io::Error),
}

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;
