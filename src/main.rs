//! The command line of `sae`: this file dispatches, one file a subcommand does the rest.

mod completions;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Train, measure and browse sparse autoencoders on language model activations.
#[derive(Parser)]
#[command(
    name = "sae",
    version,
    about,
    arg_required_else_help = true,
    subcommand_required = true
)]
#[command(after_help = "Every command explains itself with examples: sae <COMMAND> --help")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// In the order of the work.
#[derive(Subcommand)]
enum Command {
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Completions(args) => completions::run(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
