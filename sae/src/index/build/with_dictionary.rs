//! Indexes of a real dictionary, made by the public function.

use std::sync::Mutex;

use activations::{Context, ContextBatch, ContextSource, Outcome, Progress, RowRef, Stop};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{BuildOptions, Naming, Unembedding, build};
use crate::dictionary::{DictionaryCard, HeldOut, Place};
use crate::index::FeatureIndex;
use crate::{Sae, Sparsifier};

const D_IN: usize = 24;
const D_SAE: usize = 96;
const CONTEXT: usize = 10;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn dictionary() -> (Sae, DictionaryCard) {
    let device = Device::flex();
    let matrix = |seed| Tensor::from_data(TensorData::new(random(D_SAE * D_IN, seed), [D_SAE, D_IN]), &device);
    let vector = |n, seed| Tensor::from_data(TensorData::new(random(n, seed), [n]), &device);
    let sae = Sae {
        per_token: false,
        w_enc: matrix(1),
        b_enc: vector(D_SAE, 2),
        w_dec: matrix(3),
        b_dec: vector(D_IN, 4),
        apply_b_dec_to_input: true,
        steps: Vec::new(),
        skip: None,
        threshold: None,
        sparsifier: Sparsifier::abs_top_k(7),
    };
    let card = DictionaryCard {
        hook: Some("blocks.1.hook_mlp_out".into()),
        trained_tokens: 5,
        held_out: Some(HeldOut {
            rows: 9,
            fvu: 0.125,
            l0: 7.0,
            dead_share: 0.0,
        }),
        ..DictionaryCard::of(&sae)
    };
    (sae, card)
}

/// `contexts` contexts, so many a batch; a row for every position.
struct Source {
    contexts: usize,
    next: usize,
    per_batch: usize,
    acts: Vec<f32>,
}

impl ContextSource for Source {
    fn d_in(&self) -> usize {
        D_IN
    }
    fn n_contexts(&self) -> Option<u64> {
        Some(self.contexts as u64)
    }
    fn next_batch(&mut self) -> activations::Result<Option<ContextBatch>> {
        let range = self.next..self.contexts.min(self.next + self.per_batch);
        self.next = range.end;
        let size = CONTEXT * D_IN;
        Ok((!range.is_empty()).then(|| ContextBatch {
            contexts: range
                .clone()
                .map(|c| Context {
                    index: c as u64,
                    document: 0,
                    tokens: vec![c as u32 % 5; CONTEXT],
                    ..Context::default()
                })
                .collect(),
            rows: (0..range.len() * CONTEXT)
                .map(|row| RowRef {
                    context: (row / CONTEXT) as u32,
                    position: (row % CONTEXT) as u32,
                })
                .collect(),
            acts: self.acts[range.start * size..range.end * size].to_vec(),
        }))
    }
}

#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Progress for Warnings {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }
}

#[test]
fn an_index_of_a_dictionary_shows_its_codes_and_bytes_do_not_depend_on_batches() {
    let (sae, card) = dictionary();
    let contexts = 500;
    let acts = random(contexts * CONTEXT * D_IN, 5);
    let code = sae.encode_rows(&acts).unwrap();
    let mut before: Option<Vec<u8>> = None;
    for per_batch in [1, 33, 500] {
        let dir = tempfile::tempdir().unwrap();
        let mut source = Source {
            contexts,
            next: 0,
            per_batch,
            acts: acts.clone(),
        };
        let naming = Naming {
            hook: "blocks.1.hook_resid_post".into(),
            model: "m".into(),
            corpus: "c".into(),
        };
        let vocabulary: Vec<Vec<u8>> = (0..5u8).map(|t| vec![t]).collect();
        let (warnings, options) = (Warnings::default(), BuildOptions::default());
        let out = dir.path();
        let (outcome, manifest) = build(
            &sae,
            &card,
            &mut source,
            &vocabulary,
            None,
            out,
            &options,
            &naming,
            &warnings,
            &Stop::new(),
        )
        .unwrap();
        assert_eq!(outcome, Outcome::Finished);
        let summary = manifest.unwrap().dictionary;
        assert_eq!((summary.activation.as_str(), summary.k), ("AbsTopK(7)", Some(7)));
        assert_eq!((summary.fvu, summary.l0), (Some(0.125), Some(7.0)));
        let warnings = warnings.0.into_inner().unwrap();
        assert_eq!(
            warnings,
            ["the SAE was trained on blocks.1.hook_mlp_out, but these are activations of blocks.1.hook_resid_post"]
        );
        let index = FeatureIndex::open(out).unwrap();
        for f in 0..D_SAE {
            let values = (0..code.batch()).filter_map(|row| code.row(row).find(|(latent, _)| *latent == f));
            let values: Vec<f32> = values.map(|(_, value)| value).collect();
            let found = index.feature(f as u32).unwrap();
            assert_eq!(found.summary.n_active, values.len() as u64);
            assert_eq!(found.summary.max, values.iter().fold(0.0, |max, v| v.max(max)));
            assert_eq!(found.summary.min, values.iter().fold(0.0, |min, v| v.min(min)));
            assert!(found.top_logits.is_empty() && found.bottom_logits.is_empty());
        }
        let bytes = std::fs::read(out.join("examples.parquet")).unwrap();
        assert!(
            before.as_ref().is_none_or(|before| *before == bytes),
            "{per_batch} contexts a batch"
        );
        before = Some(bytes);
    }
}

#[test]
fn logits_of_a_dictionary_that_writes_elsewhere_are_products_of_its_decoder_with_what_the_unembedding_reads() {
    const D_OUT: usize = 9;
    let device = Device::flex();
    let (mut sae, mut card) = dictionary();
    sae.w_dec = Tensor::from_data(TensorData::new(random(D_SAE * D_OUT, 3), [D_SAE, D_OUT]), &device);
    sae.b_dec = Tensor::zeros([D_OUT], &device);
    sae.apply_b_dec_to_input = false;
    card.apply_b_dec_to_input = false;
    let place = |hook: &str, width| Place {
        hook: Some(hook.into()),
        width,
    };
    card.writes = vec![place("blocks.1.attn.hook_z", 3), place("blocks.1.hook_resid_post", 6)];
    let mut source = Source {
        contexts: 50,
        next: 0,
        per_batch: 7,
        acts: random(50 * CONTEXT * D_IN, 5),
    };
    let naming = Naming {
        hook: "blocks.1.hook_mlp_out".into(),
        model: "m".into(),
        corpus: "c".into(),
    };
    let unembedding = Unembedding {
        values: random(5 * 6, 8),
        columns: 3..9,
    };
    assert_eq!(unembedding.d_vocab(), 5);
    let dir = tempfile::tempdir().unwrap();
    let vocabulary: Vec<Vec<u8>> = (0..5u8).map(|t| vec![t]).collect();
    let (warnings, options) = (Warnings::default(), BuildOptions::default());
    let stop = Stop::new();
    let mut index = |unembedding: &Unembedding, out: &std::path::Path| {
        let unembedding = Some(unembedding);
        build(
            &sae,
            &card,
            &mut source,
            &vocabulary,
            unembedding,
            out,
            &options,
            &naming,
            &warnings,
            &stop,
        )
    };
    let beyond = Unembedding {
        columns: 4..10,
        ..unembedding.clone()
    };
    let error = index(&beyond, &dir.path().join("no")).unwrap_err().to_string();
    assert!(error.contains("4..10") && error.contains("d_out 9"), "{error}");
    let out = dir.path().join("index");
    let manifest = index(&unembedding, &out).unwrap().1.unwrap();
    let said = "AbsTopK(7) transcoder to blocks.1.attn.hook_z, blocks.1.hook_resid_post";
    assert_eq!(manifest.dictionary.activation, said);
    assert!(warnings.0.into_inner().unwrap().is_empty());
    let decoder = sae.decoder_rows().unwrap();
    let index = FeatureIndex::open(&out).unwrap();
    for f in [0, 17, D_SAE - 1] {
        let found = index.feature(f as u32).unwrap();
        let row = &decoder[f * D_OUT + 3..(f + 1) * D_OUT];
        for logit in &found.top_logits {
            let of_token = &unembedding.values[logit.token as usize * 6..][..6];
            let product: f32 = row.iter().zip(of_token).map(|(a, b)| a * b).sum();
            assert!((product - logit.logit).abs() < 1e-5);
        }
        assert_eq!((found.top_logits.len(), found.neighbours.len()), (5, 10));
    }
}
