//! Everything the pass keeps about one feature, in room that does not grow with the text.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::histogram::LogHistogram;
use super::sample::{Priorities, Smallest, value_of};
use crate::index::{At, Example, Examples, FeatureDetail, FeatureSummary, Stratum};

/// How much a [`Tally`] keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Contexts of the largest values, and of the most negative.
    pub top: usize,
    /// Values that quantiles are taken of.
    pub sample: usize,
    /// Of these, how many are kept as possible examples, with the activations along their context.
    pub candidates: usize,
    /// Quantile strata.
    pub quantiles: u32,
    /// Examples in each.
    pub examples_per_quantile: usize,
    /// Tokens in [`FeatureSummary::top_tokens`].
    pub top_tokens: usize,
    /// Of the priorities.
    pub seed: u64,
}

/// A feature's activations in one whole context.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Number of the context.
    pub context: u64,
    /// Its token ids.
    pub tokens: &'a [u32],
    /// Where the feature is active, ascending; not empty, no value is 0.
    pub activations: &'a [At],
}

/// A token of the sample: its key, context and position. The order is by key; the rest makes it total.
type Place = (u64, u64, u32);

/// What is known of a feature so far.
#[derive(Clone, Debug)]
pub struct Tally {
    n_active: u64,
    /// Sum of `|value|`, in the order of the text.
    sum: f64,
    max: f32,
    min: f32,
    positive: LogHistogram,
    negative: LogHistogram,
    top: Peaks,
    bottom: Peaks,
    values: Smallest<u64, ()>,
    candidates: Smallest<Place, Arc<[At]>>,
}

impl Tally {
    /// Nothing seen; takes no room beyond its own.
    pub fn new(limits: &Limits) -> Self {
        Self {
            n_active: 0,
            sum: 0.0,
            max: 0.0,
            min: 0.0,
            positive: LogHistogram::default(),
            negative: LogHistogram::default(),
            top: Peaks::new(limits.top),
            bottom: Peaks::new(limits.top),
            values: Smallest::new(limits.sample),
            candidates: Smallest::new(limits.candidates),
        }
    }

    /// Adds the activations of one context. Each context comes once.
    pub fn add(&mut self, feature: u32, run: Run, limits: &Limits) {
        // Made at most once, and shared by all that keep it.
        let mut along: Option<Arc<[At]>> = None;
        let mut along = || along.get_or_insert_with(|| run.activations.into()).clone();
        let priorities = Priorities::new(limits.seed, run.context, feature);
        let (mut highest, mut lowest) = (run.activations[0], run.activations[0]);
        for &at in run.activations {
            self.count(at.value);
            // Strict: of equal values the earliest position stands for the context.
            if at.value > highest.value {
                highest = at;
            }
            if at.value < lowest.value {
                lowest = at;
            }
            let key = priorities.key(at.position, at.value);
            self.values.push(key, ());
            let place = (key, run.context, at.position);
            if self.candidates.wants(place) {
                self.candidates.push(place, along());
            }
        }
        for (peaks, at, is_of_pole) in [
            (&mut self.top, highest, highest.value > 0.0),
            (&mut self.bottom, lowest, lowest.value < 0.0),
        ] {
            if is_of_pole && peaks.wants(at.value, run.context) {
                peaks.insert(Peak {
                    value: at.value,
                    context: run.context,
                    position: at.position,
                    token: run.tokens[at.position as usize],
                    along: along(),
                });
            }
        }
    }

    fn count(&mut self, value: f32) {
        self.n_active += 1;
        self.sum += f64::from(value.abs());
        self.max = self.max.max(value);
        self.min = self.min.min(value);
        if value > 0.0 {
            self.positive.add(value);
        } else {
            self.negative.add(-value);
        }
    }

    /// The record of `feature` after `tokens` activation rows; logits and neighbours are still empty.
    pub fn finish(self, feature: u32, tokens: u64, limits: &Limits) -> FeatureDetail {
        let summary = FeatureSummary {
            feature,
            alive: self.n_active > 0,
            n_active: self.n_active,
            density: self.n_active as f64 / tokens.max(1) as f64,
            max: self.max,
            min: self.min,
            mean_active: (self.sum / self.n_active.max(1) as f64) as f32,
            top_tokens: top_tokens(self.top.0.iter().chain(&self.bottom.0), limits.top_tokens),
        };
        let mut strata = vec![
            Examples {
                stratum: Stratum::Top,
                examples: self.top.into_examples(),
            },
            Examples {
                stratum: Stratum::Bottom,
                examples: self.bottom.into_examples(),
            },
        ];
        strata.extend(quantile_strata(self.values, self.candidates, limits));
        strata.retain(|s| !s.examples.is_empty());
        FeatureDetail {
            summary,
            positive: self.positive.finish(),
            negative: self.negative.finish(),
            strata,
            ..Default::default()
        }
    }
}

/// Examples of each quantile: the candidates of smallest priority whose rank among the sampled values lies in it.
///
/// The value of rank `r` of `n` (ascending, from 0) belongs to quantile `floor(r * quantiles / n)`.
fn quantile_strata(
    values: Smallest<u64, ()>,
    candidates: Smallest<Place, Arc<[At]>>,
    limits: &Limits,
) -> Vec<Examples> {
    let mut strata: Vec<Vec<Example>> = vec![Vec::new(); limits.quantiles as usize];
    let mut sampled: Vec<u64> = values.into_sorted().into_iter().map(|(key, ())| key).collect();
    let by_value = |a: &u64, b: &u64| value_of(*a).total_cmp(&value_of(*b)).then(a.cmp(b));
    sampled.sort_unstable_by(by_value);
    for ((key, context, position), along) in candidates.into_sorted() {
        // Candidates are the smallest keys and so are the sampled values, of which there are more: it is there.
        let rank = sampled.partition_point(|other| by_value(other, &key).is_lt());
        let quantile = rank as u64 * u64::from(limits.quantiles) / sampled.len() as u64;
        let examples = &mut strata[quantile as usize];
        if examples.len() < limits.examples_per_quantile {
            examples.push(Example {
                context,
                position,
                value: value_of(key),
                activations: along.to_vec(),
            });
        }
    }
    let strata = strata.into_iter().enumerate();
    strata
        .map(|(i, mut examples)| {
            examples.sort_by(|a, b| {
                let by_value = b.value.total_cmp(&a.value);
                by_value.then((a.context, a.position).cmp(&(b.context, b.position)))
            });
            Examples {
                stratum: Stratum::Quantile(i as u32),
                examples,
            }
        })
        .collect()
}

/// The tokens at the peaks, by summed `|value|`; of equal sums the lower id first.
fn top_tokens<'a>(peaks: impl Iterator<Item = &'a Peak>, n: usize) -> Vec<u32> {
    let mut sums = BTreeMap::<u32, f64>::new();
    for peak in peaks {
        *sums.entry(peak.token).or_default() += f64::from(peak.value.abs());
    }
    let mut sums: Vec<(u32, f64)> = sums.into_iter().collect();
    // Stable: ids ascend already.
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    sums.truncate(n);
    sums.into_iter().map(|(token, _)| token).collect()
}

/// The strongest value of a pole in one context.
#[derive(Clone, Debug)]
struct Peak {
    value: f32,
    context: u64,
    position: u32,
    token: u32,
    along: Arc<[At]>,
}

/// The contexts with the strongest peaks of one pole, strongest first; of equal ones the earlier context.
#[derive(Clone, Debug)]
struct Peaks(Vec<Peak>, usize);

impl Peaks {
    fn new(n: usize) -> Self {
        Self(Vec::new(), n)
    }

    fn wants(&self, value: f32, context: u64) -> bool {
        self.0.len() < self.1 || self.0.last().is_some_and(|last| is_before(value, context, last))
    }

    fn insert(&mut self, peak: Peak) {
        let at = self
            .0
            .partition_point(|other| !is_before(peak.value, peak.context, other));
        if self.0.len() == self.1 {
            self.0.pop();
        }
        self.0.insert(at, peak);
    }

    fn into_examples(self) -> Vec<Example> {
        let peaks = self.0.into_iter();
        peaks
            .map(|p| Example {
                context: p.context,
                position: p.position,
                value: p.value,
                activations: p.along.to_vec(),
            })
            .collect()
    }
}

fn is_before(value: f32, context: u64, other: &Peak) -> bool {
    (value.abs(), std::cmp::Reverse(context)) > (other.value.abs(), std::cmp::Reverse(other.context))
}
