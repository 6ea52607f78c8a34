//! What a run takes over from the dictionary that it goes on from: `sae.init`.
//!
//! The one decision: **what is left open is the dictionary's to say, and what is given has to go with it.** So a
//! configuration with `sae.init` is not whole before the dictionary's card was read, and what depends on the method is not
//! checked before that; once it is whole, it has the dictionary's digest, and is checked as any other.

use super::{EncoderName, Method, Normalization, RunConfig};
use crate::dictionary::{DictionaryCard, InferenceForm};
use crate::encoder::{Encoder, Weights};
use crate::error::{Error, Result};
use crate::sparsifier::{Allocation, Score, Shrink, Sparsifier};

impl RunConfig {
    /// Whether a dictionary has to be looked at before this configuration is whole.
    pub(super) fn waits_for_init(&self) -> bool {
        self.sae.init.is_some() && self.sae.init_digest.is_none()
    }

    pub(super) fn validate_init(&self) -> Result<()> {
        match (&self.sae.init, &self.sae.init_digest) {
            (None, Some(_)) => Err(Error::config(
                "sae.init_digest",
                "is given without sae.init: it is the digest of the dictionary that a run goes on from",
            )),
            _ => Ok(()),
        }
    }

    /// The dictionary that is gone on from, for errors.
    fn init_name(&self) -> String {
        let dir = self.sae.init.as_deref().unwrap_or(std::path::Path::new(""));
        format!("the dictionary in {} (sae.init)", dir.display())
    }

    /// Fills in what is left open from the `card` of the dictionary in `sae.init`, whose digest this is; `tied`: whether its
    /// matrices are one.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key that contradicts the dictionary, or that it leaves open.
    pub(crate) fn inherit(&mut self, card: &DictionaryCard, digest: &str, tied: bool) -> Result<()> {
        let name = self.init_name();
        if let Some(given) = self.sae.init_digest.as_deref().filter(|given| *given != digest) {
            return Err(Error::config(
                "sae.init_digest",
                format!(
                    "is {given}, but {name} has {digest}: it is another one than the run began from; leave sae.init_digest \
                     out to begin from this one"
                ),
            ));
        }
        if self.is_bilinear() {
            return Err(Error::config(
                "sae.init",
                "is given, but sae.method is bilinear: a bilinear autoencoder always begins with random matrices",
            ));
        }
        if self.data.has_target() == card.writes.is_empty() {
            let problem = match card.writes.is_empty() {
                true => format!("is given, but {name} writes what it reads"),
                false => format!(
                    "is missing: {name} writes something else than it reads, which has to be named (data.target or \
                     data.target_acts)"
                ),
            };
            return Err(Error::config("data.target", problem));
        }
        let per_token = self.data.normalize == Normalization::PerToken;
        if per_token != card.per_token {
            let (does, instead) = match card.per_token {
                true => ("divides each activation by its norm", "per_token"),
                false => ("does not divide activations by their norms", "mean_norm"),
            };
            return Err(Error::config(
                "data.normalize",
                format!(
                    "is {}, but {name} {does}: give data.normalize = {instead}",
                    self.data.normalize.key()
                ),
            ));
        }
        self.sae.init_digest = Some(digest.to_owned());
        self.inherit_size(card)?;
        self.inherit_method(card)?;
        self.inherit_encoder(card.trained_as().encoder, tied)?;
        self.sae.skip |= card.skip;
        self.validate()
    }

    fn inherit_size(&mut self, card: &DictionaryCard) -> Result<()> {
        let name = self.init_name();
        if self.sae.expansion.is_none() {
            self.sae.d_sae.get_or_insert(card.d_sae);
        }
        match self.sae.d_sae {
            Some(d_sae) => fits(d_sae, "sae.d_sae", card.d_sae, &name),
            None => Ok(()),
        }
    }

    /// Refuses fewer latents than the dictionary of so many has, however their number was given.
    pub(crate) fn check_size(&self, d_sae: usize, of_init: usize) -> Result<()> {
        fits(d_sae, "sae.expansion", of_init, &self.init_name())
    }

    fn inherit_method(&mut self, card: &DictionaryCard) -> Result<()> {
        let (was, name) = (card.trained_as(), self.init_name());
        let (method_given, k_given) = (self.sae.method.is_some(), self.sae.k.is_some());
        let Some(method) = self.sae.method.or(Method::of(was)) else {
            return Err(Error::config(
                "sae.method",
                format!(
                    "is missing: {name} is saved as {}, which no method trains; go on with a budget, such as --set \
                     sae.method=ksparse --set sae.k=32, which sets its thresholds aside",
                    was.name()
                ),
            ));
        };
        self.sae.method = Some(method);
        if method.is_thresholding() {
            self.inherit_shrinking(was)?;
        }
        if self.sparsifier().k().is_some() && self.sae.k.is_none() {
            self.sae.k = was.k();
        }
        let now = self.sparsifier();
        if now.score != was.score {
            return Err(Error::config(
                "sae.method",
                format!(
                    "makes it {}, whose latents have {}, but {name} is {}: they have {}",
                    now.name(),
                    poles(now.score),
                    was.name(),
                    poles(was.score)
                ),
            ));
        }
        if let (Some(_), false, false) = (card.trained_as, method_given, k_given) {
            self.sae.inference_k = self.sae.inference_k.or(card.sparsifier.k());
        }
        if let Some(calibration) = card.calibration.filter(|_| !method_given) {
            let form = match calibration.threshold {
                Some(_) => InferenceForm::Threshold,
                None => InferenceForm::ThresholdPerLatent,
            };
            let asked = *self.sae.inference.get_or_insert(form);
            if !k_given && asked != InferenceForm::AsTrained {
                self.sae.inference_l0.get_or_insert(calibration.target_l0);
            }
        }
        Ok(())
    }

    /// Of thresholds that shrink: the signs, CEL0's step, and a strength or a budget, one of which there has to be.
    fn inherit_shrinking(&mut self, was: Sparsifier) -> Result<()> {
        let name = self.init_name();
        let sae = &mut self.sae;
        sae.signed.get_or_insert(was.score == Score::Magnitude);
        if let (Some(Method::Cel0), Shrink::Cel0 { eta }) = (sae.method, was.shrink) {
            sae.eta.get_or_insert(eta);
        }
        if sae.lambda.is_none() && sae.k.is_none() && was.allocation == Allocation::Threshold {
            return Err(Error::config(
                "sae.lambda",
                format!(
                    "is missing: {name} has thresholds of a strength that it does not say; give that of this run, or the \
                     budget that it is to have instead, sae.k"
                ),
            ));
        }
        Ok(())
    }

    fn inherit_encoder(&mut self, was: Encoder, tied: bool) -> Result<()> {
        let name = self.init_name();
        let sae = &mut self.sae;
        if sae.encoder.is_none() && !was.is_linear() {
            sae.encoder = Some(EncoderName::of(was));
        }
        if let (Some(EncoderName::Unrolled), Encoder::Unrolled { steps, weights }) = (sae.encoder, was) {
            sae.encoder_steps.get_or_insert(steps);
            if weights != Weights::default() {
                sae.encoder_weights.get_or_insert(weights);
            }
        }
        let now = self.encoder();
        if was.own_steps() > 0 && now != was {
            return Err(Error::config(
                "sae.encoder",
                format!(
                    "(with sae.encoder_steps and sae.encoder_weights) makes it {}, but {name} is {}, whose steps have matrices \
                     that would be lost",
                    now.name(),
                    was.name()
                ),
            ));
        }
        if tied && now.own_steps() == 0 {
            self.sae.tied.get_or_insert(true);
        } else if self.is_tied() {
            let key = match self.encoder().is_pursuit() {
                true => "sae.encoder",
                false => "sae.tied",
            };
            return Err(Error::config(
                key,
                format!("asks for one matrix, but {name} has an encoder that is not its decoder's transpose"),
            ));
        }
        Ok(())
    }
}

fn fits(d_sae: usize, key: &str, of_init: usize, name: &str) -> Result<()> {
    match d_sae < of_init {
        false => Ok(()),
        true => Err(Error::config(
            key,
            format!(
                "makes it {d_sae} latents, but {name} has {of_init}: a run goes on with all of them, and adds to them"
            ),
        )),
    }
}

/// What signs values of a score can have.
fn poles(score: Score) -> &'static str {
    match score {
        Score::Positive => "positive values",
        Score::Magnitude => "values of either sign, chosen by magnitude",
        Score::Value => "values of either sign, chosen by value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Calibration;

    fn card(sparsifier: Sparsifier) -> DictionaryCard {
        DictionaryCard {
            per_token: false,
            version: DictionaryCard::VERSION,
            d_in: 24,
            d_sae: 96,
            sparsifier,
            calibration: None,
            trained_as: None,
            initialised_from: None,
            hook: None,
            reads: Vec::new(),
            writes: Vec::new(),
            apply_b_dec_to_input: true,
            skip: false,
            model: None,
            corpus: None,
            trained_tokens: 1,
            seed: 0,
            held_out: None,
        }
    }

    fn thresholds(trained_as: Sparsifier) -> DictionaryCard {
        DictionaryCard {
            calibration: Some(Calibration {
                trained_as,
                threshold: Some(1.0),
                target_l0: 2.5,
                l0: 2.5,
                calibration_rows: 10,
                rows: 10,
            }),
            ..card(Sparsifier {
                allocation: Allocation::Threshold,
                ..trained_as
            })
        }
    }

    fn inherited(pairs: &[(&str, &str)], card: &DictionaryCard, tied: bool) -> Result<RunConfig> {
        let own = [("data.acts", "acts"), ("sae.init", "old")];
        let sets = own.iter().chain(pairs).map(|&(k, v)| (k.to_owned(), v.to_owned()));
        let mut config = RunConfig::from_toml("", &sets.collect::<Vec<_>>())?;
        config.inherit(card, "abc", tied)?;
        config.fill_method();
        config.validate()?;
        // What was filled in is understood again, and is whole.
        let again = RunConfig::from_toml(&config.to_toml()?, &[])?;
        assert_eq!(again, config);
        let mut twice = config.clone();
        twice.inherit(card, "abc", tied)?;
        assert_eq!(twice, config);
        Ok(config)
    }

    #[test]
    fn what_is_left_open_follows_from_the_dictionary() {
        let config = inherited(&[], &card(Sparsifier::abs_top_k(7)), true).unwrap();
        assert_eq!(config.sparsifier(), Sparsifier::abs_top_k(7));
        assert_eq!((config.sae.d_sae, config.sae.tied), (Some(96), Some(true)));
        let batch = thresholds(Sparsifier::batch_top_k(3));
        let config = inherited(&[], &batch, false).unwrap();
        assert_eq!(config.sparsifier(), Sparsifier::batch_top_k(3));
        assert_eq!(config.inference(), (InferenceForm::Threshold, 2.5));
        let config = inherited(&[("sae.k", "5")], &batch, false).unwrap();
        assert_eq!(config.inference(), (InferenceForm::Threshold, 5.0));
        let half = Sparsifier::batch_top_k(3).shrunk(Shrink::Half);
        let config = inherited(&[], &thresholds(half), false).unwrap();
        assert_eq!(config.sparsifier(), half);
        let unrolled = Sparsifier::top_k(4).encoded_by(Encoder::unrolled(5));
        let config = inherited(&[], &card(unrolled), false).unwrap();
        assert_eq!(config.sparsifier(), unrolled);
        let learned = Encoder::Unrolled {
            steps: 5,
            weights: Weights::Learned,
        };
        let config = inherited(&[("sae.encoder_weights", "learned")], &card(unrolled), false).unwrap();
        assert_eq!(config.sparsifier().encoder, learned);
        let config = inherited(&[], &card(unrolled.encoded_by(learned)), false).unwrap();
        assert_eq!(config.sparsifier().encoder, learned);
        let more = DictionaryCard {
            trained_as: Some(Sparsifier::top_k(4)),
            ..card(Sparsifier::top_k(12))
        };
        let config = inherited(&[], &more, false).unwrap();
        assert_eq!((config.sae.k, config.sae.inference_k), (Some(4), Some(12)));
        let config = inherited(&[("sae.k", "5")], &more, false).unwrap();
        assert_eq!((config.sae.k, config.sae.inference_k), (Some(5), None));
        let jump = card(Sparsifier::new(Score::Positive, Allocation::Threshold));
        assert_eq!(inherited(&[], &jump, false).unwrap().method(), Method::JumpReLU);
        assert!(inherited(&[("sae.method", "gated")], &jump, false).is_ok());
        let config = inherited(&[("sae.method", "batch_topk"), ("sae.k", "4")], &jump, false).unwrap();
        assert_eq!(config.inference(), (InferenceForm::Threshold, 4.0));
        let wider = inherited(&[("sae.d_sae", "128")], &jump, false).unwrap();
        assert_eq!(wider.sae.d_sae, Some(128));
    }

    #[test]
    fn what_contradicts_the_dictionary_is_refused_with_both_names() {
        let top = card(Sparsifier::top_k(7));
        let signed = Sparsifier::new(Score::Magnitude, Allocation::Threshold);
        let value = Sparsifier::new(Score::Value, Allocation::Threshold);
        let learned = Sparsifier::top_k(7).encoded_by(Encoder::Unrolled {
            steps: 3,
            weights: Weights::Learned,
        });
        let pursuit = Sparsifier::top_k(7).encoded_by(Encoder::MatchingPursuit);
        type Case = (&'static [(&'static str, &'static str)], DictionaryCard, &'static str);
        let cases: &[Case] = &[
            (&[("sae.d_sae", "64")], top.clone(), "sae.d_sae"),
            (&[("sae.method", "abs_topk")], top.clone(), "sae.method"),
            (&[("sae.method", "ksparse")], top.clone(), "sae.method"),
            (&[("sae.method", "bilinear")], top.clone(), "sae.init"),
            (&[("sae.tied", "true")], top.clone(), "sae.tied"),
            (&[("sae.encoder", "matching_pursuit")], top.clone(), "sae.encoder"),
            (&[("sae.init_digest", "def")], top.clone(), "sae.init_digest"),
            (&[("data.target", "elsewhere")], top.clone(), "data.target"),
            (&[], card(signed), "sae.lambda"),
            (&[], card(signed.shrunk(Shrink::Soft)), "sae.lambda"),
            (&[], card(value), "sae.method"),
            (&[], card(pursuit), "sae.encoder"),
            (
                &[("sae.encoder_weights", "shared")],
                card(learned),
                "sae.encoder_weights",
            ),
            (&[("sae.encoder_steps", "2")], card(learned), "sae.encoder_steps"),
            (&[("sae.encoder", "linear")], card(learned), "sae.encoder"),
        ];
        for (pairs, card, key) in cases {
            let error = inherited(pairs, card, false).unwrap_err().to_string();
            assert!(
                error.contains(key) && error.contains("sae.init"),
                "{pairs:?} {}: {error}",
                card.sparsifier.name()
            );
        }
        let error = inherited(&[("sae.k", "97")], &top, false).unwrap_err().to_string();
        assert!(error.contains("sae.k") && error.contains("96"), "{error}");
        let alone = RunConfig::from_toml("[sae]\ninit_digest = \"abc\"", &[]).unwrap_err();
        assert!(alone.to_string().contains("sae.init"));
    }

    #[test]
    fn another_dictionary_by_flag_takes_the_digest_of_the_file_with_it() {
        let text = "[sae]\ninit = \"old\"\ninit_digest = \"abc\"";
        let kept = RunConfig::from_toml(text, &[]).unwrap();
        assert_eq!(kept.sae.init_digest.as_deref(), Some("abc"));
        let other = RunConfig::from_toml(text, &[("sae.init".into(), "new".into())]).unwrap();
        assert_eq!(other.sae.init_digest, None);
    }
}
