//! Everything that a feature's page shows, in one body: token texts are resolved, and a context that several examples
//! share is sent once.

use std::collections::HashMap;
use std::ops::Range;

use sae::index::{Example, FeatureDetail, FeatureIndex, Histogram, StoredContext, Stratum, TokenLogit};
use serde::Serialize;

use crate::summaries::TOP_TOKENS;
use crate::text::{Piece, pieces, single};

/// Examples of a stratum, at most.
const EXAMPLES: usize = 200;
/// Tokens of a context, at most: a longer one is cut to a window around the example.
const WINDOW: usize = 512;

/// The body of `/api/indexes/{id}/features/{n}`.
#[derive(Serialize)]
pub struct Feature {
    feature: u32,
    alive: bool,
    n_active: u64,
    density: f64,
    max: f32,
    min: f32,
    mean_active: f32,
    top_tokens: Vec<Piece>,
    positive: Histogram,
    negative: Histogram,
    top_logits: Vec<Logit>,
    bottom_logits: Vec<Logit>,
    neighbours: Vec<Neighbour>,
    strata: Vec<StratumExamples>,
    texts: Vec<Text>,
}

#[derive(Serialize)]
struct Logit {
    token: u32,
    text: Piece,
    logit: f32,
}

#[derive(Serialize)]
struct Neighbour {
    feature: u32,
    cosine: f32,
    density: f64,
    top_tokens: Vec<Piece>,
}

#[derive(Serialize)]
struct StratumExamples {
    /// `top`, `bottom`, or `q0`, `q1`, ... with the lowest first.
    stratum: String,
    examples: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    /// Position in `texts`.
    text: usize,
    position: u32,
    value: f32,
    /// Where in the context the feature is active, and how much.
    positions: Vec<u32>,
    values: Vec<f32>,
}

/// A context, or a window of it.
#[derive(Serialize)]
struct Text {
    context: u64,
    document: u64,
    /// Tokens of the whole context.
    length: usize,
    /// Position of the first token below.
    start: usize,
    tokens: Vec<u32>,
    pieces: Vec<Piece>,
}

/// Reads feature `feature` of `index` with the contexts of its examples.
pub fn read(index: &FeatureIndex, feature: u32) -> sae::Result<Feature> {
    let detail = index.feature(feature)?;
    let mut texts = Texts::new(index);
    let mut strata = Vec::with_capacity(detail.strata.len());
    for stratum in &detail.strata {
        let examples = stratum.examples.iter().take(EXAMPLES).map(|e| texts.show(e));
        strata.push(StratumExamples {
            stratum: match stratum.stratum {
                Stratum::Top => "top".into(),
                Stratum::Bottom => "bottom".into(),
                Stratum::Quantile(i) => format!("q{i}"),
            },
            examples: examples.collect::<sae::Result<_>>()?,
        });
    }
    let FeatureDetail {
        summary,
        positive,
        negative,
        ..
    } = detail;
    let logits = |list: &[TokenLogit]| list.iter().map(|l| logit(index, l)).collect();
    Ok(Feature {
        feature,
        alive: summary.alive,
        n_active: summary.n_active,
        density: summary.density,
        max: summary.max,
        min: summary.min,
        mean_active: summary.mean_active,
        top_tokens: top_tokens(index, &summary.top_tokens),
        positive,
        negative,
        top_logits: logits(&detail.top_logits),
        bottom_logits: logits(&detail.bottom_logits),
        neighbours: detail
            .neighbours
            .iter()
            .filter_map(|n| {
                let summary = index.summaries().get(n.feature as usize)?;
                Some(Neighbour {
                    feature: n.feature,
                    cosine: n.cosine,
                    density: summary.density,
                    top_tokens: top_tokens(index, &summary.top_tokens),
                })
            })
            .collect(),
        strata,
        texts: texts.list,
    })
}

fn top_tokens(index: &FeatureIndex, tokens: &[u32]) -> Vec<Piece> {
    let tokens = tokens.iter().take(TOP_TOKENS);
    tokens.map(|t| single(index.token_bytes(*t))).collect()
}

fn logit(index: &FeatureIndex, logit: &TokenLogit) -> Logit {
    Logit {
        token: logit.token,
        text: single(index.token_bytes(logit.token)),
        logit: logit.logit,
    }
}

/// The texts that examples refer to, each once.
struct Texts<'a> {
    index: &'a FeatureIndex,
    contexts: HashMap<u64, StoredContext>,
    places: HashMap<(u64, usize), usize>,
    list: Vec<Text>,
}

impl<'a> Texts<'a> {
    fn new(index: &'a FeatureIndex) -> Self {
        Self {
            index,
            contexts: HashMap::new(),
            places: HashMap::new(),
            list: Vec::new(),
        }
    }

    fn show(&mut self, example: &Example) -> sae::Result<Shown> {
        let context = match self.contexts.get(&example.context) {
            Some(context) => context,
            None => {
                let read = self.index.context(example.context)?;
                self.contexts.entry(example.context).or_insert(read)
            }
        };
        let window = window(context.tokens.len(), example.position as usize);
        let list = &mut self.list;
        let index = self.index;
        let text = *self.places.entry((context.context, window.start)).or_insert_with(|| {
            list.push(text(index, context, window.clone()));
            list.len() - 1
        });
        let inside = example
            .activations
            .iter()
            .filter(|at| window.contains(&(at.position as usize)));
        let (positions, values) = inside.map(|at| (at.position, at.value)).unzip();
        Ok(Shown {
            text,
            position: example.position,
            value: example.value,
            positions,
            values,
        })
    }
}

fn text(index: &FeatureIndex, context: &StoredContext, window: Range<usize>) -> Text {
    let bytes: Vec<_> = context.tokens.iter().map(|t| index.token_bytes(*t)).collect();
    // Decoded as a whole and cut after, so that a window never begins within a code point that it could have read.
    let mut pieces = pieces(&bytes);
    pieces.truncate(window.end);
    Text {
        context: context.context,
        document: context.document,
        length: context.tokens.len(),
        start: window.start,
        tokens: context.tokens[window.clone()].to_vec(),
        pieces: pieces.split_off(window.start),
    }
}

/// The positions of a context of `length` tokens that are shown around `position`.
fn window(length: usize, position: usize) -> Range<usize> {
    let start = position.saturating_sub(WINDOW / 2).min(length.saturating_sub(WINDOW));
    start..length.min(start + WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_the_position_and_stays_inside() {
        assert_eq!(window(100, 99), 0..100);
        assert_eq!(window(512, 0), 0..512);
        assert_eq!(window(2000, 0), 0..512);
        assert_eq!(window(2000, 1000), 744..1256);
        assert_eq!(window(2000, 1999), 1488..2000);
        // A position that a damaged index puts outside the context.
        assert_eq!(window(10, 5000), 0..10);
        assert_eq!(window(0, 0), 0..0);
    }
}
