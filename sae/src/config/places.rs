//! Which hooks a dictionary reads and which it writes: `data.hook`, `data.hooks`, `data.target`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{DataConfig, RunConfig};
use crate::error::{Error, Result};

/// A list in a file; of one name, the name alone.
pub(super) mod one_or_more {
    use super::*;

    #[derive(Deserialize, Serialize)]
    #[serde(untagged, expecting = "expected the name of a hook, or a list of names")]
    enum Names {
        One(String),
        More(Vec<String>),
    }

    pub fn serialize<S: Serializer>(names: &Option<Vec<String>>, to: S) -> std::result::Result<S::Ok, S::Error> {
        let names = names.as_ref().map(|names| match &names[..] {
            [one] => Names::One(one.clone()),
            more => Names::More(more.to_vec()),
        });
        names.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Vec<String>>, D::Error> {
        Ok(Option::<Names>::deserialize(from)?.map(|names| match names {
            Names::One(one) => vec![one],
            Names::More(more) => more,
        }))
    }
}

impl DataConfig {
    /// The hooks that are read, as far as they are named.
    pub fn reads(&self) -> Vec<String> {
        match &self.hooks {
            Some(hooks) => hooks.clone(),
            None => self.hook.iter().cloned().collect(),
        }
    }

    /// Whether something else is written than what is read.
    pub fn has_target(&self) -> bool {
        self.target.is_some() || self.target_acts.is_some()
    }

    /// Refuses hooks that contradict each other.
    pub(super) fn validate_hooks(&self) -> Result<()> {
        if self.hook.is_some() && self.hooks.is_some() {
            return Err(Error::config(
                "data.hooks",
                "is given beside data.hook: give one hook, or the list of all that are read",
            ));
        }
        for (key, names) in [("data.hooks", &self.hooks), ("data.target", &self.target)] {
            let Some(names) = names else { continue };
            if names.is_empty() {
                return Err(Error::config(key, "names no hook, expected at least one"));
            }
            if let Some(twice) = (1..names.len()).find(|&i| names[..i].contains(&names[i])) {
                return Err(Error::config(key, format!("names {} twice", names[twice])));
            }
        }
        if self.target_acts.is_some() && self.acts.is_none() {
            return Err(Error::config(
                "data.target_acts",
                "is given without data.acts: it holds what is written, of the tokens whose activations in data.acts are read",
            ));
        }
        if self.target_acts.is_none() && self.target.as_ref().is_some_and(|target| *target == self.reads()) {
            return Err(Error::config(
                "data.target",
                "names what is read (data.hook or data.hooks): leave it out for an autoencoder or a crosscoder, which \
                 write what they read",
            ));
        }
        Ok(())
    }
}

impl RunConfig {
    /// Refuses a skip connection where nothing is skipped, and what goes only with writing what is read.
    pub(super) fn validate_shape(&self) -> Result<()> {
        if self.sae.skip && !self.data.has_target() {
            return Err(Error::config(
                "sae.skip",
                "is true, but there is no data.target: a skip connection leads from what is read to another hook that is \
                 written; an autoencoder would copy its input over it",
            ));
        }
        if !self.data.has_target() {
            return Ok(());
        }
        if !self.encoder().is_linear() {
            return Err(Error::config(
                "sae.encoder",
                format!(
                    "is {}, but there is a data.target: steps look at what the code leaves of the activation that is read",
                    self.encoder().name()
                ),
            ));
        }
        if self.objective.masked.is_some() {
            return Err(Error::config(
                "objective.masked",
                "is given, but there is a data.target: what is hidden of the activation that is read is to be written",
            ));
        }
        match self.is_tied() {
            false => Ok(()),
            true => Err(Error::config(
                "sae.tied",
                "is true, but there is a data.target: an encoder is the decoder's transpose only where what is written is \
                 what is read",
            )),
        }
    }
}
