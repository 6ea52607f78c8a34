//! `sae serve`: feature indexes, or training runs while they train, in a web browser.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::say;

/// Browse feature indexes, or watch training runs, in a web browser
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae serve features/
  sae serve features-a/ features-b/ --port 8000
  sae serve runs/a                          # a training run, while it trains and afterwards
  sae serve runs/                           # all runs below a directory, a grid's among them
  sae serve features/ --host 0.0.0.0        # reachable from other machines: no password protects it")]
pub struct Args {
    /// Directories made by `sae features`, of which the first is shown first; or directories of runs of `sae train`, of grids,
    /// or with runs in them
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
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
    serve(args.directories, &args.listen)
}

/// Serves `directories` until Ctrl-C; prints the address once the server answers.
pub fn serve(directories: Vec<PathBuf>, listen: &Listen) -> anyhow::Result<ExitCode> {
    let options = viewer::Options {
        host: listen.host.clone(),
        port: listen.port,
    };
    viewer::serve(directories, options, |address| {
        say!("browse at {address}   (Ctrl-C ends)");
    })
    .context("serving pages")?;
    Ok(ExitCode::SUCCESS)
}
