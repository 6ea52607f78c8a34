//! The statistics of every feature in one body: columns, because a table of 16,000 features is then a few arrays that
//! the page sorts and filters itself, and every token's text once.

use std::collections::HashMap;

use axum::body::Bytes;
use sae::index::FeatureIndex;
use serde::Serialize;

use crate::text::{Piece, single};

/// Top tokens a feature, at most.
pub const TOP_TOKENS: usize = 5;

/// One entry a feature in each column but `texts`.
#[derive(Serialize)]
struct Columns {
    /// Density is this over the manifest's `tokens`.
    n_active: Vec<u64>,
    max: Vec<f32>,
    min: Vec<f32>,
    mean_active: Vec<f32>,
    /// Positions in `texts`.
    top_tokens: Vec<Vec<u32>>,
    /// The tokens that `top_tokens` names.
    texts: Vec<Piece>,
}

/// Serialises the summaries of `index`. A value that is not finite, which only a damaged index holds, becomes `null`.
pub fn body(index: &FeatureIndex) -> Bytes {
    let summaries = index.summaries();
    let mut places = HashMap::new();
    let mut texts = Vec::new();
    let mut place = |token: u32| {
        *places.entry(token).or_insert_with(|| {
            texts.push(single(index.token_bytes(token)));
            texts.len() as u32 - 1
        })
    };
    let top_tokens = summaries
        .iter()
        .map(|s| s.top_tokens.iter().take(TOP_TOKENS).map(|t| place(*t)).collect())
        .collect();
    let columns = Columns {
        n_active: summaries.iter().map(|s| s.n_active).collect(),
        max: summaries.iter().map(|s| rounded(s.max)).collect(),
        min: summaries.iter().map(|s| rounded(s.min)).collect(),
        mean_active: summaries.iter().map(|s| rounded(s.mean_active)).collect(),
        top_tokens,
        texts,
    };
    serde_json::to_vec(&columns)
        .expect("columns of numbers and text serialise")
        .into()
}

/// Five significant digits: more than a table shows, and half as long. Exact values come with the feature.
fn rounded(value: f32) -> f32 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_five_digits_zero_and_sign() {
        assert_eq!(rounded(0.0), 0.0);
        assert_eq!(rounded(-12.345_678), -12.346);
        assert_eq!(rounded(3.999_99e-7), 4.0e-7);
        assert!(rounded(f32::NAN).is_nan());
    }
}
