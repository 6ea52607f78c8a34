//! `[data]`: which activations. They lie somewhere (`acts`), or a model computes them from a text (`model`, `text`) while
//! it is trained on them; the keys of one way beside those of the other are a mistake.

use std::path::PathBuf;

use activations::ActDtype;
use activations::corpus::{Format, InvalidUtf8, Layout, Reading};
use activations::harvest::HarvestOptions;
use activations::hub::ModelDir;
use activations::product::Precision;
use serde::{Deserialize, Serialize};

use super::RunConfig;
use super::places::one_or_more;
use crate::dictionary::MOST_WHITENED;
use crate::error::{Error, Result};

/// `[data]`: which activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A store's directory, or other programs' activations: `.npy`, `.safetensors`, Parquet, a Hugging Face dataset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acts: Option<PathBuf>,
    /// Instead of `acts`, a model that reads `text`: a directory, or a hub id `org/name[@revision]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Text files, directories of them, patterns such as `books/*.txt`, URLs of object stores or of the hub's data sets, or `-`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Vec<PathBuf>>,
    /// The hook to train on, or the tensor or column; needed when there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Instead of `hook`, several that are read side by side: a crosscoder, which writes them all, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Vec<String>>,
    /// The hook that is written, or several, where it is not what is read: a transcoder.
    #[serde(with = "one_or_more", skip_serializing_if = "Option::is_none")]
    pub target: Option<Vec<String>>,
    /// Where `target` lies, if it is not in `acts`: another store or file, of the same tokens in the same order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_acts: Option<PathBuf>,
    /// Number format of a column of bytes whose file does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acts_dtype: Option<ActDtype>,
    /// The most tokens of the text, special tokens included, that are read; those after are as if they were not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Tokens of a context. Default: the model's longest, at most 1,024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// What the text's files are. Default: what their names say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The field or column that is the text. Default: `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// How documents become contexts. Default: packed, and split for encoders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<Layout>,
    /// Whether bad records of the text are left out. Default: they are an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_bad: Option<bool>,
    /// A line that separates documents within a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// What to do about bytes of the text that are not UTF-8. Default: refuse them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid_utf8: Option<InvalidUtf8>,
    /// Whether BOS and EOS are trained on, too. Default: they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_special: Option<bool>,
    /// What the model multiplies: f32 or bf16. Default: f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Of the order of the text's documents. Default: `train.seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_seed: Option<u64>,
    /// Of the order of rows. Default: `train.seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Rows that training never sees: the last ones of `acts`, the first ones of a text in its seeded order. Default: a
    /// tenth, at most 16,384.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_rows: Option<u64>,
    /// What the trainer does to activations before it learns from them; what is saved takes raw ones all the same.
    pub normalize: Normalization,
    /// Memory of the pool that mixes rows, in MiB. More mixes better.
    pub mix_memory_mib: u64,
}

/// What a trainer does to activations, by what a first sample says of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// One factor a place, so that `E|x|^2` is its width.
    #[default]
    MeanNorm,
    /// Nothing.
    None,
    /// Each activation is divided by its norm and multiplied by `sqrt(d_in)`: [`Sae::per_token`](crate::Sae).
    PerToken,
    /// A symmetric matrix that makes all directions equally large: [`Whitening`](crate::dictionary::Whitening).
    Whitening,
}

impl Normalization {
    /// As it is written.
    pub fn key(self) -> &'static str {
        match self {
            Self::MeanNorm => "mean_norm",
            Self::None => "none",
            Self::PerToken => "per_token",
            Self::Whitening => "whitening",
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            acts: None,
            model: None,
            text: None,
            hook: None,
            hooks: None,
            target: None,
            target_acts: None,
            acts_dtype: None,
            tokens: None,
            context: None,
            format: None,
            field: None,
            documents: None,
            skip_bad: None,
            separator: None,
            invalid_utf8: None,
            keep_special: None,
            precision: None,
            text_seed: None,
            seed: None,
            held_out_rows: None,
            normalize: Normalization::default(),
            mix_memory_mib: 1024,
        }
    }
}

impl DataConfig {
    /// Checks every value that can be checked without the data.
    pub(super) fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("data.mix_memory_mib", Some(self.mix_memory_mib)),
            ("data.held_out_rows", self.held_out_rows),
            ("data.tokens", self.tokens),
            ("data.context", self.context.map(|n| n as u64)),
        ];
        for (key, value) in at_least_one {
            if value == Some(0) {
                return Err(Error::config(key, "is 0, expected at least 1"));
            }
        }
        self.validate_hooks()?;
        self.validate_source()
    }

    /// Refuses keys of both ways, and half of one.
    fn validate_source(&self) -> Result<()> {
        let of_text = self.keys_of_text();
        if self.acts.is_some() {
            return match of_text.first() {
                None => Ok(()),
                Some(key) => Err(Error::config(
                    *key,
                    "is given beside data.acts: train on activations that are there (data.acts), or on those of a model \
                     over a text (data.model and data.text)",
                )),
            };
        }
        match (&self.model, &self.text) {
            (None, None) => match of_text.first() {
                None => Ok(()),
                Some(key) => Err(Error::config(*key, "is about a text, but there is no data.text")),
            },
            (None, Some(_)) => Err(Error::config(
                "data.model",
                "is missing: data.text needs a model that reads it, a directory or a hub id",
            )),
            (Some(_), None) => Err(Error::config(
                "data.text",
                "is missing: data.model needs a text to read",
            )),
            (Some(_), Some(text)) if text.is_empty() => Err(Error::config("data.text", "names no text")),
            (Some(_), Some(_)) if self.acts_dtype.is_some() => Err(Error::config(
                "data.acts_dtype",
                "is given beside data.model: it is about files of data.acts",
            )),
            (Some(_), Some(_)) => Ok(()),
        }
    }

    /// The keys about model and text that are given.
    fn keys_of_text(&self) -> Vec<&'static str> {
        let keys = [
            ("data.model", self.model.is_some()),
            ("data.text", self.text.is_some()),
            ("data.tokens", self.tokens.is_some()),
            ("data.context", self.context.is_some()),
            ("data.format", self.format.is_some()),
            ("data.field", self.field.is_some()),
            ("data.documents", self.documents.is_some()),
            ("data.skip_bad", self.skip_bad.is_some()),
            ("data.separator", self.separator.is_some()),
            ("data.invalid_utf8", self.invalid_utf8.is_some()),
            ("data.keep_special", self.keep_special.is_some()),
            ("data.precision", self.precision.is_some()),
            ("data.text_seed", self.text_seed.is_some()),
        ];
        keys.into_iter()
            .filter(|&(_, given)| given)
            .map(|(key, _)| key)
            .collect()
    }
}

impl RunConfig {
    /// Refuses a normalisation beside what it does not go with.
    pub(super) fn validate_normalization(&self) -> Result<()> {
        let normalization = self.data.normalize;
        let refuse = |key: &str, problem: &str| {
            let problem = format!("is {} beside {key}: {problem}", normalization.key());
            Err(Error::config("data.normalize", problem))
        };
        if normalization != Normalization::MeanNorm && self.is_bilinear() {
            return refuse(
                "sae.method = bilinear",
                "a bilinear autoencoder divides each activation by its own length; leave data.normalize out",
            );
        }
        if !matches!(normalization, Normalization::Whitening | Normalization::PerToken) {
            return Ok(());
        }
        for (key, given) in [
            ("data.hooks", self.data.hooks.is_some()),
            ("data.target", self.data.target.is_some()),
            ("data.target_acts", self.data.target_acts.is_some()),
        ] {
            if given {
                return refuse(key, "it is for one place that is read and written; use mean_norm");
            }
        }
        if normalization == Normalization::PerToken {
            return Ok(());
        }
        if self.sae.init.is_some() {
            return refuse(
                "sae.init",
                "a dictionary is gone on from in units in which its decoder rows have length 1, which white ones are not; use \
                 mean_norm",
            );
        }
        if self.encoder().is_pursuit() {
            return refuse(
                "sae.encoder",
                "a pursuit needs decoder rows of length 1, and those of a dictionary that was trained on white activations \
                 are not in the saved one; use mean_norm, or a linear or unrolled encoder",
            );
        }
        Ok(())
    }

    /// Refuses to whiten activations so wide that it would take hours.
    pub(crate) fn check_width(&self, d_in: usize) -> Result<()> {
        match self.data.normalize == Normalization::Whitening && d_in > MOST_WHITENED {
            true => Err(Error::config(
                "data.normalize",
                format!(
                    "is whitening, but activations are {d_in} wide: the eigenvectors of their covariance take time with the \
                     cube of that, and at most {MOST_WHITENED} is done; use mean_norm"
                ),
            )),
            false => Ok(()),
        }
    }

    /// The text as `model` reads it, its documents in a seeded order, with the values at `hooks`.
    pub(crate) fn harvest_options(&self, model: &ModelDir, hooks: Vec<String>) -> Result<HarvestOptions> {
        let data = &self.data;
        let default = Reading::default();
        Ok(HarvestOptions {
            model_name: Some(model.name.clone()),
            tokens: data.tokens,
            context: data.context,
            reading: Reading {
                format: data.format,
                field: data.field.clone().unwrap_or(default.field),
                skip_bad: data.skip_bad.unwrap_or(default.skip_bad),
                invalid_utf8: data.invalid_utf8.unwrap_or(default.invalid_utf8),
                separator: data.separator.clone(),
                seed: Some(data.text_seed.unwrap_or(self.train.seed)),
            },
            layout: data.documents,
            keep_special: data.keep_special.unwrap_or(false),
            device: self.train.device.parse()?,
            precision: data.precision.unwrap_or_default(),
            hooks,
            ..HarvestOptions::new(&model.path, data.text.clone().unwrap_or_default(), "")
        })
    }
}
