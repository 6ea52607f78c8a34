//! An index that looks like a real one, made without a model: small stories, features that answer to a few words each.
//! The tests and `examples/make_index.rs` share it; whoever changes the pages can look at them within a second.

use std::collections::BTreeMap;
use std::path::Path;

use sae::index::{
    At, DictionarySummary, Example, Examples, Existing, FORMAT_VERSION, FeatureDetail, FeatureSummary, HISTOGRAM_BINS,
    Histogram, IndexManifest, IndexWriter, Neighbour, StoredContext, Stratum, TokenLogit,
};

/// What to make.
#[derive(Clone, Copy)]
pub struct Story {
    pub d_sae: u32,
    pub contexts: u64,
    /// Tokens of a context, the special first one included.
    pub length: usize,
    /// Two poles.
    pub signed: bool,
    /// Whether there are logits.
    pub logits: bool,
}

impl Default for Story {
    fn default() -> Self {
        Self {
            d_sae: 60,
            contexts: 60,
            length: 96,
            signed: false,
            logits: true,
        }
    }
}

const QUANTILES: u32 = 5;
/// The special token: it has no bytes. Tokens below are single bytes, tokens above are words.
const BOS: u32 = 256;

const GROUPS: [&[&str]; 10] = [
    &[" Lily", " Tom", " Mia", " Ben", " Sue", " Max", " Anna", " Tim"],
    &[" cat", " dog", " bird", " bear", " frog", " rabbit", " mouse", " duck"],
    &[
        " little", " big", " red", " shiny", " soft", " brave", " kind", " funny",
    ],
    &[" ball", " hat", " box", " kite", " book", " cake", " flower", " boat"],
    &[
        " park", " garden", " forest", " house", " river", " hill", " school", " beach",
    ],
    &[
        " happy",
        " sad",
        " angry",
        " scared",
        " proud",
        " tired",
        " surprised",
        " hungry",
    ],
    &[
        " ran", " jumped", " played", " looked", " smiled", " laughed", " cried", " danced",
    ],
    &[" said", " asked", " shouted", " whispered", " replied"],
    &[" mom", " dad", " friend", " sister", " grandma", " teacher"],
    &[".", ",", "!", "?", "\"", "\n"],
];

const GLUE: [&str; 44] = [
    "Once",
    " upon",
    " a",
    " time",
    " there",
    " was",
    " named",
    " the",
    " and",
    " with",
    " to",
    " in",
    " very",
    " One",
    " day",
    " went",
    " saw",
    " They",
    " She",
    " he",
    " it",
    " found",
    " her",
    " his",
    " wanted",
    " play",
    " \"",
    "Let",
    "'s",
    " we",
    " can",
    " be",
    " From",
    " that",
    " on",
    " always",
    " together",
    " of",
    " so",
    " but",
    "The",
    " had",
    " loved",
    " were",
];

/// `0`..`9` stand for a word of that group.
const SENTENCES: [&str; 14] = [
    "Once| upon| a| time|,| there| was| a|2|1| named|0|.",
    " One| day|,|0| went| to| the|4| with| her|8|.",
    "0| saw| a|2|3| in| the|4|.",
    " She| was| very|5| and|6| to| the|1|.",
    " \"|Let|'s| play|!\"|7| the|1|.",
    " The|2|1|6| and|6|.",
    "0|7|,| \"|The|3| was| in| the|4|!|\"",
    " They|6| together| and| were| so|5|.",
    " But| her|8| was|5|,| so|0|7|,| \"| we| can| be|2|.|\"",
    "0| loved| the|2|3| and| always|6| with| it|.",
    "\n| One| day|,| the|1| found| a|3| on| the|4|.",
    " From| that| day| on|,|0| and| the|1| were| always|5|.",
    " His|8|7|,| \"|The|1| had| a|2|3|?|\"",
    " It| was| the|2|3| of| the|1|.",
];

/// Text whose code points are split over tokens, drawn from right to left, or without a shape.
const UNUSUAL: [&str; 4] = [
    " The cat said \u{1f431}\u{1f469}\u{200d}\u{1f680} and \u{732b}\u{306f}\u{3053}\u{3093}\u{306b}\u{3061}\u{306f}.",
    " \u{041a}\u{043e}\u{0442} \u{0441}\u{043a}\u{0430}\u{0437}\u{0430}\u{043b}: \u{043f}\u{0440}\u{0438}\u{0432}\u{0435}\u{0442}!",
    " \u{0642}\u{0627}\u{0644}\u{062a} \u{0627}\u{0644}\u{0642}\u{0637}\u{0629} \u{0645}\u{0631}\u{062d}\u{0628}\u{0627}.",
    " hid\u{200b}den\u{202e}gnp.exe\t<script>alert(1)</script> caf\u{e9}",
];

/// Writes the index of `story` into `dir`.
pub fn write(dir: &Path, story: &Story) -> sae::Result<()> {
    let vocabulary = Vocabulary::new();
    let contexts: Vec<StoredContext> = (0..story.contexts)
        .map(|n| vocabulary.context(n, story.length))
        .collect();
    let mut places: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
    for (c, context) in contexts.iter().enumerate() {
        for (p, token) in context.tokens.iter().enumerate() {
            places.entry(*token).or_default().push((c, p));
        }
    }
    let tokens = contexts.len() as u64 * (story.length as u64 - 1);
    let mut writer = IndexWriter::create(dir, Existing::Overwrite)?;
    let mut dead = 0;
    for feature in 0..story.d_sae {
        let detail = Maker {
            story,
            vocabulary: &vocabulary,
            contexts: &contexts,
            places: &places,
            tokens,
        }
        .feature(feature);
        dead += u32::from(!detail.summary.alive);
        writer.feature(&detail)?;
    }
    for context in &contexts {
        writer.context(context)?;
    }
    let manifest = IndexManifest {
        format_version: FORMAT_VERSION,
        d_in: 128,
        d_sae: story.d_sae as usize,
        hook: "blocks.3.hook_resid_post".into(),
        model: "storyteller".into(),
        corpus: "made-up stories".into(),
        tokens,
        contexts: story.contexts,
        signed: story.signed,
        quantiles: QUANTILES,
        dictionary: DictionarySummary {
            activation: if story.signed { "abs_topk" } else { "topk" }.into(),
            k: Some(32),
            fvu: Some(0.1827),
            l0: Some(31.94),
            dead: Some(f64::from(dead) / f64::from(story.d_sae.max(1))),
        },
    };
    writer.finish(&manifest, vocabulary.tokens)
}

/// SplitMix64: a few random numbers are no reason for a dependency.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// In `0..1`.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// Positive, around 1, with a long tail.
    fn skewed(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| self.unit()).sum();
        (1.1 * (sum - 2.0)).exp()
    }
}

struct Vocabulary {
    tokens: Vec<Vec<u8>>,
    ids: BTreeMap<String, u32>,
}

impl Vocabulary {
    fn new() -> Self {
        let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
        tokens.push(Vec::new());
        let mut ids = BTreeMap::new();
        let parts = SENTENCES
            .iter()
            .flat_map(|s| s.split('|'))
            .filter(|p| p.parse::<usize>().is_err());
        for word in GROUPS.iter().copied().flatten().copied().chain(GLUE).chain(parts) {
            ids.entry(word.to_owned()).or_insert_with(|| {
                tokens.push(word.as_bytes().to_vec());
                tokens.len() as u32 - 1
            });
        }
        Self { tokens, ids }
    }

    fn context(&self, number: u64, length: usize) -> StoredContext {
        let mut random = Random(number.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let mut tokens = vec![BOS];
        let mut first = true;
        while tokens.len() < length {
            if !first && random.below(30) == 0 {
                tokens.extend(random.pick(&UNUSUAL).bytes().map(u32::from));
            }
            let sentence = if first {
                SENTENCES[0]
            } else {
                *random.pick(&SENTENCES[1..])
            };
            first = false;
            for part in sentence.split('|') {
                let word = part.parse::<usize>().map_or(part, |group| *random.pick(GROUPS[group]));
                tokens.push(self.ids[word]);
            }
        }
        tokens.truncate(length);
        StoredContext {
            context: number,
            document: number / 2,
            tokens,
        }
    }
}

/// What a feature is made from.
struct Maker<'a> {
    story: &'a Story,
    vocabulary: &'a Vocabulary,
    contexts: &'a [StoredContext],
    places: &'a BTreeMap<u32, Vec<(usize, usize)>>,
    tokens: u64,
}

impl Maker<'_> {
    fn feature(&self, feature: u32) -> FeatureDetail {
        let mut random = Random(u64::from(feature) ^ 0x00c0_ffee);
        random.next();
        let mut values: BTreeMap<(usize, usize), f32> = BTreeMap::new();
        let is_dead = feature % 31 == 7;
        if !is_dead {
            self.pole(&mut random, 1.0, &mut values);
            if self.story.signed && feature % 4 != 1 {
                self.pole(&mut random, -0.8, &mut values);
            }
        }
        let summary = self.summary(feature, &values);
        let some_tokens = |random: &mut Random, sign: f32| -> Vec<TokenLogit> {
            if !self.story.logits {
                return Vec::new();
            }
            let mut logit = sign * (1.0 + 2.0 * random.unit());
            let words = self.vocabulary.tokens.len() - 257;
            (0..10)
                .map(|_| {
                    logit *= 0.8 + 0.19 * random.unit();
                    TokenLogit {
                        token: 257 + random.below(words) as u32,
                        logit,
                    }
                })
                .collect()
        };
        FeatureDetail {
            positive: histogram(values.values().copied().filter(|v| *v > 0.0)),
            negative: histogram(values.values().filter(|v| **v < 0.0).map(|v| -v)),
            top_logits: some_tokens(&mut random, 1.0),
            bottom_logits: some_tokens(&mut random, -1.0),
            neighbours: self.neighbours(feature, &mut random),
            strata: self.strata(&mut random, &values),
            summary,
        }
    }

    /// Adds activations at some words of a group, and for one feature in three in their wake.
    fn pole(&self, random: &mut Random, sign: f32, values: &mut BTreeMap<(usize, usize), f32>) {
        let group = random.pick(&GROUPS);
        let triggers: Vec<u32> = match random.below(5) {
            0 => vec![random.below(256) as u32],
            1 => vec![self.vocabulary.ids[*random.pick(&GLUE)]],
            _ => (0..1 + random.below(4))
                .map(|_| self.vocabulary.ids[*random.pick(group)])
                .collect(),
        };
        let size = 1.5 * random.skewed() * random.skewed();
        let often = 0.1 + 0.9 * random.unit();
        let wake = if random.below(3) == 0 { 2 + random.below(14) } else { 0 };
        for trigger in triggers {
            let strength = size * (0.4 + random.unit());
            for &(c, p) in self.places.get(&trigger).into_iter().flatten().filter(|(_, p)| *p > 0) {
                if random.unit() > often {
                    continue;
                }
                let peak = strength * random.skewed();
                for step in 0..=wake.min(self.story.length - 1 - p) {
                    let value = sign * peak * (1.0 - step as f32 / (wake + 1) as f32) * (0.8 + 0.2 * random.unit());
                    values.entry((c, p + step)).or_insert(value);
                }
            }
        }
    }

    fn summary(&self, feature: u32, values: &BTreeMap<(usize, usize), f32>) -> FeatureSummary {
        let mut by_token: BTreeMap<u32, f32> = BTreeMap::new();
        for (&(c, p), v) in values {
            *by_token.entry(self.contexts[c].tokens[p]).or_default() += v.abs();
        }
        let mut top: Vec<(u32, f32)> = by_token.into_iter().collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let n = values.len();
        FeatureSummary {
            feature,
            alive: n > 0,
            n_active: n as u64,
            density: n as f64 / self.tokens as f64,
            max: values.values().copied().fold(0.0, f32::max),
            min: values.values().copied().fold(0.0, f32::min),
            mean_active: values.values().map(|v| v.abs()).sum::<f32>() / n.max(1) as f32,
            top_tokens: top.iter().take(6).map(|(token, _)| *token).collect(),
        }
    }

    fn neighbours(&self, feature: u32, random: &mut Random) -> Vec<Neighbour> {
        let d_sae = self.story.d_sae;
        let mut cosine = 0.95;
        (0..10.min(d_sae - 1))
            .map(|_| {
                cosine *= 0.75 + 0.25 * random.unit();
                Neighbour {
                    feature: (feature + 1 + random.below(d_sae as usize - 1) as u32) % d_sae,
                    cosine,
                }
            })
            .collect()
    }

    fn strata(&self, random: &mut Random, values: &BTreeMap<(usize, usize), f32>) -> Vec<Examples> {
        let mut sorted: Vec<((usize, usize), f32)> = values.iter().map(|(at, v)| (*at, *v)).collect();
        sorted.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let mut strata = Vec::new();
        let mut add = |stratum, chosen: Vec<((usize, usize), f32)>| {
            if !chosen.is_empty() {
                let examples = chosen.into_iter().map(|(at, v)| self.example(at, v, values)).collect();
                strata.push(Examples { stratum, examples });
            }
        };
        let positive = sorted.iter().rev().copied().take_while(|(_, v)| *v > 0.0);
        add(Stratum::Top, one_a_context(positive, 12));
        add(
            Stratum::Bottom,
            one_a_context(sorted.iter().copied().take_while(|(_, v)| *v < 0.0), 12),
        );
        for q in 0..QUANTILES as usize {
            let between = sorted.len() * q / QUANTILES as usize..sorted.len() * (q + 1) / QUANTILES as usize;
            let slice = &sorted[between];
            let step = slice.len().div_ceil(6).max(1);
            add(
                Stratum::Quantile(q as u32),
                slice.iter().skip(random.below(step)).step_by(step).copied().collect(),
            );
        }
        strata
    }

    fn example(&self, (c, p): (usize, usize), value: f32, values: &BTreeMap<(usize, usize), f32>) -> Example {
        let along = values.range((c, 0)..(c + 1, 0));
        Example {
            context: self.contexts[c].context,
            position: p as u32,
            value,
            activations: along
                .map(|((_, p), value)| At {
                    position: *p as u32,
                    value: *value,
                })
                .collect(),
        }
    }
}

fn one_a_context(values: impl Iterator<Item = ((usize, usize), f32)>, most: usize) -> Vec<((usize, usize), f32)> {
    let mut seen = std::collections::BTreeSet::new();
    values.filter(|((c, _), _)| seen.insert(*c)).take(most).collect()
}

fn histogram(magnitudes: impl Iterator<Item = f32>) -> Histogram {
    let logs: Vec<f32> = magnitudes.map(f32::log2).collect();
    if logs.is_empty() {
        return Histogram::default();
    }
    let low = logs.iter().copied().fold(f32::INFINITY, f32::min);
    let high = logs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut width = 1.0 / 64.0;
    while (low / width).floor() * width + width * HISTOGRAM_BINS as f32 <= high {
        width *= 2.0;
    }
    let start = (low / width).floor() * width;
    let mut counts = vec![0; HISTOGRAM_BINS];
    for log in logs {
        counts[((log - start) / width) as usize] += 1;
    }
    Histogram {
        log2_start: start,
        log2_width: width,
        counts,
    }
}
