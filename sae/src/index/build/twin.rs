//! The whole index computed naively, from a list of everything that fired; the builder must agree exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use activations::{Context, ContextBatch, ContextSource, Outcome, Progress, RowRef, Silent, Stop};
use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::sample::Priorities;
use super::{BuildOptions, CANDIDATES, Dictionary, Job, Naming, Unembedding};
use crate::code::HostCode;
use crate::index::{
    At, Example, Examples, FeatureDetail, FeatureIndex, FeatureSummary, HISTOGRAM_BINS, Histogram, IndexManifest,
    StoredContext, Stratum, TokenLogit,
};
use crate::kernels::select::top_k_twin;
use crate::{Result, Score, Sparsifier};

/// A text whose activations are already codes: the dictionary selects among the coordinates of its input.
#[derive(Clone)]
struct World {
    d_sae: usize,
    sparsifier: Sparsifier,
    contexts: Vec<Context>,
    /// One entry a row: index into `contexts`, position, pre-activations `[d_sae]`.
    rows: Vec<(usize, u32, Vec<f32>)>,
    decoder: Vec<f32>,
    vocabulary: Vec<Vec<u8>>,
    unembedding: Vec<f32>,
}

impl World {
    /// Contexts of different lengths, some numbers left out, every first position without a row. Values are coarse, so
    /// that many are equal; latents differ in how often they fire, and the last never does.
    fn random(seed: u64, n_contexts: usize, sparsifier: Sparsifier) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (d_sae, d_vocab) = (70, 40);
        let mut contexts: Vec<Context> = Vec::new();
        let mut rows = Vec::new();
        for c in 0..n_contexts {
            let tokens: Vec<u32> = (0..rng.random_range(1..14))
                .map(|_| rng.random_range(0..d_vocab))
                .collect();
            for position in 1..tokens.len() as u32 {
                let pre = |f: usize| {
                    let fires = f + 1 < d_sae && rng.random::<f32>() < 0.5 / (1.0 + f as f32);
                    let value = f32::from(rng.random_range(-9i8..=12)) / 4.0;
                    if fires { value } else { 0.0 }
                };
                rows.push((c, position, (0..d_sae).map(pre).collect()));
            }
            contexts.push(Context {
                index: contexts.last().map_or(3, |last| last.index + rng.random_range(1..4)),
                document: c as u64 / 2,
                tokens,
                ..Context::default()
            });
        }
        let mut small = |n: usize| -> Vec<f32> { (0..n).map(|_| f32::from(rng.random_range(-4i8..=4))).collect() };
        Self {
            d_sae,
            sparsifier,
            contexts,
            rows,
            decoder: small(d_sae * d_sae),
            vocabulary: (0..d_vocab).map(|t| format!("token {t}").into_bytes()).collect(),
            // Three rows of padding beyond the vocabulary, so large that they would win.
            unembedding: [small(d_vocab as usize * d_sae), vec![1000.0; 3 * d_sae]].concat(),
        }
    }

    /// The code of a row by the plain twin of the selection.
    fn code(&self, row: &[f32]) -> (Vec<i32>, Vec<f32>) {
        top_k_twin(row, self.sparsifier.score, self.slots())
    }

    fn encode(&self, x: &[f32]) -> Result<HostCode> {
        let (indices, values): (Vec<_>, Vec<_>) = x.chunks(self.d_sae).map(|row| self.code(row)).unzip();
        Ok(HostCode::equal(self.slots(), indices.concat(), values.concat()))
    }

    fn slots(&self) -> usize {
        self.sparsifier.k().unwrap()
    }

    fn source(&self, contexts_per_batch: usize) -> Batches {
        let mut batches = Vec::new();
        for first in (0..self.contexts.len()).step_by(contexts_per_batch) {
            let range = first..self.contexts.len().min(first + contexts_per_batch);
            let of_range = || self.rows.iter().filter(|row| range.contains(&row.0));
            batches.push(ContextBatch {
                contexts: self.contexts[range.clone()].to_vec(),
                rows: of_range()
                    .map(|&(c, position, _)| RowRef {
                        context: (c - first) as u32,
                        position,
                    })
                    .collect(),
                acts: of_range().flat_map(|row| row.2.clone()).collect(),
            });
        }
        batches.reverse();
        Batches(batches, self.d_sae)
    }

    fn build(&self, out: &Path, contexts_per_batch: usize, options: &BuildOptions) -> Result<IndexManifest> {
        let (outcome, manifest) = self.start(out, contexts_per_batch, options, &Silent, &Stop::new())?;
        assert_eq!(outcome, Outcome::Finished);
        Ok(manifest.unwrap())
    }

    fn start(
        &self,
        out: &Path,
        contexts_per_batch: usize,
        options: &BuildOptions,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> Result<(Outcome, Option<IndexManifest>)> {
        let job = Job {
            dictionary: Dictionary {
                d_in: self.d_sae,
                d_out: self.d_sae,
                d_sae: self.d_sae,
                activation: self.sparsifier.name(),
                sparsifier: self.sparsifier,
                fvu: Some(0.25),
                encode: &|x| self.encode(x),
                decoder: &self.decoder,
                device: Device::flex(),
            },
            vocabulary: &self.vocabulary,
            unembedding: Some(&Unembedding {
                values: self.unembedding.clone(),
                columns: 0..self.d_sae,
            }),
            options,
            naming: &Naming {
                hook: "blocks.0.hook_resid_post".into(),
                model: "none".into(),
                corpus: "random".into(),
            },
            progress,
            stop,
        };
        job.run(&mut self.source(contexts_per_batch), out)
    }

    /// Everything that fires: `(context, position, value)` of feature `f`, in the order of the text.
    fn firings(&self, f: usize) -> Vec<Firing> {
        let codes = self
            .rows
            .iter()
            .map(|(c, position, pre)| (*c, *position, self.code(pre)));
        codes
            .filter_map(|(c, position, (indices, values))| {
                let slot = indices.iter().position(|i| *i as usize == f)?;
                (values[slot] != 0.0).then_some((self.contexts[c].index, position, values[slot]))
            })
            .collect()
    }

    fn token(&self, context: u64, position: u32) -> u32 {
        let context = self.contexts.iter().find(|c| c.index == context).unwrap();
        context.tokens[position as usize]
    }

    /// The record of feature `f` without neighbours.
    fn detail(&self, f: usize, options: &BuildOptions) -> FeatureDetail {
        let firings = self.firings(f);
        let example = |&(context, position, value): &Firing| Example {
            context,
            position,
            value,
            activations: firings
                .iter()
                .filter(|other| other.0 == context)
                .map(|&(_, position, value)| At { position, value })
                .collect(),
        };
        let pole = |sign: f32| {
            let mut strongest: Vec<_> = firings.iter().filter(|a| sign * a.2 > 0.0).collect();
            strongest.sort_by(|a, b| (sign * b.2).total_cmp(&(sign * a.2)).then((a.0, a.1).cmp(&(b.0, b.1))));
            let mut seen = BTreeSet::new();
            strongest.retain(|a| seen.insert(a.0));
            strongest.truncate(options.top_contexts);
            strongest.into_iter().map(example).collect::<Vec<_>>()
        };
        let (top, bottom) = (pole(1.0), pole(-1.0));
        let mut mass = BTreeMap::<u32, f64>::new();
        for peak in top.iter().chain(&bottom) {
            *mass.entry(self.token(peak.context, peak.position)).or_default() += f64::from(peak.value.abs());
        }
        let mut top_tokens: Vec<u32> = mass.keys().copied().collect();
        top_tokens.sort_by(|a, b| mass[b].total_cmp(&mass[a]).then(a.cmp(b)));
        top_tokens.truncate(options.top_tokens);
        let sum: f64 = firings.iter().map(|a| f64::from(a.2.abs())).sum();
        let n = firings.len();
        let mut strata = vec![(Stratum::Top, top), (Stratum::Bottom, bottom)];
        strata.extend(
            quantiles(f, &firings, options)
                .into_iter()
                .map(|(s, places)| (s, places.iter().map(example).collect())),
        );
        let logits = self.logits(f);
        FeatureDetail {
            summary: FeatureSummary {
                feature: f as u32,
                alive: n > 0,
                n_active: n as u64,
                density: n as f64 / self.rows.len() as f64,
                max: firings.iter().map(|a| a.2).fold(0.0, f32::max),
                min: firings.iter().map(|a| a.2).fold(0.0, f32::min),
                mean_active: if n > 0 { (sum / n as f64) as f32 } else { 0.0 },
                top_tokens,
            },
            positive: histogram(firings.iter().map(|a| a.2).filter(|v| *v > 0.0).collect()),
            negative: histogram(firings.iter().map(|a| -a.2).filter(|v| *v > 0.0).collect()),
            top_logits: logits.iter().rev().take(options.logits).copied().collect(),
            bottom_logits: logits.iter().take(options.logits).copied().collect(),
            neighbours: Vec::new(),
            strata: strata
                .into_iter()
                .filter(|(_, examples)| !examples.is_empty())
                .map(|(stratum, examples)| Examples { stratum, examples })
                .collect(),
        }
    }

    /// The logits of all tokens of the vocabulary, ascending. Whole numbers: exact.
    fn logits(&self, f: usize) -> Vec<TokenLogit> {
        let d = self.d_sae;
        let logit = |token: usize| {
            (0..d)
                .map(|i| self.decoder[f * d + i] * self.unembedding[token * d + i])
                .sum::<f32>()
        };
        let mut logits: Vec<TokenLogit> = (0..self.vocabulary.len())
            .map(|token| TokenLogit {
                token: token as u32,
                logit: logit(token),
            })
            .collect();
        logits.sort_by(|a, b| a.logit.total_cmp(&b.logit));
        logits
    }

    fn cosine(&self, a: usize, b: usize) -> f64 {
        let row = |f: usize| {
            self.decoder[f * self.d_sae..][..self.d_sae]
                .iter()
                .map(|v| f64::from(*v))
        };
        let length = |f| row(f).map(|v| v * v).sum::<f64>().sqrt();
        row(a).zip(row(b)).map(|(a, b)| a * b).sum::<f64>() / (length(a) * length(b))
    }
}

/// Where something fires: context, position and value.
type Firing = (u64, u32, f32);

/// Batches in reverse, and their width.
struct Batches(Vec<ContextBatch>, usize);

impl ContextSource for Batches {
    fn d_in(&self) -> usize {
        self.1
    }
    fn n_contexts(&self) -> Option<u64> {
        None
    }
    fn next_batch(&mut self) -> activations::Result<Option<ContextBatch>> {
        Ok(self.0.pop())
    }
}

/// Sorts and slices: quantile `q` of the sampled values has ranks `q n / quantiles ..`.
fn quantiles(f: usize, firings: &[Firing], options: &BuildOptions) -> Vec<(Stratum, Vec<Firing>)> {
    let key = |a: &Firing| Priorities::new(options.seed, a.0, f as u32).key(a.1, a.2);
    let mut sample = firings.to_vec();
    sample.sort_by_key(key);
    sample.truncate(options.sample);
    let shown = options.quantiles as usize * options.examples_per_quantile;
    let candidates: BTreeSet<u64> = sample.iter().take(CANDIDATES * shown).map(key).collect();
    sample.sort_by(|a, b| a.2.total_cmp(&b.2).then(key(a).cmp(&key(b))));
    let n = sample.len();
    let strata = (0..options.quantiles as usize).map(|q| {
        let border = |q: usize| (q * n).div_ceil(options.quantiles as usize);
        let mut places = sample[border(q)..border(q + 1)].to_vec();
        places.retain(|a| candidates.contains(&key(a)));
        places.sort_by_key(key);
        places.truncate(options.examples_per_quantile);
        places.sort_by(|a, b| b.2.total_cmp(&a.2).then((a.0, a.1).cmp(&(b.0, b.1))));
        (Stratum::Quantile(q as u32), places)
    });
    strata.collect()
}

/// Tries widths from the finest until the values fit.
fn histogram(values: Vec<f32>) -> Histogram {
    if values.is_empty() {
        return Histogram::default();
    }
    let mut width = 1.0 / 64.0;
    loop {
        let bins: Vec<i64> = values
            .iter()
            .map(|v| (f64::from(*v).log2() / width).floor() as i64)
            .collect();
        let (low, high) = (*bins.iter().min().unwrap(), *bins.iter().max().unwrap());
        if high - low < HISTOGRAM_BINS as i64 {
            let mut counts = vec![0; HISTOGRAM_BINS];
            bins.iter().for_each(|bin| counts[(bin - low) as usize] += 1);
            return Histogram {
                log2_start: (low as f64 * width) as f32,
                log2_width: width as f32,
                counts,
            };
        }
        width *= 2.0;
    }
}

fn options() -> BuildOptions {
    BuildOptions {
        top_contexts: 4,
        quantiles: 3,
        examples_per_quantile: 2,
        // The most active features have several hundred active tokens: both what is exact and what is sampled occur.
        sample: 60,
        top_tokens: 3,
        neighbours: 5,
        logits: 4,
        seed: 11,
        overwrite: true,
    }
}

#[test]
fn every_record_is_what_sorting_everything_gives() {
    let options = options();
    for sparsifier in [Sparsifier::top_k(5), Sparsifier::abs_top_k(5)] {
        let world = World::random(7, 150, sparsifier);
        let dir = tempfile::tempdir().unwrap();
        let manifest = world.build(dir.path(), 7, &options).unwrap();
        let index = FeatureIndex::open(dir.path()).unwrap();
        assert_eq!(index.manifest(), &manifest);
        let mut referred = BTreeSet::new();
        let (mut sampled, mut exact, mut dead, mut active) = (0, 0, 0, 0);
        for f in 0..world.d_sae {
            let mut found = index.feature(f as u32).unwrap();
            check_neighbours(&world, f, &mut found, options.neighbours);
            let expected = world.detail(f, &options);
            // Tokens of equal logits may stand for each other.
            let values = |logits: &[TokenLogit]| logits.iter().map(|l| l.logit).collect::<Vec<_>>();
            assert_eq!(values(&found.top_logits), values(&expected.top_logits));
            assert_eq!(values(&found.bottom_logits), values(&expected.bottom_logits));
            assert!(
                found
                    .top_logits
                    .iter()
                    .chain(&found.bottom_logits)
                    .all(|l| world.logits(f).contains(l))
            );
            found.top_logits = expected.top_logits.clone();
            found.bottom_logits = expected.bottom_logits.clone();
            assert_eq!(found, expected);
            referred.extend(found.strata.iter().flat_map(|s| &s.examples).map(|e| e.context));
            match found.summary.n_active {
                0 => dead += 1,
                n if n <= options.sample as u64 => exact += 1,
                _ => sampled += 1,
            }
            active += found.summary.n_active;
        }
        assert!(sampled > 2 && exact > 20 && dead > 0, "{sampled} {exact} {dead}");
        assert_eq!(manifest.tokens, world.rows.len() as u64);
        assert_eq!(manifest.contexts, 150);
        assert_eq!(manifest.signed, sparsifier.score == Score::Magnitude);
        assert_eq!(manifest.dictionary.dead, Some(f64::from(dead) / 70.0));
        assert_eq!(manifest.dictionary.l0, Some(active as f64 / world.rows.len() as f64));
        check_contexts(&world, &index, &referred);
    }
}

fn check_neighbours(world: &World, f: usize, found: &mut FeatureDetail, n: usize) {
    let mut cosines: Vec<f64> = (0..world.d_sae)
        .filter(|g| *g != f)
        .map(|g| world.cosine(f, g))
        .collect();
    cosines.sort_by(|a, b| b.total_cmp(a));
    let neighbours = std::mem::take(&mut found.neighbours);
    assert_eq!(neighbours.len(), n);
    for (neighbour, expected) in neighbours.iter().zip(cosines) {
        assert_ne!(neighbour.feature as usize, f);
        for cosine in [expected, world.cosine(f, neighbour.feature as usize)] {
            assert!((f64::from(neighbour.cosine) - cosine).abs() < 1e-6);
        }
    }
}

/// The contexts that are stored are those that an example refers to, whole.
fn check_contexts(world: &World, index: &FeatureIndex, referred: &BTreeSet<u64>) {
    assert_eq!(index.n_contexts(), referred.len());
    assert!(referred.len() < world.contexts.len());
    for context in world.contexts.iter().filter(|c| referred.contains(&c.index)) {
        let expected = StoredContext {
            context: context.index,
            document: context.document,
            tokens: context.tokens.clone(),
        };
        assert_eq!(index.context(context.index).unwrap(), expected);
    }
    assert_eq!(index.vocabulary_len(), world.vocabulary.len());
}

fn bytes(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

#[test]
fn bytes_depend_neither_on_batches_nor_on_threads() {
    let world = World::random(3, 120, Sparsifier::abs_top_k(6));
    let build = |contexts_per_batch, threads| {
        let dir = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| world.build(dir.path(), contexts_per_batch, &options()))
            .unwrap();
        bytes(dir.path())
    };
    let reference = build(1, 1);
    assert_eq!(reference.len(), 5);
    for (contexts_per_batch, threads) in [(1, 5), (7, 2), (120, 1), (50, 3)] {
        let found = build(contexts_per_batch, threads);
        for (name, bytes) in &reference {
            assert!(
                found[name] == *bytes,
                "{name} with {contexts_per_batch} contexts a batch, {threads} threads"
            );
        }
    }
    let mut other = options();
    other.seed += 1;
    let dir = tempfile::tempdir().unwrap();
    world.build(dir.path(), 7, &other).unwrap();
    assert_ne!(bytes(dir.path())["examples.parquet"], reference["examples.parquet"]);
}

#[test]
fn quantile_examples_lie_between_true_quantiles_exactly_if_few_and_nearly_if_many() {
    let mut options = BuildOptions {
        sample: 512,
        ..Default::default()
    };
    options.overwrite = true;
    for (n_contexts, slack) in [(30, 0.0), (3000, 0.1)] {
        let world = World::random(5, n_contexts, Sparsifier::top_k(70));
        let dir = tempfile::tempdir().unwrap();
        world.build(dir.path(), 100, &options).unwrap();
        let index = FeatureIndex::open(dir.path()).unwrap();
        let found = index.feature(0).unwrap();
        let mut values: Vec<f32> = world.firings(0).iter().map(|a| a.2).collect();
        values.sort_by(f32::total_cmp);
        assert_eq!(values.len() > options.sample, slack > 0.0, "{}", values.len());
        let share = |n: usize| n as f64 / values.len() as f64;
        let mut strata = 0;
        for stratum in &found.strata {
            let Stratum::Quantile(q) = stratum.stratum else {
                continue;
            };
            strata += 1;
            assert_eq!(stratum.examples.len(), options.examples_per_quantile);
            let (low, high) = (f64::from(q) / 5.0, f64::from(q + 1) / 5.0);
            for example in &stratum.examples {
                let below = share(values.partition_point(|v| *v < example.value));
                let up_to = share(values.partition_point(|v| *v <= example.value));
                assert!(below < high + slack && up_to > low - slack, "q{q}: {below}..{up_to}");
            }
        }
        assert_eq!(strata, 5, "every quantile has examples");
    }
}

/// Asks to stop when the given stage has advanced.
struct StopAt(&'static str, Stop, std::sync::Mutex<String>);

impl Progress for StopAt {
    fn begin(&self, stage: &str, _: Option<u64>, _: &str) {
        *self.2.lock().unwrap() = stage.into();
        if stage == self.0 {
            self.1.request();
        }
    }
}

#[test]
fn a_stopped_or_failed_index_leaves_nothing_and_an_old_one_as_it_was() {
    let world = World::random(1, 40, Sparsifier::top_k(5));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("features");
    for stage in ["encoding", "features"] {
        let stop = Stop::new();
        let stopped = world.start(
            &out,
            5,
            &options(),
            &StopAt(stage, stop.clone(), Default::default()),
            &stop,
        );
        assert_eq!(stopped.unwrap(), (Outcome::Stopped, None), "{stage}");
        assert!(!out.exists(), "{stage}");
    }
    world.build(&out, 5, &options()).unwrap();
    let before = bytes(&out);
    let mut broken = world.clone();
    broken.rows.last_mut().unwrap().2[3] = f32::NAN;
    let error = broken.build(&out, 5, &options()).unwrap_err().to_string();
    let row = world.rows.len() - 1;
    assert!(
        error.contains(&format!(
            "row {row} of the activations of blocks.0.hook_resid_post holds NaN"
        )),
        "{error}"
    );
    let stop = Stop::new();
    stop.request();
    assert_eq!(
        world.start(&out, 5, &options(), &Silent, &stop).unwrap().0,
        Outcome::Stopped
    );
    let refusing = BuildOptions {
        overwrite: false,
        ..options()
    };
    let refused = world.build(&out, 5, &refusing).unwrap_err().to_string();
    assert!(refused.contains("already holds a feature index"), "{refused}");
    assert_eq!(bytes(&out), before);
}

#[test]
fn what_cannot_be_indexed_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::random(1, 4, Sparsifier::top_k(5));
    let refused = |world: &World, options: &BuildOptions| {
        world
            .build(&dir.path().join("out"), 5, options)
            .unwrap_err()
            .to_string()
    };
    let mut empty = world.clone();
    empty.rows.clear();
    assert!(refused(&empty, &options()).contains("no activations to index"));
    let few = BuildOptions { sample: 5, ..options() };
    assert!(refused(&world, &few).contains("features.sample: is 5, less than the 6 examples"));
    let none = BuildOptions {
        top_contexts: 0,
        ..options()
    };
    assert!(refused(&world, &none).contains("features.top_contexts"));
    let mut ragged = world.clone();
    ragged.unembedding.pop();
    assert!(refused(&ragged, &options()).contains("no rows for columns 0..70"));
    let mut other = world.clone();
    other.vocabulary.truncate(2);
    assert!(refused(&other, &options()).contains("the vocabulary has 2"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
