//! A dictionary's directory: `dictionary.safetensors`, and `dictionary.json`, which is written last.

use std::fs;
use std::io::Read;
use std::path::Path;

use activations::atomic;
use activations::safetensors_file::SafeTensors;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{DictionaryCard, Sae};
use crate::encoder::Encoder;
use crate::encoder::unrolled::EncoderStep;
use crate::error::{Error, Result};
use crate::tensor_file::{self, Entry, Values};

/// The card's file name.
pub const CARD: &str = "dictionary.json";
/// The parameters' file name.
pub const PARAMETERS: &str = "dictionary.safetensors";

/// Digest of the dictionary in `dir`: of its card and its parameters, byte by byte.
///
/// # Errors
/// [`Error::BadFile`] when there is none; what the system says, naming the file.
pub fn digest(dir: &Path) -> Result<String> {
    if !dir.join(CARD).exists() {
        return Err(Error::bad_file(dir, absence(dir)));
    }
    let mut digest = Sha256::new();
    for name in [CARD, PARAMETERS] {
        let path = dir.join(name);
        let mut file = fs::File::open(&path).map_err(Error::io(&path))?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece).map_err(Error::io(&path))? {
                0 => break,
                n => digest.update(&piece[..n]),
            }
        }
    }
    Ok(digest.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Holds the tensors of `file`, which is at `path`, against the shapes that the card called `card` says.
pub(crate) fn check_shapes(file: &SafeTensors, path: &Path, card: &str, shapes: &[(&str, &[usize])]) -> Result<()> {
    for &(name, expected) in shapes {
        match file.shape(name) {
            None => return Err(Error::bad_file(path, format!("tensor {name} is missing"))),
            Some(found) if found != expected => {
                return Err(Error::bad_file(
                    path,
                    format!("tensor {name} has shape {found:?}; {card} expects {expected:?}"),
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The names of the tensors of an encoder's steps behind the first, matrix and bias: `w_enc_2` is the second step's.
pub(crate) fn step_names(encoder: Encoder) -> impl Iterator<Item = [String; 2]> {
    (2..2 + encoder.own_steps()).map(|n| [format!("w_enc_{n}"), format!("b_enc_{n}")])
}

impl Sae {
    /// Loads a dictionary from `path`: a finished run's directory, or any directory with a `dictionary.json`.
    ///
    /// # Errors
    /// [`Error::BadFile`] naming the file, and the tensor or key, when something is missing, extra, of another shape
    /// than the card says, or not finite; when a run has not come to its dictionary yet, how to continue it.
    pub fn load(path: &Path, device: &Device) -> Result<(Self, DictionaryCard)> {
        let card = DictionaryCard::load(path)?;
        let path = path.join(PARAMETERS);
        let file = SafeTensors::open(&path)?;
        let (d_in, d_out, d_sae) = (card.d_in, card.d_out(), card.d_sae);
        // Every shape before the first value is read.
        let mut shapes: Vec<(&str, &[usize])> = vec![
            ("b_dec", std::slice::from_ref(&d_out)),
            ("b_enc", std::slice::from_ref(&d_sae)),
        ];
        let (encoder, decoder, skip) = ([d_sae, d_in], [d_sae, d_out], [d_out, d_in]);
        shapes.extend([("w_dec", &decoder[..]), ("w_enc", &encoder[..])]);
        if card.skip {
            shapes.push(("skip", &skip));
        }
        let own_steps: Vec<[String; 2]> = step_names(card.sparsifier.encoder).collect();
        for [w_enc, b_enc] in &own_steps {
            shapes.extend([(w_enc.as_str(), &encoder[..]), (b_enc, std::slice::from_ref(&d_sae))]);
        }
        if card.sparsifier.has_threshold() {
            shapes.push(("threshold", std::slice::from_ref(&d_sae)));
        }
        check_shapes(&file, &path, CARD, &shapes)?;
        if let Some(extra) = file.names().find(|n| shapes.iter().all(|(name, _)| name != n)) {
            let (method, shape) = (card.sparsifier.name(), card.shape().name());
            return Err(Error::bad_file(
                &path,
                format!(
                    "extra tensor {extra}: a {method} {shape} has {}",
                    shapes.iter().map(|s| s.0).collect::<Vec<_>>().join(", ")
                ),
            ));
        }
        let read = |name: &str| read_finite(&file, &path, name);
        let vector = |values: Vec<f32>| {
            let shape = [values.len()];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        let threshold = match card.sparsifier.has_threshold() {
            true => Some(vector(check_thresholds(read("threshold")?, &card, &path)?)),
            false => None,
        };
        let matrix = |values, shape: [usize; 2]| Tensor::from_data(TensorData::new(values, shape), device);
        let sae = Self {
            w_enc: matrix(read("w_enc")?, encoder),
            b_enc: vector(read("b_enc")?),
            w_dec: matrix(read("w_dec")?, decoder),
            b_dec: vector(read("b_dec")?),
            apply_b_dec_to_input: card.apply_b_dec_to_input,
            steps: own_steps
                .iter()
                .map(|[w_enc, b_enc]| {
                    Ok(EncoderStep {
                        w_enc: matrix(read(w_enc)?, encoder),
                        b_enc: vector(read(b_enc)?),
                    })
                })
                .collect::<Result<_>>()?,
            skip: match card.skip {
                true => Some(matrix(read("skip")?, skip)),
                false => None,
            },
            threshold,
            per_token: card.per_token,
            sparsifier: card.sparsifier,
        };
        Ok((sae, card))
    }

    /// Writes the dictionary into `dir`, which must exist: parameters first, then the card. While the parameters of a
    /// dictionary that was there before are replaced, the directory says that it holds none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the card speaks of another dictionary, or the form is one for training alone; what the system says, naming the file.
    pub fn save(&self, dir: &Path, card: &DictionaryCard) -> Result<()> {
        if self.sparsifier.has_threshold() != self.threshold.is_some() {
            return Err(Error::Invalid(format!(
                "{} has thresholds exactly where its allocation says so",
                self.sparsifier.name()
            )));
        }
        if self.sparsifier.encoder.own_steps() != self.steps.len() {
            return Err(Error::Invalid(format!(
                "{} has matrices of its own in {} steps, but there are those of {}",
                self.sparsifier.name(),
                self.sparsifier.encoder.own_steps(),
                self.steps.len()
            )));
        }
        let says = (card.d_in, card.d_sae, card.d_out(), card.sparsifier);
        let is = (self.d_in(), self.d_sae(), self.d_out(), self.sparsifier);
        if says != is {
            return Err(Error::Invalid(format!(
                "the card says {} from d_in {} over d_sae {} to d_out {}, but the dictionary is {} from {} over {} to {}",
                says.3.name(),
                says.0,
                says.1,
                says.2,
                is.3.name(),
                is.0,
                is.1,
                is.2
            )));
        }
        let says = (card.skip, card.apply_b_dec_to_input, card.per_token);
        if says != (self.skip.is_some(), self.apply_b_dec_to_input, self.per_token) {
            return Err(Error::Invalid(
                "the card says otherwise of the skip connection, of b_dec or of norms than the dictionary".into(),
            ));
        }
        if let Some(problem) = card.problem_of_places() {
            return Err(Error::Invalid(format!("the dictionary's card {problem}")));
        }
        self.sparsifier.validate_saved()?;
        let path = dir.join(CARD);
        if path.exists() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
            atomic::sync_directory(dir)?;
        }
        let mut entries = vec![
            Entry::new("w_enc", Values::Matrix(&self.w_enc)),
            Entry::new("b_enc", Values::Vector(&self.b_enc)),
            Entry::new("w_dec", Values::Matrix(&self.w_dec)),
            Entry::new("b_dec", Values::Vector(&self.b_dec)),
        ];
        let threshold = self
            .threshold
            .as_ref()
            .map(|t| Entry::new("threshold", Values::Vector(t)));
        entries.extend(threshold);
        for ([w_enc, b_enc], step) in step_names(self.sparsifier.encoder).zip(&self.steps) {
            entries.push(Entry::new(w_enc, Values::Matrix(&step.w_enc)));
            entries.push(Entry::new(b_enc, Values::Vector(&step.b_enc)));
        }
        entries.extend(self.skip.as_ref().map(|skip| Entry::new("skip", Values::Matrix(skip))));
        tensor_file::write(&dir.join(PARAMETERS), &entries)?;
        let json = serde_json::to_vec_pretty(card)
            .map_err(|e| Error::Invalid(format!("the dictionary's card does not serialise: {e}")))?;
        Ok(atomic::write(&path, &json)?)
    }
}

impl DictionaryCard {
    /// Reads only the card of a run's or a dictionary's directory.
    ///
    /// # Errors
    /// [`Error::BadFile`] when it is not there, not of this layout, or says what cannot be.
    pub fn load(dir: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Layout {
            version: u32,
        }
        let path = dir.join(CARD);
        if !path.exists() {
            return Err(Error::bad_file(dir, absence(dir)));
        }
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let bad = |problem: String| Error::bad_file(&path, problem);
        let not_a_card = |e: serde_json::Error| bad(format!("not a dictionary's card: {e}"));
        let layout: Layout = serde_json::from_str(&text).map_err(not_a_card)?;
        if !(1..=Self::VERSION).contains(&layout.version) {
            return Err(bad(format!(
                "has version {}, this build reads versions 1 to {}: it was written by a newer one",
                layout.version,
                Self::VERSION
            )));
        }
        let card: Self = serde_json::from_str(&text).map_err(not_a_card)?;
        if card.d_in == 0 || card.d_sae == 0 {
            return Err(bad(format!("claims d_in {} and d_sae {}", card.d_in, card.d_sae)));
        }
        if let Some(problem) = card.problem_of_places() {
            return Err(bad(problem));
        }
        card.sparsifier.validate(card.d_sae).map_err(|e| bad(e.to_string()))?;
        card.sparsifier.validate_saved().map_err(|e| bad(e.to_string()))?;
        Ok(card)
    }
}

/// Thresholds as they are, if they can be: a score that is never below 0 has none below it.
fn check_thresholds(thresholds: Vec<f32>, card: &DictionaryCard, path: &Path) -> Result<Vec<f32>> {
    let floor = card.sparsifier.score.floor();
    match thresholds.iter().position(|t| *t < floor) {
        None => Ok(thresholds),
        Some(at) => Err(Error::bad_file(
            path,
            format!(
                "tensor threshold holds {} for latent {at}: a threshold of {:?} scores is at least {floor}",
                thresholds[at], card.sparsifier.score
            ),
        )),
    }
}

/// Why there is no dictionary in `dir`.
fn absence(dir: &Path) -> String {
    if !dir.exists() {
        "does not exist: expected a directory with a dictionary.json".into()
    } else if !dir.is_dir() {
        "is a file: expected a directory with a dictionary.json".into()
    } else if dir.join(crate::bilinear::CARD).exists() {
        "holds a bilinear autoencoder: its codes are dense and its decoder rows matrices, so that it is no dictionary of \
         directions (docs/shapes.md says how to read it)"
            .into()
    } else if dir.join("run.toml").exists() {
        format!(
            "this run has not come to its dictionary yet: finish it with `sae train --resume --out {}`",
            dir.display()
        )
    } else {
        "holds no dictionary: expected a dictionary.json, as `sae train` writes it".into()
    }
}

/// The values of tensor `name`, all finite.
pub(crate) fn read_finite(file: &SafeTensors, path: &Path, name: &str) -> Result<Vec<f32>> {
    let values = file.read_f32(name)?;
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::bad_file(
            path,
            format!(
                "tensor {name} holds {} at value {at}: parameters must be finite",
                values[at]
            ),
        )),
    }
}
