//! The keys of what changes along a run: budgets that shrink, and latents' budgets after Zipf's law.

use super::{Aux, RunConfig};
use crate::error::{Error, Result};
use crate::sparsifier::Allocation;
use crate::train::Zipf;

/// Share of the run over which a budget comes down.
const K_SHARE: f64 = 0.1;
/// Share of what the law gives a latent below which it is used too little.
const AUX_ZIPF_SHARE: f64 = 0.5;
/// Share of the run before latents have budgets of their own.
const MUTUAL_SHARE: f64 = 0.1;

impl RunConfig {
    /// The law of how often latents fire by their rank.
    pub(crate) fn zipf(&self) -> Zipf {
        Zipf {
            exponent: self.sae.zipf_exponent.unwrap_or(1.0),
            // With as many ranks as k and more to go by, hardly anybody would fire for every token.
            offset: self
                .sae
                .zipf_offset
                .unwrap_or(self.sparsifier().k().unwrap_or(1) as f64),
        }
    }

    /// Below which share of its due a latent joins the auxiliary loss, if that is for more than the dead ones.
    pub(crate) fn under_used_share(&self) -> Option<f64> {
        let train = &self.train;
        let zipf = train.aux == Some(Aux::AuxZipf) && train.aux_weight > 0.0;
        zipf.then(|| train.aux_zipf_share.unwrap_or(AUX_ZIPF_SHARE))
    }

    fn has_latents_budgets(&self) -> bool {
        matches!(self.sparsifier().allocation, Allocation::PerLatent { .. })
    }

    /// Fills in what is left open of it.
    pub(super) fn fill_course(&mut self) {
        if self.sae.k_start.is_some() {
            self.sae.k_share.get_or_insert(K_SHARE);
        }
        if self.has_latents_budgets() || self.under_used_share().is_some() {
            let law = self.zipf();
            self.sae.zipf_exponent.get_or_insert(law.exponent);
            self.sae.zipf_offset.get_or_insert(law.offset);
        }
        if self.has_latents_budgets() {
            self.sae.mutual_share.get_or_insert(MUTUAL_SHARE);
        }
        self.train.aux_zipf_share = self.under_used_share();
    }

    /// Refuses what contradicts the method, and budgets of less than a token.
    pub(super) fn validate_course(&self, d_sae: Option<usize>) -> Result<()> {
        let sae = &self.sae;
        let method = self.method().key();
        match (sae.k_start, self.sparsifier().k()) {
            (Some(_), None) => {
                return Err(Error::config(
                    "sae.k_start",
                    format!("is given, but sae.method is {method}, which has no k"),
                ));
            }
            (Some(start), Some(_)) if start == 0 || start > d_sae.unwrap_or(usize::MAX) => {
                return Err(Error::config(
                    "sae.k_start",
                    format!("is {start}, expected at least 1 and at most sae.d_sae"),
                ));
            }
            (None, _) if sae.k_share.is_some() => {
                return Err(Error::config(
                    "sae.k_share",
                    "is given without sae.k_start: it is the share of the run over which k comes down from there",
                ));
            }
            _ => {}
        }
        for (key, value, most) in [
            ("sae.k_share", sae.k_share, 1.0),
            ("sae.mutual_share", sae.mutual_share, 1.0),
            ("sae.zipf_exponent", sae.zipf_exponent, f64::MAX),
            ("sae.zipf_offset", sae.zipf_offset, f64::MAX),
            ("train.aux_zipf_share", self.train.aux_zipf_share, f64::MAX),
        ] {
            let Some(value) = value else { continue };
            if !(0.0..=most).contains(&value) {
                let expected = if most == 1.0 {
                    "a share of the run between 0 and 1"
                } else {
                    "0 or more"
                };
                return Err(Error::config(key, format!("is {value}, expected {expected}")));
            }
        }
        self.validate_aux()?;
        self.validate_budgets(d_sae)
    }

    fn validate_aux(&self) -> Result<()> {
        let train = &self.train;
        let zipf = train.aux == Some(Aux::AuxZipf);
        match (zipf, train.aux_zipf_share) {
            (false, Some(_)) => Err(Error::config(
                "train.aux_zipf_share",
                "is given, but train.aux is aux_k: it is for aux_zipf",
            )),
            (true, _) if train.aux_weight == 0.0 => Err(Error::config(
                "train.aux",
                "is aux_zipf, but train.aux_weight is 0: there is no auxiliary loss",
            )),
            _ => Ok(()),
        }
    }

    fn validate_budgets(&self, d_sae: Option<usize>) -> Result<()> {
        let sae = &self.sae;
        if !self.has_latents_budgets() {
            let law = self.under_used_share().is_none();
            let given = [
                (
                    "sae.zipf_exponent",
                    law && sae.zipf_exponent.is_some(),
                    "feature_choice and train.aux = aux_zipf",
                ),
                (
                    "sae.zipf_offset",
                    law && sae.zipf_offset.is_some(),
                    "feature_choice and train.aux = aux_zipf",
                ),
                ("sae.mutual_share", sae.mutual_share.is_some(), "feature_choice"),
            ];
            return match given.iter().find(|g| g.1) {
                Some((key, _, whom)) => Err(Error::config(
                    *key,
                    format!("is given, but sae.method is {}: it is for {whom}", self.method().key()),
                )),
                None => Ok(()),
            };
        }
        let (Some(d_sae), Some(batch), Some(k)) = (d_sae, self.train.batch, self.sparsifier().k()) else {
            return Ok(());
        };
        let k = k.min(sae.k_start.unwrap_or(k));
        let least = self.zipf().least(d_sae, k, batch);
        if k <= d_sae && least < 1.0 {
            return Err(Error::config(
                "train.batch",
                format!(
                    "is {batch}: of k {k} a token, Zipf's law leaves the rarest of the {d_sae} latents of sae.d_sae \
                     {least:.2} tokens of a batch, and feature_choice needs at least one; take a larger train.batch or \
                     sae.k, a smaller sae.d_sae, or a smaller sae.zipf_exponent"
                ),
            ));
        }
        Ok(())
    }
}
