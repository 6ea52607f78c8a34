//! The dictionary that a run goes on from, `sae.init`: what it says of the run, and whether it fits its activations.
//!
//! Its card and its digest are looked at when a run is planned; its parameters are loaded when the first step is near, and
//! only if there is no checkpoint to go on from.

use std::path::{Path, PathBuf};

use activations::source::Activations;
use burn::tensor::Device;

use super::sides::{Side, Sides};
use crate::code::to_host;
use crate::config::{DataConfig, RunConfig};
use crate::dictionary::{self, DictionaryCard, DictionaryRef, Place, Sae};
use crate::error::{Error, Result};
use crate::sparsifier::Allocation;

/// Decoder rows whose lengths are further from 1 are worth a word.
const WORTH_A_WORD: f32 = 1e-3;

/// A dictionary to go on from.
#[derive(Clone, Debug)]
pub struct Init {
    dir: PathBuf,
    digest: String,
    card: DictionaryCard,
    /// Whether its encoder is its decoder's transpose, to the bit.
    tied: bool,
    /// The lengths of its shortest and its longest decoder row.
    lengths: (f32, f32),
}

/// What a plan says of the dictionary that its run goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct GoingOn {
    /// Its directory.
    pub dir: PathBuf,
    /// What is said of it afterwards.
    pub named: DictionaryRef,
    /// What there is to know before the run, a line each.
    pub notes: Vec<String>,
}

impl Init {
    /// Looks at the dictionary in `dir`.
    ///
    /// # Errors
    /// As [`Sae::load`]: everything that could be wrong with it is found before there is any work.
    pub fn open(dir: &Path) -> Result<Self> {
        let (sae, card) = Sae::load(dir, &Device::flex())?;
        let w_dec = sae.decoder_rows()?;
        let square = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>();
        let lengths = w_dec.chunks_exact(sae.d_out()).map(|row| square(row).sqrt());
        let lengths = lengths.fold((f32::MAX, 0.0f32), |(least, most), l| (least.min(l), most.max(l)));
        let unit = (lengths.0 - 1.0).abs() < WORTH_A_WORD && (lengths.1 - 1.0).abs() < WORTH_A_WORD;
        // Rows that have to be brought to length 1 take the encoder's the other way.
        let tied = card.writes.is_empty() && unit && to_host::<f32>(sae.w_enc.try_into_data())? == w_dec;
        Ok(Self {
            dir: dir.to_owned(),
            digest: dictionary::digest(dir)?,
            card,
            tied,
            lengths,
        })
    }

    /// Fills in what `config` leaves open, see [`RunConfig::inherit`].
    ///
    /// # Errors
    /// [`Error::Config`] naming what contradicts the dictionary.
    pub fn fill(&self, config: &mut RunConfig) -> Result<()> {
        config.inherit(&self.card, &self.digest, self.tied)
    }

    /// Fills in the hooks that `data` does not name, where they are there: those that the dictionary reads and writes.
    pub fn fill_hooks(&self, data: &mut DataConfig) {
        let names = |places: Vec<Place>| places.into_iter().map(|p| p.hook).collect::<Option<Vec<_>>>();
        if data.hook.is_none() && data.hooks.is_none() {
            match names(self.card.reads()).as_deref() {
                Some([hook]) => {
                    // Files of one array, and stores of one other hook, have no need of a name.
                    let opened = data.acts.as_ref().map(|acts| {
                        let named = Activations::open_as(acts, Some(hook), data.acts_dtype);
                        named.is_ok()
                    });
                    data.hook = opened.unwrap_or(true).then(|| hook.clone());
                }
                Some(several) => data.hooks = Some(several.to_vec()),
                None => {}
            }
        }
        if !self.card.writes.is_empty() && !data.has_target() {
            data.target = names(self.card.writes());
        }
    }

    /// What the plan of a run of `d_sae` latents on `sides` of `source` has to say.
    ///
    /// # Errors
    /// [`Error::Config`] when the dictionary has more latents, or reads or writes activations of other widths.
    pub fn going_on(&self, config: &RunConfig, sides: &Sides, d_sae: usize, source: &str) -> Result<GoingOn> {
        let name = self.dir.display();
        config.check_size(d_sae, self.card.d_sae)?;
        let mut notes = vec![self.first_note(d_sae)];
        let both = [
            ("reads", "data.hook", self.card.reads(), &sides.read),
            ("writes", "data.target", self.card.writes(), &sides.written),
        ];
        let n_sides = if sides.same() { 1 } else { 2 };
        for (does, key, was, is) in both.into_iter().take(n_sides) {
            if widths(&was) != widths(&is.places) {
                return Err(Error::config(
                    "sae.init",
                    format!(
                        "is {name}, which {does} width {:?}, but {source} ({key}) has width {:?}",
                        widths(&was),
                        widths(&is.places)
                    ),
                ));
            }
            notes.extend(other_hooks(does, &was, is));
        }
        notes.extend(self.note_on_rows(config));
        notes.extend(self.note_on_thresholds(config));
        Ok(GoingOn {
            named: DictionaryRef {
                name: dictionary_name(&self.dir),
                sha256: self.digest.clone(),
            },
            dir: self.dir.clone(),
            notes,
        })
    }

    fn first_note(&self, d_sae: usize) -> String {
        let (name, method, n) = (self.dir.display(), self.card.sparsifier.name(), self.card.d_sae);
        match d_sae - n {
            0 => format!("goes on from {name}: {method} of {n} latents"),
            new => format!("goes on from {name}: {method} of {n} latents, to which {new} random ones are added"),
        }
    }

    /// Of other programs' dictionaries.
    fn note_on_rows(&self, config: &RunConfig) -> Option<String> {
        let (least, most) = self.lengths;
        // Of a crosscoder, lengths are 1 in units of training that are not known yet.
        let one_written = self.card.writes().len() == 1;
        let unit = (least - 1.0).abs() < WORTH_A_WORD && (most - 1.0).abs() < WORTH_A_WORD;
        let budget = match config.sparsifier().k() {
            Some(_) => ", and latents compete for the budget with these values",
            None => "",
        };
        (one_written && !unit).then(|| {
            format!(
                "its decoder rows are {least:.3} to {most:.3} long: training keeps them at length 1, so values are \
                 multiplied by these lengths{budget}"
            )
        })
    }

    /// Of thresholds that a run does not take over.
    fn note_on_thresholds(&self, config: &RunConfig) -> Option<String> {
        let allocation = config.sparsifier().allocation;
        let kept = config.learns_thresholds() || allocation == Allocation::Gate;
        (self.card.sparsifier.has_threshold() && !kept).then(|| {
            let name = config.sparsifier().name();
            format!("its thresholds are set aside: {name} has none of a dictionary's in training")
        })
    }
}

impl GoingOn {
    /// Its parameters, for raw activations.
    ///
    /// # Errors
    /// As [`Sae::load`]; [`Error::BadFile`] if it is not what it was when the run was planned.
    pub fn load(&self, device: &Device) -> Result<Sae> {
        let (sae, _) = Sae::load(&self.dir, device)?;
        match dictionary::digest(&self.dir)? == self.named.sha256 {
            true => Ok(sae),
            false => Err(Error::bad_file(
                &self.dir,
                "was changed while the run began: begin it again",
            )),
        }
    }
}

fn widths(places: &[Place]) -> Vec<usize> {
    places.iter().map(|place| place.width).collect()
}

/// People do go on with other hooks of the same width; they should know it.
fn other_hooks(does: &str, was: &[Place], is: &Side) -> Option<String> {
    let pairs = was.iter().zip(&is.places);
    let differ = |(was, is): (&Place, &Place)| matches!((&was.hook, &is.hook), (Some(a), Some(b)) if a != b);
    pairs.clone().any(differ).then(|| {
        let names = was.iter().map(Place::name).collect::<Vec<_>>().join(", ");
        format!("that dictionary {does} {names}, this run {}", is.name())
    })
}

/// What people call it: the name of its directory.
fn dictionary_name(dir: &Path) -> String {
    let whole = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}
