//! A run looked at while it is written: how far it is, how fast, and what its log says since the last look.
//!
//! The one decision: **whoever follows a run remembers a number of bytes, and nothing is remembered here.** A log only
//! grows, but for a resume that cuts it back to a checkpoint and then writes the same bytes again, so a number of bytes
//! at the end of a line stays one, and one beyond the end means to begin again. A last line that is half written is
//! left for the next look; a line that is none is named, and the others are given.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use super::log::{Line, Timing};
use super::log::{METRICS, TIMINGS};
use super::run_dir::SUMMARY;
use super::runs;
use crate::config::{RUN_TOML, RunConfig};
use crate::dictionary::HeldOut;
use crate::error::{Error, Result};

/// Bytes of a log that are read at once.
const PIECE: u64 = 4 << 20;
/// Bytes from the end of `metrics.jsonl` in which the last measurement is looked for.
const LAST_METRICS: u64 = 1 << 20;
/// Bytes from the end of `timings.jsonl` that say how fast the run is now: some fifty lines.
const LAST_TIMINGS: u64 = 4096;
/// A run that has written nothing for so long, in seconds, and for several times what it takes between two lines, is silent.
const SILENT: f64 = 60.0;

/// What a run that may be under way is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It writes.
    Training,
    /// It has written nothing for a while: it was stopped, or something takes long.
    Silent,
    /// There is a summary.
    Finished,
    /// One of its small files is not what it should be.
    Unreadable,
}

/// A run as it is now. What is not known (yet) is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Watched {
    /// What it is at.
    pub stage: Stage,
    /// What is wrong with it, where something is.
    pub problem: Option<String>,
    /// Since it last wrote to its logs, in seconds by this machine's clock.
    pub silent_seconds: Option<f64>,
    /// Every key of its `run.toml`, as `RunConfig::values` has them.
    pub config: BTreeMap<String, String>,
    /// Width of an activation that is read; known of a finished run.
    pub d_in: Option<usize>,
    /// Steps taken, by its log.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: Option<u64>,
    /// Of the loop so far.
    pub seconds: Option<f64>,
    /// Over its last lines.
    pub tokens_per_second: Option<f64>,
    /// At that pace, of the steps that are left.
    pub seconds_left: Option<f64>,
    /// What was last measured on the held-out rows.
    pub held_out: Option<HeldOut>,
}

/// Lines of `metrics.jsonl` from a number of bytes on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tail {
    /// Where they begin: what was asked for, or 0 when that is no place between two lines of the file (any more).
    pub from: u64,
    /// Where the next ones will begin.
    pub next: u64,
    /// Whether there are more of them already.
    pub more: bool,
    /// In the order of the file.
    pub lines: Vec<Line>,
    /// Lines that are none, by their places.
    pub problems: Vec<String>,
}

/// The lines of `metrics.jsonl` in `dir` from byte `from` on, as far as they are whole, a few MiB at most. A run that has
/// just begun has none.
///
/// # Errors
/// What the system says; a line that is longer than any of a run.
pub fn tail(dir: &Path, from: u64) -> Result<Tail> {
    let path = dir.join(METRICS);
    let nothing = Tail {
        from: 0,
        next: 0,
        more: false,
        lines: Vec::new(),
        problems: Vec::new(),
    };
    let Some(mut file) = open(&path)? else {
        return Ok(nothing);
    };
    // The byte before says whether a line ends there.
    let before = from.saturating_sub(1);
    let mut bytes = read(&mut file, before, PIECE).map_err(Error::io(&path))?;
    let from = match bytes.first() {
        Some(b'\n') if from > 0 => {
            bytes.remove(0);
            from
        }
        _ if from > 0 => {
            bytes = read(&mut file, 0, PIECE).map_err(Error::io(&path))?;
            0
        }
        _ => 0,
    };
    let whole = whole_lines(&bytes).len();
    if whole == 0 && bytes.len() as u64 >= PIECE - 1 {
        return Err(Error::bad_file(
            &path,
            format!("has a line of more than {PIECE} bytes at byte {from}: no run writes one"),
        ));
    }
    let mut tail = Tail {
        from,
        next: from + whole as u64,
        more: bytes.len() as u64 >= PIECE - 1,
        ..nothing
    };
    let mut at = from;
    for line in bytes[..whole].split_inclusive(|&b| b == b'\n') {
        match serde_json::from_slice(line) {
            Ok(line) => tail.lines.push(line),
            Err(e) => tail
                .problems
                .push(format!("{METRICS}: the line at byte {at} is left out: {e}")),
        }
        at += line.len() as u64;
    }
    Ok(tail)
}

/// Looks at the run in `dir`.
pub fn watch(dir: &Path) -> Watched {
    let mut run = Watched {
        stage: Stage::Training,
        problem: None,
        silent_seconds: silence(dir),
        config: BTreeMap::new(),
        d_in: None,
        step: 0,
        steps: None,
        seconds: None,
        tokens_per_second: None,
        seconds_left: None,
        held_out: None,
    };
    if let Err(error) = fill(&mut run, dir) {
        run.stage = Stage::Unreadable;
        run.problem = Some(error.to_string());
    }
    run
}

/// Fills in what the files say, up to the first that cannot be read.
fn fill(run: &mut Watched, dir: &Path) -> Result<()> {
    let metrics: Vec<Line> = last_lines(&dir.join(METRICS), LAST_METRICS)?;
    run.step = metrics.last().map_or(0, |line| line.step);
    run.held_out = metrics.iter().rev().find_map(|line| line.held_out);
    let timings: Vec<Timing> = last_lines(&dir.join(TIMINGS), LAST_TIMINGS)?;
    run.seconds = timings.last().map(|timing| timing.seconds);
    let config = RunConfig::load(Some(&dir.join(RUN_TOML)), &[])?;
    run.config = config.values()?;
    run.steps = config.train.steps;
    if dir.join(SUMMARY).exists() {
        let summary = runs::summary(dir)?;
        if let Some(summary) = summary {
            run.stage = Stage::Finished;
            (run.d_in, run.step, run.held_out) = (Some(summary.d_in), summary.steps, Some(summary.held_out));
            run.tokens_per_second = Some(summary.tokens as f64 / summary.seconds.max(1e-9));
            run.seconds = Some(summary.seconds);
            return Ok(());
        }
    }
    let mut between = 0.0;
    if let (Some(last), Some(first)) = (timings.last(), timings.first()) {
        // Of a single line all that is known is the mean.
        let mean = |a: &Timing, b: &Timing| (b.tokens() - a.tokens()) / (b.seconds - a.seconds);
        let pace = match timings.len() > 1 && last.seconds > first.seconds {
            true => mean(first, last),
            false => last.tokens_per_second,
        };
        between = timings
            .windows(2)
            .map(|w| w[1].seconds - w[0].seconds)
            .fold(0.0, f64::max);
        run.tokens_per_second = Some(pace);
        let tokens_a_step = last.tokens() / last.step.max(1) as f64;
        let left = run.steps.unwrap_or(last.step).saturating_sub(last.step) as f64;
        run.seconds_left = Some(left * tokens_a_step / pace).filter(|seconds| seconds.is_finite());
    }
    if run
        .silent_seconds
        .is_some_and(|seconds| seconds > SILENT.max(4.0 * between))
    {
        run.stage = Stage::Silent;
    }
    Ok(())
}

/// Seconds since the run in `dir` last wrote what tells of its progress.
fn silence(dir: &Path) -> Option<f64> {
    let modified = |name: &&str| std::fs::metadata(dir.join(name)).ok()?.modified().ok();
    let last = [METRICS, TIMINGS, RUN_TOML].iter().filter_map(modified).max()?;
    // A clock that was set back makes a file of the future.
    Some(SystemTime::now().duration_since(last).unwrap_or_default().as_secs_f64())
}

/// The lines within the last `most` bytes of a log that are whole and can be read; none of a file that is not there.
fn last_lines<T: DeserializeOwned>(path: &Path, most: u64) -> Result<Vec<T>> {
    let Some(mut file) = open(path)? else {
        return Ok(Vec::new());
    };
    let length = file.metadata().map_err(Error::io(path))?.len();
    let bytes = read(&mut file, length.saturating_sub(most), most).map_err(Error::io(path))?;
    // The first may be the end of one.
    let lines = whole_lines(&bytes).split(|&b| b == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// A log, if the run has begun it.
fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        file => file.map(Some).map_err(Error::io(path)),
    }
}

/// The bytes up to the last end of a line.
fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    &bytes[..end]
}

/// Bytes of a file from `from` on, `most` at most; none behind its end.
fn read(file: &mut File, from: u64, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(step: u64) -> String {
        let line = format!(
            "{{\"step\":{step},\"tokens\":{step}00,\"epoch\":0,\"lr\":0.001,\"loss\":0.5,\"parts\":{{\"mse\":0.5}},\
             \"l0\":4.0,\"dead_share\":0.0}}"
        );
        line + "\n"
    }

    fn steps(tail: &Tail) -> Vec<u64> {
        tail.lines.iter().map(|line| line.step).collect()
    }

    #[test]
    fn a_half_written_line_is_given_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(METRICS);
        let nothing = tail(dir.path(), 7).unwrap();
        assert_eq!((nothing.from, nothing.next, nothing.lines.len()), (0, 0, 0));
        let (one, two) = (line(1), line(2));
        fs::write(&log, format!("{one}{}", &two[..20])).unwrap();
        let first = tail(dir.path(), 0).unwrap();
        assert_eq!((steps(&first), first.next), (vec![1], one.len() as u64));
        assert!(first.problems.is_empty() && !first.more);
        fs::write(&log, format!("{one}{two}")).unwrap();
        let second = tail(dir.path(), first.next).unwrap();
        assert_eq!((steps(&second), second.from), (vec![2], first.next));
        assert!(tail(dir.path(), second.next).unwrap().lines.is_empty());
    }

    #[test]
    fn a_log_that_was_cut_back_or_replaced_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(METRICS), line(1) + &line(2)).unwrap();
        for beyond in [10_000, 3] {
            let tail = tail(dir.path(), beyond).unwrap();
            assert_eq!((tail.from, steps(&tail)), (0, vec![1, 2]), "{beyond}");
        }
    }

    #[test]
    fn a_broken_line_is_named_and_the_others_are_given() {
        let dir = tempfile::tempdir().unwrap();
        let broken = b"{\"step\": 2, \xff\n";
        let bytes = [line(1).as_bytes(), broken, line(3).as_bytes()].concat();
        fs::write(dir.path().join(METRICS), bytes).unwrap();
        let tail = tail(dir.path(), 0).unwrap();
        assert_eq!(steps(&tail), [1, 3]);
        let place = format!("byte {}", line(1).len());
        assert!(
            tail.problems.len() == 1 && tail.problems[0].contains(&place),
            "{:?}",
            tail.problems
        );
    }

    #[test]
    fn a_long_log_comes_in_pieces_that_lose_no_line() {
        let dir = tempfile::tempdir().unwrap();
        let n = 2 * PIECE / line(100_000).len() as u64;
        let log: String = (100_000..100_000 + n).map(line).collect();
        fs::write(dir.path().join(METRICS), log).unwrap();
        let (mut from, mut found, mut pieces) = (0, Vec::new(), 0);
        loop {
            let tail = tail(dir.path(), from).unwrap();
            assert_eq!(tail.from, from);
            found.extend(steps(&tail));
            (from, pieces) = (tail.next, pieces + 1);
            if !tail.more {
                break;
            }
        }
        assert!(pieces > 1 && found.into_iter().eq(100_000..100_000 + n));
    }

    #[test]
    fn the_pace_and_the_time_left_are_those_of_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(RUN_TOML), "[train]\nsteps = 50\n").unwrap();
        let begun = watch(dir.path());
        assert_eq!((begun.stage, begun.step, begun.steps), (Stage::Training, 0, Some(50)));
        // Ten tokens a step: the first ten steps took 20 s, the next ten 10 s.
        let timing = |step: u64, seconds: f64| {
            let tokens_per_second = 10.0 * step as f64 / seconds;
            let timing = Timing {
                step,
                seconds,
                tokens_per_second,
            };
            serde_json::to_string(&timing).unwrap() + "\n"
        };
        fs::write(dir.path().join(METRICS), line(20)).unwrap();
        fs::write(dir.path().join(TIMINGS), timing(10, 20.0) + &timing(20, 30.0) + "{\"st").unwrap();
        let run = watch(dir.path());
        assert_eq!((run.stage, run.step, run.seconds), (Stage::Training, 20, Some(30.0)));
        let near = |value: Option<f64>, wanted: f64| (value.unwrap() - wanted).abs() < 1e-9;
        assert!(
            near(run.tokens_per_second, 10.0) && near(run.seconds_left, 30.0),
            "{run:?}"
        );
    }

    #[test]
    fn a_run_that_wrote_nothing_for_long_is_silent_and_a_damaged_one_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let toml = dir.path().join(RUN_TOML);
        fs::write(&toml, "[train]\nsteps = 50\n").unwrap();
        let long_ago = SystemTime::now() - std::time::Duration::from_secs(1000);
        File::options()
            .write(true)
            .open(&toml)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        let run = watch(dir.path());
        assert!(
            run.stage == Stage::Silent && run.silent_seconds.unwrap() > 999.0,
            "{run:?}"
        );
        fs::write(&toml, "[train]\nstep = 50\n").unwrap();
        let run = watch(dir.path());
        assert!(run.stage == Stage::Unreadable && run.problem.unwrap().contains("step"));
    }
}
