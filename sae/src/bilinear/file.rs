//! A bilinear autoencoder's directory: `bilinear.safetensors`, and `bilinear.json`, which is written last.

use std::fs;
use std::path::Path;

use activations::atomic;
use activations::safetensors_file::SafeTensors;
use activations::store::{CorpusRef, ModelRef};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Bilinear, Form};
use crate::dictionary::{HeldOut, check_shapes, read_finite};
use crate::error::{Error, Result};
use crate::tensor_file::{self, Entry, Values};

/// The card's file name.
pub const CARD: &str = "bilinear.json";
/// The parameters' file name.
pub const PARAMETERS: &str = "bilinear.safetensors";

/// Shape, provenance and quality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BilinearCard {
    /// Version of this file's layout: [`BilinearCard::VERSION`].
    pub version: u32,
    /// What was asked of latents.
    pub form: Form,
    /// Width of an activation.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// Number of clusters, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<usize>,
    /// The place in the model whose activations these are, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// The model, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelRef>,
    /// The text, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<CorpusRef>,
    /// Activations seen in training, repetitions counted.
    pub trained_tokens: u64,
    /// Of the training run.
    pub seed: u64,
    /// Quality on activations that training did not see: of `x x^T` for `x` of length 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
}

impl BilinearCard {
    /// The layout that this build writes and reads.
    pub const VERSION: u32 = 1;

    /// Reads only the card of a directory.
    ///
    /// # Errors
    /// [`Error::BadFile`] when it is not there, of another version, or says what cannot be.
    pub fn load(dir: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Layout {
            version: u32,
        }
        let path = dir.join(CARD);
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let bad = |problem: String| Error::bad_file(&path, problem);
        let not_a_card = |e: serde_json::Error| bad(format!("not a bilinear autoencoder's card: {e}"));
        let layout: Layout = serde_json::from_str(&text).map_err(not_a_card)?;
        if layout.version != Self::VERSION {
            return Err(bad(format!(
                "has version {}, this build reads version {}",
                layout.version,
                Self::VERSION
            )));
        }
        let card: Self = serde_json::from_str(&text).map_err(not_a_card)?;
        if card.d_in == 0 || card.d_sae == 0 || card.clusters == Some(0) {
            return Err(bad(format!(
                "claims d_in {}, d_sae {} and clusters {:?}",
                card.d_in, card.d_sae, card.clusters
            )));
        }
        match card.form.mixes() == card.clusters.is_some() {
            true => Ok(card),
            false => Err(bad("has clusters exactly where its form is mixed or combined".into())),
        }
    }
}

impl Bilinear {
    /// Loads the autoencoder in `dir`, with its card.
    ///
    /// # Errors
    /// [`Error::BadFile`] naming the file, and the tensor or key, when something is missing, extra, of another shape than
    /// the card says, or not finite.
    pub fn load(dir: &Path, device: &Device) -> Result<(Self, BilinearCard)> {
        let card = BilinearCard::load(dir)?;
        let path = dir.join(PARAMETERS);
        let file = SafeTensors::open(&path)?;
        let rows = [card.d_sae, card.d_in];
        let mix = card.clusters.map(|clusters| [clusters, card.d_sae]);
        let mut shapes = vec![("left", &rows[..]), ("right", &rows[..])];
        shapes.extend(mix.as_ref().map(|mix| ("mix", &mix[..])));
        // Every shape before the first value is read.
        check_shapes(&file, &path, CARD, &shapes)?;
        if let Some(extra) = file.names().find(|n| shapes.iter().all(|(name, _)| name != n)) {
            return Err(Error::bad_file(&path, format!("extra tensor {extra}")));
        }
        let read = |name: &str, shape: [usize; 2]| -> Result<Tensor<2>> {
            let values = read_finite(&file, &path, name)?;
            Ok(Tensor::from_data(TensorData::new(values, shape), device))
        };
        let bilinear = Self {
            left: read("left", rows)?,
            right: read("right", rows)?,
            mix: mix.map(|mix| read("mix", mix)).transpose()?,
            form: card.form,
        };
        Ok((bilinear, card))
    }

    /// Writes the autoencoder into `dir`, which must exist: parameters first, then the card.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the card speaks of another one; what the system says, naming the file.
    pub fn save(&self, dir: &Path, card: &BilinearCard) -> Result<()> {
        let clusters = self.mix.as_ref().map(|mix| mix.dims()[0]);
        if (card.d_in, card.d_sae, card.clusters, card.form) != (self.d_in(), self.d_sae(), clusters, self.form) {
            return Err(Error::Invalid(
                "the card speaks of another bilinear autoencoder than is saved".into(),
            ));
        }
        let path = dir.join(CARD);
        if path.exists() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
            atomic::sync_directory(dir)?;
        }
        let mut entries = vec![
            Entry::new("left", Values::Matrix(&self.left)),
            Entry::new("right", Values::Matrix(&self.right)),
        ];
        entries.extend(self.mix.as_ref().map(|mix| Entry::new("mix", Values::Matrix(mix))));
        tensor_file::write(&dir.join(PARAMETERS), &entries)?;
        let json = serde_json::to_vec_pretty(card)
            .map_err(|e| Error::Invalid(format!("the autoencoder's card does not serialise: {e}")))?;
        Ok(atomic::write(&path, &json)?)
    }
}
