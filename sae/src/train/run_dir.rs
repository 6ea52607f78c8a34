//! A run's directory: whose it is, how far it has come, and where things lie in it.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use activations::atomic;
use activations::lock::Lock;
use activations::source::MixState;
use burn::tensor::Device;

use super::checkpoint::{self, State};
use super::learner::Learner;
use super::log::{Lengths, Log};
use super::watch::Watch;
use super::{RunSummary, TrainPlan};
use crate::bilinear;
use crate::config::{RUN_TOML, RunConfig};
use crate::dictionary::CARD;
use crate::error::{Error, Result};

/// What came out, written last.
pub const SUMMARY: &str = "summary.json";
/// Where the state is.
pub const CHECKPOINT: &str = "checkpoint";

/// The directory of one run.
pub struct RunDir {
    path: PathBuf,
    fingerprint: String,
    /// The last checkpoint, if there is one.
    state: Option<State>,
    /// Held as long as the run is on its way, once its directory is there.
    lock: OnceCell<Lock>,
}

impl RunDir {
    /// Whether there is a run in the directory `path`.
    pub fn is_run(path: &Path) -> bool {
        path.join(RUN_TOML).exists()
    }

    /// Takes `path` for a new run of `plan`, or, with `resume`, for the one that is there. Writes nothing yet.
    ///
    /// # Errors
    /// When there is a run and `resume` is false, or none and `resume` is true; when the run that is there is of
    /// another configuration or other data, naming the differences; when another process writes there.
    pub fn open(path: &Path, plan: &TrainPlan, resume: bool) -> Result<Self> {
        let mut dir = Self {
            path: path.to_owned(),
            fingerprint: plan.fingerprint.clone(),
            state: None,
            lock: OnceCell::new(),
        };
        let there = Self::is_run(path);
        match (there, resume) {
            (false, false) => dir.refuse_dictionary()?,
            (true, true) => {
                dir.lock()?;
                dir.compare(plan)?;
            }
            (true, false) => {
                return Err(Error::bad_file(
                    path,
                    "already holds a run: continue it with --resume, or name another directory with --out",
                ));
            }
            (false, true) => {
                return Err(Error::bad_file(
                    path,
                    format!("holds no run to resume: expected a {RUN_TOML}; leave --resume out to begin one"),
                ));
            }
        }
        Ok(dir)
    }

    fn refuse_dictionary(&self) -> Result<()> {
        let there = [CARD, bilinear::CARD].iter().any(|card| self.path.join(card).exists());
        match there {
            false => Ok(()),
            true => Err(Error::bad_file(
                &self.path,
                "already holds a dictionary: name another directory with --out",
            )),
        }
    }

    /// Makes the directory that of a run of `plan`, once nothing can be refused any more.
    pub fn begin(&self, plan: &TrainPlan) -> Result<()> {
        fs::create_dir_all(&self.path).map_err(Error::io(&self.path))?;
        self.lock()?;
        Ok(atomic::write(
            &self.path.join(RUN_TOML),
            plan.config.to_toml()?.as_bytes(),
        )?)
    }

    /// Refuses a second process that writes here.
    fn lock(&self) -> Result<()> {
        if self.lock.get().is_none() {
            let _ = self.lock.set(Lock::of_directory(&self.path, "this run")?);
        }
        Ok(())
    }

    fn compare(&mut self, plan: &TrainPlan) -> Result<()> {
        let mut before = RunConfig::load(Some(&self.path.join(RUN_TOML)), &[])?;
        // Data may have moved; whether it is the same, its fingerprint says.
        let (was, is) = (&mut before.data, &plan.config.data);
        if was.acts.is_some() && is.acts.is_some() {
            was.acts.clone_from(&is.acts);
            was.target_acts.clone_from(&is.target_acts);
        }
        if was.model.is_some() && is.model.is_some() {
            was.model.clone_from(&is.model);
            was.text.clone_from(&is.text);
        }
        // Likewise a dictionary, whose digest is beside it.
        if before.sae.init.is_some() && plan.config.sae.init.is_some() {
            before.sae.init.clone_from(&plan.config.sae.init);
        }
        let differences = plan.config.differences(&before)?;
        if !differences.is_empty() {
            return Err(Error::bad_file(
                &self.path,
                format!(
                    "holds a run of another configuration ({}): resume with the same, or name another directory with --out",
                    differences.join("; ")
                ),
            ));
        }
        self.state = checkpoint::read_state(&self.path.join(CHECKPOINT))?;
        match &self.state {
            Some(state) if state.fingerprint != self.fingerprint => Err(Error::bad_file(
                &self.path,
                format!(
                    "holds a run on other activations than {}: they changed since its checkpoint",
                    plan.source
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The summary, if the run is finished.
    pub fn finished(&self) -> Result<Option<RunSummary>> {
        let path = self.path.join(SUMMARY);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let summary = serde_json::from_slice(&bytes);
        summary
            .map(Some)
            .map_err(|e| Error::bad_file(&path, format!("not the summary of a run: {e}")))
    }

    /// What is trained as it was at the last checkpoint, with the rest of its state; `None` before the first one.
    pub fn checkpoint(&self, device: &Device, plan: &TrainPlan) -> Result<Option<(Learner, State)>> {
        let Some(state) = &self.state else { return Ok(None) };
        let learner = checkpoint::restore(&self.path.join(CHECKPOINT), state, plan, device)?;
        Ok(Some((learner, state.clone())))
    }

    /// Steps taken at the last checkpoint.
    pub fn last_checkpoint(&self) -> Option<u64> {
        self.state.as_ref().map(|state| state.step)
    }

    /// What had been seen of the run's errors then.
    pub fn watch(&self) -> Watch {
        self.state.as_ref().map_or(Watch::default(), |state| state.watch)
    }

    /// The logs, cut back to the last checkpoint.
    pub fn log(&self) -> Result<Log> {
        Log::open(
            &self.path,
            self.state.as_ref().map_or(Lengths::default(), |state| state.log),
        )
    }

    /// Writes a checkpoint. The logs are on the disk before it speaks of them.
    pub fn save(
        &mut self,
        learner: &Learner,
        watch: Watch,
        reader: MixState,
        seconds: f64,
        log: &mut Log,
    ) -> Result<()> {
        let lengths = log.sync()?;
        let dir = self.path.join(CHECKPOINT);
        self.state = Some(checkpoint::save(
            &dir,
            learner,
            watch,
            reader,
            lengths,
            seconds,
            &self.fingerprint,
        )?);
        Ok(())
    }
}

/// Writes what came out.
pub fn write_summary(dir: &Path, summary: &RunSummary) -> Result<()> {
    let json = serde_json::to_vec_pretty(summary)
        .map_err(|e| Error::Invalid(format!("the summary of a run does not serialise: {e}")))?;
    Ok(atomic::write(&dir.join(SUMMARY), &json)?)
}
