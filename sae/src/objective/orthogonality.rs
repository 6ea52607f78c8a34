//! OrtSAE (arXiv 2509.22033): no decoder row may lie close to another, which keeps a latent from being part of several
//! others.
//!
//! The mean over latents `i` of the squared cosine between `d_i` and the nearest other row of its chunk. All pairs
//! would cost `d_sae^2 d_in`; chunks of at most `chunk` latents, **drawn anew each time**, cost `d_sae * chunk * d_in`
//! and still let any two meet. Who is nearest is found outside of the graph ([`nearest`]): only the cosines of the pairs are
//! differentiated, and the gradient reaches both rows of a pair. `every` n-th step with `n` times the weight
//! costs an n-th.
//!
//! The paper squares the largest *signed* cosine, so that antipodal rows escape. For codes with one pole that is right:
//! opposite directions are different features. Where values have signs they are the same feature twice, so there the
//! absolute cosine counts (`absolute` says otherwise).

use burn::tensor::{Int, Tensor, TensorData};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{About, Face, Forward, Moment, check_weight};
use crate::error::{Error, Result};
use crate::kernels::{cosines, nearest};

/// `[objective.orthogonality]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orthogonality {
    /// 0.25.
    pub weight: f64,
    /// Steps from one time to the next; the weight of each is so many times the weight. 1.
    pub every: u64,
    /// Most latents of a chunk. 8192.
    pub chunk: usize,
    /// Whether opposite directions count as close. Default: where values can be negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute: Option<bool>,
}

impl Default for Orthogonality {
    fn default() -> Self {
        Self {
            weight: 0.25,
            every: 1,
            chunk: 8192,
            absolute: None,
        }
    }
}

impl Orthogonality {
    pub(super) fn complete() -> Self {
        Self {
            absolute: Some(true),
            ..Self::default()
        }
    }

    /// The latents in chunks of almost equal size.
    fn chunks(&self, moment: Moment, d_sae: usize) -> Vec<Vec<i32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(moment.seed ^ 0x6f72_7468);
        rng.set_stream(moment.step);
        let mut latents: Vec<i32> = (0..d_sae as i32).collect();
        latents.shuffle(&mut rng);
        let n = d_sae.div_ceil(self.chunk);
        let ends = (0..=n).map(|c| d_sae * c / n).collect::<Vec<_>>();
        ends.windows(2).map(|e| latents[e[0]..e[1]].to_vec()).collect()
    }
}

impl Face for Orthogonality {
    fn weight(&self, _: Moment) -> f64 {
        self.weight * self.every as f64
    }

    fn value(&self, pass: &Forward) -> Option<Tensor<1>> {
        let [d_sae, _] = pass.w_dec.dims();
        if !pass.moment.step.is_multiple_of(self.every) || d_sae < 2 {
            return None;
        }
        let absolute = self.absolute.unwrap_or(pass.signed);
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for chunk in self.chunks(pass.moment, d_sae).into_iter().filter(|c| c.len() > 1) {
            let shape = [chunk.len()];
            let latents = Tensor::<1, Int>::from_data(TensorData::new(chunk, shape), &pass.w_dec.device());
            others.push(nearest(pass.w_dec.clone(), latents.clone(), absolute, pass.search));
            ours.push(latents);
        }
        let cosines = cosines(pass.w_dec.clone(), Tensor::cat(ours, 0), Tensor::cat(others, 0));
        Some((cosines.clone() * cosines).sum() / d_sae as f64)
    }

    fn validate(&self, key: &str, _: About) -> Result<()> {
        check_weight(key, self.weight, None)?;
        if self.every == 0 {
            return Err(Error::config(format!("{key}.every"), "is 0, expected at least 1"));
        }
        if self.chunk < 2 {
            return Err(Error::config(
                format!("{key}.chunk"),
                format!("is {}, expected at least 2: a pair", self.chunk),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
