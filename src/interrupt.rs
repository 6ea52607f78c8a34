//! Ctrl-C: the first asks the work to stop at its next safe point, the second leaves at once.

use std::process::ExitCode;

use activations::{Outcome, Stop};
use anyhow::Context;

/// What shells expect of a process that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// Connects Ctrl-C (and SIGTERM) to a [`Stop`].
pub fn listen() -> anyhow::Result<Stop> {
    let stop = Stop::new();
    let request = stop.clone();
    ctrlc::set_handler(move || {
        if request.requested() {
            std::process::exit(INTERRUPTED.into());
        }
        request.request();
        eprintln!("\nstopping at the next safe point; press again to leave at once");
    })
    .context("listening for Ctrl-C")?;
    Ok(stop)
}

/// The exit code of a command that ended with `outcome`; says how to go on when it was stopped.
pub fn exit_code(outcome: Outcome, resume: &str) -> ExitCode {
    match outcome {
        Outcome::Finished => ExitCode::SUCCESS,
        Outcome::Stopped => {
            eprintln!("stopped; continue with: {resume}");
            ExitCode::from(INTERRUPTED)
        }
    }
}
