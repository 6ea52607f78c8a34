//! `sae completions`: completion scripts for the common shells.

use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, ValueEnum};

use crate::print;

/// Print a completion script for a shell
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae completions bash > ~/.local/share/bash-completion/completions/sae
  sae completions zsh  > ~/.zfunc/_sae
  sae completions fish > ~/.config/fish/completions/sae.fish")]
pub struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Writes the script to the standard output.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::Cli::command(), "sae", &mut script);
    let script = String::from_utf8(script).context("the script is not text")?;
    print::text(format_args!("{script}"));
    Ok(ExitCode::SUCCESS)
}
