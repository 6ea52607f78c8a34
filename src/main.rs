//! The command line of `sae`: one file a subcommand, nothing else.

use std::process::ExitCode;

use clap::Parser;

/// Train, measure and browse sparse autoencoders on language model activations.
#[derive(Parser)]
#[command(name = "sae", version, about)]
struct Cli {}

fn main() -> ExitCode {
    let Cli {} = Cli::parse();
    ExitCode::SUCCESS
}
