//! Which latents are dead, counted in tokens: steps mean nothing across batch sizes.

use crate::code::HostCode;

/// For each latent, tokens since it last fired.
#[derive(Clone, Debug, PartialEq)]
pub struct Silence {
    /// `[d_sae]`
    tokens: Vec<u64>,
    /// From how many tokens on a latent is dead.
    dead_after_tokens: u64,
}

impl Silence {
    /// Nobody has been silent yet.
    pub fn new(d_sae: usize, dead_after_tokens: u64) -> Self {
        Self::from_tokens(vec![0; d_sae], dead_after_tokens)
    }

    /// As [`Silence::tokens`] gave it.
    pub fn from_tokens(tokens: Vec<u64>, dead_after_tokens: u64) -> Self {
        Self {
            tokens,
            dead_after_tokens,
        }
    }

    /// Tokens since each latent last fired, `[d_sae]`.
    pub fn tokens(&self) -> &[u64] {
        &self.tokens
    }

    /// Adds the code of a batch. Whoever fires in it starts again at 0, wherever in the batch it was.
    pub fn add(&mut self, code: &HostCode) {
        let batch = code.batch() as u64;
        self.tokens.iter_mut().for_each(|n| *n += batch);
        for (&i, &v) in code.indices.iter().zip(&code.values) {
            if v != 0.0 {
                self.tokens[i as usize] = 0;
            }
        }
    }

    /// Counts the first `share` of the latents as dead.
    pub fn silence(&mut self, share: f64) {
        let n = (self.tokens.len() as f64 * share) as usize;
        let dead = self.dead_after_tokens;
        self.tokens.iter_mut().take(n).for_each(|tokens| *tokens = dead);
    }

    /// Counts `latents` from 0 again, whether they fired or not.
    pub fn begin_anew(&mut self, latents: &[i32]) {
        latents.iter().for_each(|&i| self.tokens[i as usize] = 0);
    }

    /// The dead latents, ascending.
    pub fn dead(&self) -> Vec<i32> {
        let latents = self.tokens.iter().zip(0..);
        latents
            .filter(|(n, _)| **n >= self.dead_after_tokens)
            .map(|(_, i)| i)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_in_tokens_and_ends_with_any_value_but_zero() {
        let code = |indices: [i32; 4], values: [f32; 4]| HostCode::equal(2, indices.to_vec(), values.to_vec());
        let mut silence = Silence::new(4, 4);
        silence.add(&code([0, 1, 0, 2], [1.0, -1.0, 2.0, 0.0]));
        assert_eq!(silence.tokens(), [0, 0, 2, 2]);
        assert!(silence.dead().is_empty());
        silence.add(&code([0, 3, 0, 2], [1.0, 0.0, 2.0, 0.0]));
        assert_eq!(silence.tokens(), [0, 2, 4, 4]);
        assert_eq!(silence.dead(), [2, 3]);
        silence.add(&code([0, 3, 0, 2], [1.0, 0.5, 2.0, 0.0]));
        assert_eq!(silence.dead(), [1, 2]);
        silence.silence(0.5);
        assert_eq!(silence.dead(), [0, 1, 2]);
    }
}
