//! `sae serve`: the feature browser over one or several indexes.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::say;

/// Browse feature indexes in a web browser
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae serve features/
  sae serve features-a/ features-b/ --port 8000
  sae serve features/ --host 0.0.0.0        # reachable from other machines: no password protects it")]
pub struct Args {
    /// Directories made by `sae features`; the first is shown first
    #[arg(required = true, value_name = "DIR")]
    indexes: Vec<PathBuf>,
    #[command(flatten)]
    listen: Listen,
}

/// Where to listen.
#[derive(clap::Args, Clone)]
pub struct Listen {
    /// Port to listen on
    #[arg(long, default_value_t = 7860)]
    pub port: u16,
    /// Address to listen on; anything but loopback can be reached from other machines
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
}

impl Listen {
    /// Refuses a port that is taken, before any work is done.
    pub fn check_free(&self) -> anyhow::Result<()> {
        TcpListener::bind((self.host.as_str(), self.port))
            .map(drop)
            .with_context(|| {
                format!(
                    "cannot listen on {}:{}; choose another port with --port",
                    self.host, self.port
                )
            })
    }
}

/// Serves until Ctrl-C.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    serve(args.indexes, &args.listen)
}

/// Serves `indexes` until Ctrl-C; prints the address once the server answers.
pub fn serve(indexes: Vec<PathBuf>, listen: &Listen) -> anyhow::Result<ExitCode> {
    let options = viewer::Options {
        host: listen.host.clone(),
        port: listen.port,
    };
    viewer::serve(indexes, options, |address| {
        say!("browse at {address}   (Ctrl-C ends)");
    })
    .context("serving the feature browser")?;
    Ok(ExitCode::SUCCESS)
}
