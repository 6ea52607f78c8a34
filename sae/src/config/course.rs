//! The keys of what changes along a run: budgets that shrink, and latents' budgets after Zipf's law.

use super::RunConfig;
use crate::error::{Error, Result};
use crate::sparsifier::Allocation;
use crate::train::Zipf;

/// Share of the run over which a budget comes down.
const K_SHARE: f64 = 0.1;
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

    /// Whether encoder and decoder are one matrix.
    pub(crate) fn is_tied(&self) -> bool {
        self.sae.tied == Some(true)
    }

    fn has_latents_budgets(&self) -> bool {
        matches!(self.sparsifier().allocation, Allocation::PerLatent { .. })
    }

    /// Fills in what is left open of it.
    pub(super) fn fill_course(&mut self) {
        if self.sae.k_start.is_some() {
            self.sae.k_share.get_or_insert(K_SHARE);
        }
        if self.has_latents_budgets() {
            let law = self.zipf();
            self.sae.zipf_exponent.get_or_insert(law.exponent);
            self.sae.zipf_offset.get_or_insert(law.offset);
            self.sae.mutual_share.get_or_insert(MUTUAL_SHARE);
        }
    }

    /// Refuses what contradicts the method, and budgets of less than a token.
    pub(super) fn validate_course(&self, d_sae: Option<usize>) -> Result<()> {
        let sae = &self.sae;
        let method = sae.method.key();
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
        self.validate_budgets(d_sae)
    }

    fn validate_budgets(&self, d_sae: Option<usize>) -> Result<()> {
        let sae = &self.sae;
        if !self.has_latents_budgets() {
            let given = [
                ("sae.zipf_exponent", sae.zipf_exponent.is_some()),
                ("sae.zipf_offset", sae.zipf_offset.is_some()),
                ("sae.mutual_share", sae.mutual_share.is_some()),
            ];
            return match given.iter().find(|g| g.1) {
                Some((key, _)) => Err(Error::config(
                    *key,
                    format!(
                        "is given, but sae.method is {}: it is for feature_choice",
                        sae.method.key()
                    ),
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
