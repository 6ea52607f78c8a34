//! `sae runs`: the runs below a directory, what they differ in, and what they no longer need.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use sae::config::{RUN_TOML, RunConfig};
use sae::train::runs::{self, Leftover, Run, RunState};
use serde_json::json;

use crate::bars::{bytes, grouped};
use crate::say;

/// List runs with their key numbers, compare them, and remove what finished ones no longer need
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sae runs                                   # every run below this directory
  sae runs runs/ --json
  sae runs --compare runs/a runs/b runs/c    # the keys of run.toml in which they differ, beside their numbers
  sae runs --prune runs/                     # what could be removed, and how much it is
  sae runs --prune runs/ --yes               # removes it: checkpoints and copied activations of finished runs

A run that was stopped, or is under way, is listed with the step of its last checkpoint and its last measurement on the
held-out rows. A run with a damaged file is listed as unreadable with the reason; the others are listed all the same.")]
pub struct Args {
    /// A run, or a directory with runs somewhere below it (default: this one)
    #[arg(value_name = "DIR", conflicts_with_all = ["compare", "prune"])]
    dir: Option<PathBuf>,
    /// Runs to compare
    #[arg(long, value_name = "DIR", num_args = 2.., conflicts_with = "prune")]
    compare: Vec<PathBuf>,
    /// A run, or a directory with runs, to remove checkpoints and copied activations from, where the run is finished
    #[arg(long, value_name = "DIR")]
    prune: Option<PathBuf>,
    /// Remove it; without this, --prune only says what it would remove
    #[arg(long, requires = "prune")]
    yes: bool,
    /// Print JSON on the standard output
    #[arg(long)]
    json: bool,
}

/// Looks, and prints.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(dir) = &args.prune {
        return prune(dir, args.yes, args.json);
    }
    if !args.compare.is_empty() {
        return compare(&args.compare, args.json);
    }
    let dir = args.dir.as_deref().unwrap_or(Path::new("."));
    let found = runs::list(dir)?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&found)?);
    } else if found.is_empty() {
        say!("no runs in {}: `sae train --out` makes one", dir.display());
    } else {
        list(&found);
    }
    Ok(ExitCode::SUCCESS)
}

fn list(found: &[Run]) {
    let head = ["run", "method", "d_sae", "k", "steps", "FVU", "L0", "dead", "size"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    // Most go on from nothing.
    let any_init = found.iter().any(|run| run.init.is_some());
    rows[0].extend(any_init.then(|| "from".to_owned()));
    rows[0].push("state".to_owned());
    rows.extend(found.iter().map(|run| {
        let [fvu, l0, dead] = figures(run);
        let size = bytes(run.bytes);
        let state = match &run.problem {
            // A parser shows the place on lines of its own, and a run has one.
            Some(problem) => format!(
                "unreadable: {}",
                problem.split_whitespace().collect::<Vec<_>>().join(" ")
            ),
            None => state(run).to_owned(),
        };
        let mut row = vec![
            run.path.display().to_string(),
            known(run.method.clone()),
            known(run.d_sae.map(|n| grouped(n as u64))),
            known(run.k.map(|n| n.to_string())),
            steps(run),
            fvu,
            l0,
            dead,
            size,
        ];
        row.extend(any_init.then(|| known(run.init.as_ref().map(|dir| dir.display().to_string()))));
        row.push(state);
        row
    }));
    print_table(&rows);
}

fn known(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".into())
}

fn figures(run: &Run) -> [String; 3] {
    [
        known(run.fvu.map(|v| format!("{v:.4}"))),
        known(run.l0.map(|v| format!("{v:.1}"))),
        known(run.dead_share.map(|v| format!("{:.1}%", 100.0 * v))),
    ]
}

fn steps(run: &Run) -> String {
    match run.steps {
        Some(all) => format!("{}/{}", grouped(run.steps_done), grouped(all)),
        None => grouped(run.steps_done),
    }
}

fn state(run: &Run) -> &'static str {
    match run.state {
        RunState::Finished => "finished",
        RunState::Stopped => "stopped",
        RunState::Unreadable => "unreadable",
    }
}

/// Columns as wide as their widest cell, but the last.
fn print_table(rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        say!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// The keys in which runs differ, and their numbers.
fn compare(dirs: &[PathBuf], json: bool) -> anyhow::Result<ExitCode> {
    let mut values: Vec<BTreeMap<String, String>> = Vec::new();
    for dir in dirs {
        if !dir.join(RUN_TOML).exists() {
            bail!("{}: holds no run: there is no {RUN_TOML} in it", dir.display());
        }
        values.push(RunConfig::load(Some(&dir.join(RUN_TOML)), &[])?.values()?);
    }
    let keys: BTreeSet<&String> = values.iter().flat_map(BTreeMap::keys).collect();
    let differ = |key: &&String| values.iter().any(|v| v.get(*key) != values[0].get(*key));
    let keys: Vec<&String> = keys.into_iter().filter(differ).collect();
    let found: Vec<Run> = dirs.iter().map(|dir| runs::look(dir)).collect();
    if json {
        let of = |key: &&String| values.iter().map(|v| v.get(*key)).collect::<Vec<_>>();
        let differences: BTreeMap<&String, _> = keys.iter().map(|key| (*key, of(key))).collect();
        say!(
            "{}",
            serde_json::to_string_pretty(&json!({"runs": found, "differences": differences}))?
        );
        return Ok(ExitCode::SUCCESS);
    }
    let line = |name: &str, of: &dyn Fn(usize) -> String| {
        let mut row = vec![name.to_owned()];
        row.extend((0..dirs.len()).map(of));
        row
    };
    let mut rows = vec![line("", &|i| dirs[i].display().to_string())];
    rows.extend(
        keys.iter()
            .map(|key| line(key, &|i| known(values[i].get(*key).cloned()))),
    );
    for (at, name) in ["FVU", "L0", "dead"].into_iter().enumerate() {
        rows.push(line(name, &|i| figures(&found[i])[at].clone()));
    }
    rows.push(line("steps", &|i| steps(&found[i])));
    rows.push(line("size", &|i| bytes(found[i].bytes)));
    rows.push(line("state", &|i| state(&found[i]).to_owned()));
    print_table(&rows);
    for run in &found {
        if let Some(problem) = &run.problem {
            say!("{}: unreadable: {problem}", run.path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what finished runs no longer need, and removes it if that was asked for.
fn prune(dir: &Path, yes: bool, json: bool) -> anyhow::Result<ExitCode> {
    let found: Vec<Leftover> = runs::list(dir)?
        .iter()
        .flat_map(|run| runs::leftovers(&run.path))
        .collect();
    let sum: u64 = found.iter().map(|leftover| leftover.bytes).sum();
    for leftover in &found {
        if !json {
            say!("{}  {}", leftover.path.display(), bytes(leftover.bytes));
        }
        if yes {
            runs::remove(leftover)?;
        }
    }
    if json {
        let report = json!({"removed": yes, "bytes": sum, "files": found});
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        match (found.is_empty(), yes) {
            (true, _) => say!(
                "nothing to remove: finished runs have neither checkpoints nor copies in {}",
                dir.display()
            ),
            (false, true) => say!("removed {}", bytes(sum)),
            (false, false) => say!("{} could be removed: add --yes", bytes(sum)),
        }
    }
    Ok(ExitCode::SUCCESS)
}
