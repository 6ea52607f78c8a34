//! The command line of `sae`: this file dispatches, one file a subcommand does the rest.

mod bars;
mod bench;
mod completions;
mod demo;
mod encode;
mod features;
mod harvest;
mod inspect;
mod interrupt;
mod limits;
mod print;
mod remote;
mod runs;
mod serve;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sparse autoencoders on language model activations: harvest, train, measure, browse.
#[derive(Parser)]
#[command(
    name = "sae",
    version,
    about,
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = true
)]
#[command(after_help = "\
The whole way, by hand:
  sae harvest  --model DIR --text stories.txt --hook blocks.3.hook_resid_post --tokens 1M --out acts/
  sae train    --acts acts/ --out runs/a --set sae.k=32
  sae features --sae runs/a --acts acts/ --model DIR --out features/
  sae serve    features/

Every command explains itself with examples: sae <COMMAND> --help")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// In the order of the work.
#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Harvest(harvest::Args),
    Train(train::Args),
    Features(features::Args),
    Encode(encode::Args),
    Serve(serve::Args),
    Inspect(inspect::Args),
    Runs(runs::Args),
    Bench(bench::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = activations::cpu::check()
        .map_err(Into::into)
        .and_then(|()| match cli.command {
            Command::Demo(args) => demo::run(args),
            Command::Harvest(args) => harvest::run(args),
            Command::Train(args) => train::run(args),
            Command::Features(args) => features::run(args),
            Command::Encode(args) => encode::run(args),
            Command::Serve(args) => serve::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Runs(args) => runs::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Completions(args) => completions::run(args),
        });
    done.unwrap_or_else(|error| {
        eprintln!("error: {}", sentence(&error));
        ExitCode::FAILURE
    })
}

/// The error and its causes on one line; a cause that the text before ends with is not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let full = || std::io::Error::other("disk full");
        let library = activations::Error::Io {
            path: "acts".into(),
            source: full(),
        };
        assert_eq!(
            sentence(&anyhow::Error::from(library).context("harvesting")),
            "harvesting: acts: disk full"
        );
        assert_eq!(
            sentence(&anyhow::Error::from(full()).context("writing")),
            "writing: disk full"
        );
    }

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
